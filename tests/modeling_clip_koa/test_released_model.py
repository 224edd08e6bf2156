"""The checkpoint in models/: it loads in every documented way and gives the grades it was released with.

python tests/modeling_clip_koa/test_released_model.py writes these grades anew, for a new release.
"""

import itertools
import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from clip_koa import RELEASED_MODEL
from clip_koa.evaluation.loading import load_checkpoint
from clip_koa.grading.grader import Grader
from clip_koa.grading.inputs import find_xrays
from clip_koa.publishing.release_check import check_folder, check_loading
from clip_koa.publishing.renew import renewed_card
from dataset_script.films import HELD_OUT_LOOK, compose_film, read_pairs
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CLIPKOAForImageClassification
from studies.framing import overlap
from studies.other_images import OTHER_IMAGES

# Probabilities of the release's own examples as the release was built; both views averaged, and the mirror image's.
GOLDEN_FILE = Path(__file__).parents[1] / "data" / "released_grades.json"
GOLDEN = json.loads(GOLDEN_FILE.read_text()) if GOLDEN_FILE.exists() else {}
ROOT = RELEASED_MODEL.parents[1]


@pytest.fixture(scope="module")
def grader():
    return CLIPKOAForImageClassification.from_pretrained(RELEASED_MODEL)


def grade_examples(grader) -> dict:
    examples = sorted((RELEASED_MODEL / "examples").glob("*.png"))
    grades = grader.grade([Image.open(example).convert("L") for example in examples])
    return dict(zip([example.name for example in examples], grades, strict=True))


def test_it_gives_the_grades_it_was_released_with(grader):
    grades = grade_examples(grader)
    assert list(grades) == list(GOLDEN)
    for grade, golden in zip(grades.values(), GOLDEN.values(), strict=True):
        assert grade.probabilities == pytest.approx(golden["probabilities"], abs=1e-3)
        assert grade.mirror_probabilities == pytest.approx(golden["mirror_probabilities"], abs=1e-3)
        assert grade.confidence_set and grade.atypicality is not None


def test_it_loads_in_every_way_and_holds_nothing_else():
    check_folder(RELEASED_MODEL)
    assert len(check_loading(RELEASED_MODEL, None)) == 7
    assert sum(file.stat().st_size for file in RELEASED_MODEL.rglob("*")) < 60e6


def test_it_carries_the_code_of_the_project():
    templates = ROOT / "clip_koa" / "publishing" / "templates"
    pairs = {RELEASED_MODEL / name: templates / name for name in ("handler.py", "requirements.txt")}
    for source in (ROOT / "modeling_clip_koa").glob("*_clip_koa.py"):
        pairs[RELEASED_MODEL / source.name] = source
    for copied in (RELEASED_MODEL / "dataset_script").iterdir():
        pairs[copied] = ROOT / "dataset_script" / copied.name
    stale = [copied.name for copied, source in pairs.items() if copied.read_bytes() != source.read_bytes()]
    assert not stale, "run make released-code"


def test_its_card_and_examples_are_those_of_the_project():
    examples = sorted((RELEASED_MODEL / "examples").iterdir())
    assert [file.read_bytes() for file in examples] == [
        file.read_bytes() for file in sorted((ROOT / "examples").iterdir())
    ]
    renewed = renewed_card(
        RELEASED_MODEL, "clip-koa/clip-koa-small", [file for file in examples if file.suffix == ".png"]
    )
    card = (RELEASED_MODEL / "README.md").read_text(encoding="utf-8")
    scores = r"(?m)^    score: .*$"  # may differ by a rounding
    assert re.sub(scores, "", card) == re.sub(scores, "", renewed), "run make released-code"
    assert "model.grade(xray)" in card.split("**2.")[0]  # first of all


def test_it_is_what_predict_takes(grader, run_python, tmp_path):
    example = ROOT / "examples" / "kl3_left.png"
    run_python("predict.py", "--framing", "as_is", "--output", tmp_path / "grades.jsonl", example)
    row = json.loads((tmp_path / "grades.jsonl").read_text())
    assert row["probability_3"] == pytest.approx(grader.grade(Image.open(example)).probabilities[3], abs=1e-5)


def test_real_knees_have_a_grade_and_drawings_have_none(grader):
    """What is refused was never shown to the model: it learned from real X-rays alone."""
    real = [Image.open(file) for file in sorted((ROOT / "examples").glob("*.png"))]
    assert len(real) == 10 and not any(grade.refusal or grade.warning for grade in grader.grade(real))
    for grade in grader.grade([draw_knee(number % 5, "LR"[number % 2], number) for number in range(4)]):
        assert grade.atypicality == 1.0 and "no frontal knee X-ray" in grade.refusal


@pytest.mark.slow
@pytest.mark.real
def test_it_grades_real_knees(knee_xray_dir):
    files = find_xrays([Path(knee_xray_dir) / "val"])[::4]
    graded = list(Grader(str(RELEASED_MODEL)).grade(files))
    true = torch.tensor([int(Path(file).parent.name) for file in files])
    named = torch.tensor([xray.grade.grade for xray in graded])
    assert (named == true).float().mean() > 0.6
    assert (named - true).abs().float().mean() < 0.5
    assert sum(bool(xray.warnings) for xray in graded) < 0.05 * len(files)


@pytest.mark.real
@pytest.mark.slow
def test_it_finds_both_knees_of_composed_films_and_leaves_crops_as_they_are(knee_xray_dir):
    model, _ = load_checkpoint(str(RELEASED_MODEL), dtype=torch.float32)
    for pair in itertools.islice(read_pairs(knee_xray_dir, "validation"), 3):
        film = compose_film(pair.right, pair.left, (1, pair.number), HELD_OUT_LOOK)
        grades = model.grade_film(film.image)
        assert [(grade.side, grade.side_assumed) for grade in grades] == [("R", True), ("L", True)]
        assert min(overlap(grade.box, box) for grade, box in zip(grades, film.boxes, strict=True)) > 0.7
        mirrored = model.find_knees(ImageOps.mirror(film.image))
        width = film.image.width
        assert [
            (width - right, top, width - left, bottom)
            for left, top, right, bottom in (knee.box for knee in mirrored[::-1])
        ] == [grade.box for grade in grades]
        for crop in (pair.right, pair.left):
            (framed,) = model.grade_film(crop)
            assert replace(framed, box=None) == model.grade(crop) and framed.box == (0, 0, *crop.size)
        for picture in (film.image.crop((0, 0, 60, film.image.height)), ImageOps.flip(pair.right)):
            assert model.find_knees(picture) == []


def test_it_finds_no_knee_where_there_is_none():
    model, _ = load_checkpoint(str(RELEASED_MODEL), dtype=torch.float32)
    noise = np.random.default_rng(0).integers(0, 256, (300, 400)).astype(np.uint8)
    hand = OTHER_IMAGES["drawn hands"]([], np.random.default_rng(0))[0]
    for picture in (Image.fromarray(noise), Image.new("L", (400, 300)), hand):
        assert model.find_knees(picture) == model.grade_film(picture) == []


if __name__ == "__main__":
    released = grade_examples(CLIPKOAForImageClassification.from_pretrained(RELEASED_MODEL))
    parts = ("probabilities", "mirror_probabilities")
    golden = {name: {part: getattr(grade, part) for part in parts} for name, grade in released.items()}
    GOLDEN_FILE.write_text(json.dumps(golden, indent=1) + "\n")
