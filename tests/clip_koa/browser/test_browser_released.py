"""The page with the released model: the examples, a film, a drawing and a broken file, as Python grades them."""

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from webapp.conftest import visiting

from browser.conftest import serving
from clip_koa.browser import site
from clip_koa.grading.grader import Grader
from clip_koa.webapp.texts import texts_of
from dataset_script.films import compose_film
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee
from modeling_clip_koa.localisation_clip_koa import Knee
from modeling_clip_koa.prompts_clip_koa import GRADE_MEANINGS

pytestmark = pytest.mark.slow
MODEL = ROOT / "models" / "clip-koa-small"
EXAMPLES = ROOT / "examples"
_FACTS = "async () => (await import('/page/shell.js')).page.items.map(({ error, facts }) => ({ error, ...facts }))"
_PATIENCE = 1_800_000  # ms; a busy machine takes its time


@pytest.fixture(scope="module")
def released(browser, packed, tmp_path_factory):
    """What the page and Python say of some files, each taken as it is or searched for knees."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("released") / "site"
    site.build_site(folder, str(MODEL), EXAMPLES)
    with serving(folder) as (_, url), visiting(browser, url) as page:
        page.set_default_timeout(_PATIENCE)

        def both(files, framing="auto", then=None):
            page.locator(f"#framing input[value={framing}]").check()
            page.locator("#file").set_input_files([str(file) for file in files])
            page.locator("#progress").wait_for(state="visible")
            page.locator("#progress").wait_for(state="hidden")
            if then:
                then(page)
            seen = page.evaluate(_FACTS)
            shown = page.locator("#card").inner_text()
            page.locator("#forget").click()
            return seen, list(Grader(str(MODEL), framing=framing).grade(files)), shown

        yield both
        assert page.faults == []


def test_the_examples_have_pythons_grades(released):
    files = sorted(EXAMPLES.glob("*.png"))
    seen, graded, shown = released(files)
    assert len(seen) == len(graded) == 10
    for told, xray in zip(seen, graded, strict=True):
        grade = xray.grade
        assert told["trouble"] == "" and told["grade"] == grade.grade and tuple(told["set"]) == grade.confidence_set
        assert np.abs(np.subtract(told["probabilities"], grade.probabilities)).max() < 0.02
        assert np.abs(np.subtract(told["mirror_probabilities"], grade.mirror_probabilities)).max() < 0.02
        assert tuple(told["box"]) == grade.box and tuple(told["ways"]) == grade.ways
    assert any(meaning in shown for meaning in GRADE_MEANINGS)


def test_the_knees_of_a_film_are_found_where_python_finds_them(released, tmp_path):
    knees = [Image.open(EXAMPLES / f"kl4_{side}.png").convert("L") for side in ("right", "left")]
    compose_film(*knees, 4).image.save(tmp_path / "film.png")
    seen, graded, _ = released([tmp_path / "film.png"])
    assert [told["laterality"] for told in seen] == [xray.laterality for xray in graded] == ["R", "L"]
    for told, xray in zip(seen, graded, strict=True):
        assert np.abs(np.subtract(told["box"], xray.grade.box)).max() <= 1
        assert told["grade"] == xray.grade.grade and told["side_assumed"]


def test_a_box_that_is_moved_by_keyboard_is_graded_anew(released, tmp_path):
    knees = [Image.open(EXAMPLES / f"kl3_{side}.png").convert("L") for side in ("right", "left")]
    compose_film(*knees, 2).image.save(tmp_path / "film.png")

    def move(page):
        page.locator("#card .box:not(.other)").focus()
        for key in ("ArrowLeft", "ArrowDown", "+"):
            page.keyboard.press(key)
        page.locator("#card .warning", has_text=texts_of("en")["by_hand"]).wait_for()

    seen, graded, _ = released([tmp_path / "film.png"], then=move)
    told = next(told for told in seen if told["by_hand"])
    before = next(xray.grade for xray in graded if xray.laterality == told["laterality"])
    radiograph = read_radiograph(tmp_path / "film.png")
    knee = Knee(tuple(told["box"]), angle=told["angle"])
    expected = Grader(str(MODEL)).grade_knee(radiograph, knee).grade
    assert tuple(told["box"]) != before.box and told["grade"] == expected.grade
    assert np.abs(np.subtract(told["probabilities"], expected.probabilities)).max() < 0.02


def test_a_drawing_is_refused_as_in_python(released, tmp_path):
    draw_knee(3, "L", 5, 224).save(tmp_path / "drawn.png")
    seen, graded, shown = released([tmp_path / "drawn.png"], "as_is")
    assert graded[0].grade.refusal and seen[0]["trouble"] == "unlike"
    assert "This does not look like a knee X-ray" in shown
