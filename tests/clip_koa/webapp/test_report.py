"""The report: what it names, and that it fills one page."""

import hashlib
import re
import zlib
from dataclasses import replace
from pathlib import Path

import pytest

from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.webapp.readings import Film, Reading
from clip_koa.webapp.report import ModelFacts, Report, _Paper, model_facts, render_html, render_pdf
from dataset_script.radiograph import Radiograph
from dataset_script.synthetic import draw_knee
from webapp.conftest import upload


def _texts_of_pdf(content: bytes) -> int:
    """How many glyphs the page of a PDF writes."""
    streams = re.findall(rb"stream\r?\n(.*?)\r?\nendstream", content, flags=re.S)
    drawn = b""
    for stream in streams:
        try:
            drawn += zlib.decompress(stream)
        except zlib.error:
            continue
    return drawn.count(b" Tj") + drawn.count(b" TJ")


def test_a_report_names_what_it_needs(page, visitor, knee, model_folder):
    told = visitor.grade(knee("9000001L.png").read_bytes(), "9000001L.png")
    against = 2 if told["grade"] != 2 else 1
    html = visitor.get(f"xrays/{told['id']}/report.html", against=against, side="R").text
    digest = hashlib.sha256((model_folder / "model.safetensors").read_bytes()).hexdigest()
    expected = (
        "9000001L.png", "120 × 120 pixels", digest, "model", "a local folder", "fp32", "set of 90 %", "right knee",
        f"rather than KL{against}", "not a medical device", f"KL{told['grade']} ",
    )  # fmt: skip
    assert [words for words in expected if words not in html] == []
    assert re.search(r"20\d\d-\d\d-\d\d \d\d:\d\d UTC", html) and html.count("data:image/png") == 2
    assert not re.search(r"""(src|href)=["']?(http|/)""", html)
    pdf = visitor.get(f"xrays/{told['id']}/report.pdf")
    assert pdf.headers["content-type"] == "application/pdf" and pdf.content.startswith(b"%PDF")
    assert len(re.findall(rb"/Type /Page\b", pdf.content)) == 1 and _texts_of_pdf(pdf.content) > 40
    assert pdf.content.count(b"/Subtype /Image") >= 2


def test_a_report_says_which_knee_of_a_film_it_is(film_visitor, film):
    right, left = film_visitor.upload(film().read_bytes(), "film.png").json()["knees"]
    box = {"left": 255, "top": 96, "right": 375, "bottom": 216}
    _, left = film_visitor.ask(left, "box", **box).json()["knees"]
    report = film_visitor.get(f"xrays/{right['id']}/report.html", side="R")
    assert "right knee (assumed)" in report.text and "left 40, top 90, right 160, bottom 210 pixels" in report.text
    assert "420 × 300 pixels" in report.text and "by hand" not in report.text
    assert 'filename="clip-koa-film-R.html"' in report.headers["content-disposition"]
    moved = film_visitor.get(f"xrays/{left['id']}/report.html", side="L").text
    assert "left 255, top 96, right 375, bottom 216 pixels (placed by hand)" in moved
    told = film_visitor.get(f"xrays/{left['id']}/report.html", side="R").text  # the reader knows better
    assert "right knee" in told and "assumed" not in told


@pytest.mark.parametrize("language", ["en", "de", "fr", "es"])
@pytest.mark.parametrize("size", [(120, 120), (60, 300), (300, 60)])
def test_it_fills_one_a4_page(browser, film_visitor, tmp_path, language, size):
    draw_knee(4, "L", 3, 120).resize(size).save(tmp_path / "knee.png")
    told = film_visitor.grade((tmp_path / "knee.png").read_bytes(), "a name of some length, as films have.png")
    (tmp_path / "report.html").write_text(film_visitor.get(f"xrays/{told['id']}/report.html", lang=language).text)
    printed = browser.new_page()
    printed.goto(f"file://{tmp_path}/report.html")
    pdf = printed.pdf(prefer_css_page_size=True)
    assert len(re.findall(rb"/Type /Page\b", pdf)) == 1
    printed.emulate_media(media="print")
    printed.set_viewport_size({"width": 688, "height": 1017})  # A4 less its margins at 96 dots an inch
    foot = printed.locator("footer").bounding_box()
    assert 0.93 < (foot["y"] + foot["height"]) / 1017 <= 1.0
    printed.close()


@pytest.mark.parametrize("language", ["en", "de", "fr", "es"])
def test_it_fills_one_page_with_every_warning(browser, model_folder, tmp_path, language, monkeypatch):
    grader, image = Grader(str(model_folder)), draw_knee(3, "L", 0, 120)
    grade = replace(
        grader.model.grade(image), box=(-20, 0, 80, 100), side="R", side_assumed=True, outside=0.2,
        ways=("contrast", "brightness", "sharpness", "resolution", "frame"), atypicality=1.0, tells_knees=False,
    )  # fmt: skip
    film = Film(Radiograph(image, "knee.png", inverted=True))
    reading = Reading(GradedXray("a name of some length, as films have.png", grade, "R"), film, "auto")
    explanation = grader.explain_picture(reading.image, grade.grade)
    facts = ModelFacts("a model of some name", "", 64 * "0", 0.9, "fp32")
    report = Report(reading, explanation, facts, language, "R")
    assert len(report.facts()["warnings"]) == 4
    (tmp_path / "report.html").write_text(render_html(report))
    printed = browser.new_page()
    printed.goto(f"file://{tmp_path}/report.html")
    assert len(re.findall(rb"/Type /Page\b", printed.pdf(prefer_css_page_size=True))) == 1
    printed.close()
    ends = []  # of what stands above the foot
    foot = _Paper.foot
    monkeypatch.setattr(_Paper, "foot", lambda paper: (ends.append(paper.get_y()), foot(paper)))
    assert len(re.findall(rb"/Type /Page\b", render_pdf(report))) == 1 and ends[0] < _Paper.FOOT


def test_both_reports_are_downloaded(page, knee):
    upload(page, knee("膝 9.png"))
    for kind in ("HTML", "PDF"):
        with page.expect_download() as download:
            page.get_by_role("link", name=f"Report of one page, {kind}").click()
        assert download.value.suggested_filename == f"clip-koa-膝 9.{kind.lower()}"
        assert Path(download.value.path()).stat().st_size > 10_000


def test_the_facts_of_a_model_on_the_hub(monkeypatch, tmp_path):
    from types import SimpleNamespace

    (tmp_path / "model.safetensors").write_bytes(b"weights")
    monkeypatch.setattr("clip_koa.webapp.report.cached_file", lambda *_, **__: str(tmp_path / "model.safetensors"))
    config = SimpleNamespace(_commit_hash="0123abc")
    facts = model_facts("anna/knees", SimpleNamespace(model=SimpleNamespace(config=config), precision="fp32"), 0.8)
    assert (facts.name, facts.revision, facts.level) == ("anna/knees", "0123abc", 0.8)
    assert facts.digest == hashlib.sha256(b"weights").hexdigest() and facts.precision == "fp32"
