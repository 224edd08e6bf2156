"""The page with its model: grades as Python's, nothing asked of anybody else, offline, in every language."""

import json
import re
import shutil

import numpy as np
import pytest
from dicom_files import write_dicom
from PIL import Image
from webapp.conftest import upload, visiting

from browser.conftest import serving
from clip_koa.browser import packages
from clip_koa.browser.graphs import write_graphs
from clip_koa.grading.model_loading import load_checkpoint
from clip_koa.webapp.texts import LANGUAGES, texts_of
from dataset_script.synthetic import draw_knee
from modeling_clip_koa.localisation_clip_koa import KneeLocator

_ASK_ELSEWHERE = """async (address) => {
    const asked = { fetch: () => fetch(address), picture: () => new Promise((resolve, reject) => {
        const image = new Image();
        Object.assign(image, { onload: resolve, onerror: () => reject(new TypeError()), src: address });
    }), beacon: async () => { navigator.sendBeacon(address); throw new TypeError(); } }; // it tells nothing
    const told = {};
    for (const [way, ask] of Object.entries(asked)) told[way] = await ask().then(() => "went", () => "stopped");
    return told;
}"""


def _grades(page) -> list[str]:
    return page.locator("#list tbody td.grade").all_inner_texts()


def _knees(folder) -> list:
    files = []
    for grade, side in ((0, "R"), (2, "L"), (4, "R")):
        files.append(folder / f"knee{grade}.png")
        draw_knee(grade, side, grade, 120).save(files[-1])
    draw_knee(1, "L", 9, 150).convert("RGB").resize((150, 120)).save(folder / "wide.jpg", quality=95)
    cells = np.asarray(draw_knee(3, "R", 5, 96), np.uint16) * 16
    (folder / "knee.dcm").write_bytes(write_dicom(cells, BitsStored=12, WindowCenter=2000, WindowWidth=3000))
    return [*files, folder / "wide.jpg", folder / "knee.dcm"]


def _release(folder) -> dict:
    return json.loads((folder / "release.js").read_text().removeprefix("self.RELEASE = ").rstrip(";\n"))


def _facts(page) -> list[dict]:
    items = "(await import('/page/shell.js')).page.items"
    return page.evaluate(f"async () => {items}.map(({{ name, facts, error }}) => ({{ name, error, ...facts }}))")


def test_grades_are_those_of_python(page, model_folder, tmp_path):
    """Of any size and format; the same grade, and probabilities that differ by what 8 bits of weights cost."""
    from clip_koa.grading.grader import Grader

    files = _knees(tmp_path)
    upload(page, *files)
    found = _facts(page)
    grader = Grader(str(model_folder))
    for told, xray in zip(found, grader.grade(files), strict=True):
        grade = xray.grade
        assert told["name"] == xray.file.split("/")[-1] and not told.get("error")
        assert told["trouble"] == ("unlike" if grade.refusal else "")
        if grade.refusal:
            continue
        assert np.abs(np.subtract(told["probabilities"], grade.probabilities)).max() < 0.02
        assert np.abs(np.subtract(told["mirror_probabilities"], grade.mirror_probabilities)).max() < 0.02
        assert told["atypicality"] == pytest.approx(grade.atypicality, abs=0.1)
        ordered = sorted(grade.probabilities)
        if ordered[-1] - ordered[-2] > 0.04:
            assert told["grade"] == grade.grade
    assert sum(told["trouble"] == "" for told in found) >= 3


def test_noise_and_broken_files_get_no_grade_but_a_sentence(page, tmp_path):
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (90, 90), np.uint8)).save(tmp_path / "noise.png")
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(90))
    (tmp_path / "text.txt").write_text("no X-ray")
    (tmp_path / "empty.png").write_bytes(b"")
    upload(page, *(tmp_path / name for name in ("noise.png", "broken.png", "text.txt", "empty.png")))
    english = texts_of("en")
    expected = {name: english[f"refused_{key}"] for name, key in (
        ("broken.png", "damaged"), ("text.txt", "format"), ("empty.png", "empty"))}  # fmt: skip
    told = {item["name"]: item for item in _facts(page)}
    assert told["noise.png"]["trouble"] == "unlike"
    assert {name: told[name]["error"] for name in expected} == expected
    page.get_by_role("radio", name="Show broken.png").check()
    card = page.locator("#card").inner_text()
    assert "broken.png was not graded" in card and english["refused_damaged"] in card


def test_nothing_is_asked_of_anybody_else(browser, served_site, tmp_path):
    with serving(tmp_path) as (other, elsewhere), visiting(browser, served_site) as page:
        page.locator("body[data-model]").wait_for()
        upload(page, *_knees(tmp_path))
        page.locator("#language").select_option("fr")
        page.get_by_role("button", name="Oublier toutes les radiographies").click()
        assert {host.removeprefix("blob:") for host in page.asked} <= {served_site.rstrip("/"), "http:"}
        assert page.faults == []
        # Whoever tries it from the page or from its worker is stopped by the policy.
        assert page.evaluate(_ASK_ELSEWHERE, elsewhere) == {
            "fetch": "stopped",
            "picture": "stopped",
            "beacon": "stopped",
        }
        (worker,) = [worker for worker in page.workers if worker.url.startswith("blob:")]
        ask = "(address) => fetch(address, { mode: 'no-cors' }).then(() => 'went', () => 'stopped')"
        assert worker.evaluate(ask, elsewhere) == "stopped"
        assert sum("Content Security Policy" in fault for fault in page.faults) >= 3
        assert other.asked == []
        assert worker.evaluate("(address) => fetch(address).then((answer) => answer.ok)", f"{served_site}release.js")


def test_the_policy_is_strict(site_folder):
    page = (site_folder / "index.html").read_text()
    policy = re.search(r'Content-Security-Policy" content="([^"]+)"', page)[1].replace("&#39;", "'")
    parts = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    assert parts["default-src"] == "'none'" and "unsafe-inline" not in policy
    assert not re.search(r"https?:|\*|(?<!wasm-)unsafe-eval", policy)
    assert not re.search(r"<script(?![^>]*src=)|style=|<style|onclick", page)
    for source in (site_folder / "page").iterdir():  # no address but the page's own, and namespaces
        addresses = set(re.findall(r"https?://[\w./-]+", source.read_text()))
        assert addresses <= {"http://www.w3.org/2000/svg"}, source


def test_it_works_offline_after_the_first_visit(browser, site_folder, tmp_path):
    context = browser.new_context(locale="en-GB")
    try:
        with serving(site_folder) as (_, url):
            page = context.new_page()
            page.goto(url)
            page.locator("body[data-model]").wait_for()
            page.wait_for_function(
                "async (count) => (await (await caches.open((await caches.keys())[0])).keys()).length === count",
                arg=len(_release(site_folder)["files"]),
            )
            assert page.evaluate("crossOriginIsolated")  # a plain server sends no such headers
        page = context.new_page()  # the server is gone
        page.goto(url)
        page.locator("body[data-model]").wait_for()
        upload(page, *_knees(tmp_path)[:2])
        assert len(_grades(page)) == 2 and all(name.startswith("KL") for name in _grades(page))
        page.locator("[data-example]").first.click()
        page.locator("#progress").wait_for(state="hidden")
        page.locator("#language").select_option("es")
        page.locator("h1", has_text=texts_of("es")["title"]).wait_for()
    finally:
        context.close()


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_language(browser, served_site, tmp_path, language):
    (tmp_path / "text.txt").write_text("no X-ray")
    text = texts_of(language)
    with visiting(
        browser, served_site, locale={"en": "en-GB"}.get(language, f"{language}-{language.upper()}")
    ) as page:
        assert page.locator("html").get_attribute("lang") == language
        assert page.locator("h1").inner_text() == text["title"]
        assert text["privacy_local"] in page.locator("#upload").inner_text()
        upload(page, tmp_path / "text.txt")
        assert text["refused_format"] in page.locator("#card").inner_text()
        assert page.faults == []


@pytest.mark.parametrize("scheme, width", [("light", 375), ("dark", 1280)])
def test_axe_finds_nothing_and_nothing_overflows(browser, served_site, tmp_path, scheme, width):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="needs axe-playwright-python")
    rules = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22a", "wcag22aa", "best-practice"]
    settings = {"color_scheme": scheme, "viewport": {"width": width, "height": 900}, "reduced_motion": "reduce"}
    with visiting(browser, served_site, **settings) as page:
        upload(page, *_knees(tmp_path)[:2])
        page.locator("#card .badge").wait_for()
        results = axe.Axe().run(page, options={"runOnly": rules}).response
        assert [(rule["id"], rule["nodes"][0]["html"][:150]) for rule in results["violations"]] == []
        assert len(results["passes"]) > 20
        assert page.evaluate("document.documentElement.scrollWidth <= document.documentElement.clientWidth")


def test_by_keyboard(page, tmp_path):
    page.locator("#file").focus()
    upload(page, *_knees(tmp_path)[:1])
    reached = []
    for _ in range(60):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.innerText || document.activeElement.className"))
    assert "stage" in reached and texts_of("en")["report_print"] in reached
    assert page.get_by_role("status").inner_text().startswith("knee0.png: ")


def test_a_report_is_printed_on_one_page(page, tmp_path):
    upload(page, *_knees(tmp_path)[:1])
    page.evaluate("() => { window.print = () => { window.printed = true; }; }")
    page.get_by_role("button", name=texts_of("en")["report_print"]).click()
    page.wait_for_function("window.printed")
    page.emulate_media(media="print")
    report = page.locator("#report")
    words = report.inner_text()
    assert "Research only." in words and "knee0.png" in words and "KL0 none" in words and "tiny" in words
    assert not page.locator("header").is_visible()
    pdf = page.pdf(prefer_css_page_size=True, print_background=True)
    assert len(re.findall(rb"/Type\s*/Page[^s]", pdf)) == 1


def _locator(model) -> KneeLocator:
    """Of random weights, so that only the arithmetic is looked at."""
    import torch

    vision = model.config.vision_config
    torch.manual_seed(3)
    window = 2 * vision.patch_size * (vision.image_size // vision.patch_size // 2)
    patches = (window // vision.patch_size) ** 2
    return KneeLocator(vision.hidden_size, patches, 1, window).eval()


def test_the_locators_graph_gives_what_the_locator_gives(model_folder, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    model, _ = load_checkpoint(str(model_folder))
    model.beside = type(model.beside)(*model.beside._found[:3], _locator(model))
    write_graphs(model, tmp_path)
    side = model.beside.locator.window
    windows = [draw_knee(grade, "L", grade, side) for grade in range(4)]
    session = onnxruntime.InferenceSession(tmp_path / "locate.onnx")
    values = np.stack([np.asarray(window) for window in windows]).astype(np.float32)
    (found,) = session.run(None, {"windows": values})
    expected = model.beside.locator.locate(model, windows)
    assert found[:, :5] == pytest.approx(expected[:, :5], abs=0.02)
    assert found[:, 5] == pytest.approx(expected[:, 5], abs=1e-3)


def test_a_graph_names_nothing_of_this_machine(site_folder):
    content = (site_folder / "model" / "grade.onnx").read_bytes()
    assert b"stack_trace" not in content and b"/clip_koa/" not in content and b".py" not in content


def test_what_is_not_the_pinned_package_is_refused(monkeypatch, tmp_path):
    package = packages.PACKAGES[1]
    (tmp_path / package.archive).write_bytes(b"another")
    with pytest.raises(packages.PackageError, match=r"dicom-parser 1\.8\.21 as pinned: remove it"):
        packages._fetch_one(package, tmp_path)
    monkeypatch.setattr(shutil, "which", lambda name: None)
    with pytest.raises(packages.PackageError, match="npm is missing: install Node"):
        packages._fetch_one(package, tmp_path / "none")


def test_the_service_worker_keeps_every_file_by_its_digest(site_folder):
    from clip_koa.files import file_digest

    release = _release(site_folder)
    there = {
        path.relative_to(site_folder).as_posix(): file_digest(path)
        for path in site_folder.rglob("*")
        if path.is_file()
    }
    assert release["files"] == {name: digest for name, digest in there.items() if name not in ("sw.js", "release.js")}
