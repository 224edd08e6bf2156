"""What the page shows of X-rays: the card, the table, warnings, refusals."""

import csv
import io
import re

import pytest
from conftest import ROOT

from webapp.conftest import until, upload, visiting


def _lengths(page):
    """Of each bar of the card and the whole of its track, in pixels; and what it says."""
    return page.locator("#card .details > .bars li").evaluate_all(
        "rows => rows.map(row => [row.querySelector('.bar').getBoundingClientRect().width,"
        " row.querySelector('.track').getBoundingClientRect().width])"
    )


def test_upload_read_change_the_map(page, served, visitor, knee):
    file = knee("9000001L.png")
    upload(page, file)
    card = page.locator("#card .card")
    grade = int(card.locator(".badge").inner_text())
    assert card.locator("h3").inner_text().startswith(f"KL{grade} ")
    assert "9000001L.png · 120 × 120" in card.locator(".file").inner_text()
    assert re.search(r"Grade \d.* 90 % of the time", card.locator(".sure").inner_text())
    shares = [int(text.split()[0]) for text in card.locator(".details > .bars .share").all_inner_texts()]
    told = visitor.grade(file.read_bytes(), file.name)  # what the browser was told
    assert shares == [pytest.approx(100 * share, abs=0.51) for share in told["probabilities"]]
    assert shares[grade] == max(shares) and told["laterality"] == "L"
    # The left knee's lateral side is on the right; the reader may say otherwise.
    assert card.locator(".mark").all_inner_texts() == ["medial", "lateral"]
    card.get_by_role("radio", name="right knee").check()
    assert card.locator(".mark").all_inner_texts() == ["lateral", "medial"]

    first = card.locator(".heat").get_attribute("src")
    card.get_by_role("group", name="The heat map marks").get_by_role("radio").nth(1).check()
    assert "rather than" in card.locator(".caption").inner_text()
    assert card.locator(".heat").get_attribute("src") != first
    assert page.asked <= {served.url.rstrip("/")}  # nothing is asked of another computer


def test_the_slider_stands_where_the_map_is_after_choosing_another(page, knee):
    upload(page, knee("a.png", 1), knee("b.png", 2))
    page.get_by_role("radio", name="Show a.png").check()  # either may have been graded first
    slider = page.get_by_role("slider", name="Opacity of the heat map")
    slider.fill("0")
    for name, opacity in (("b.png", "60"), ("a.png", "0"), ("b.png", "60")):
        page.get_by_role("radio", name=f"Show {name}").check()
        assert slider.input_value() == opacity
        assert page.locator(".heat").evaluate("heat => 100 * heat.style.opacity") == int(opacity)


def test_what_is_no_knee_has_no_answer_at_all(page, noise, knee):
    upload(page, noise, knee())
    card, row = page.locator("#card"), page.locator("#list tbody tr", has_text="noise.png")
    assert "Unlike a knee" in row.inner_text() and row.locator(".tag").count() == 0 and "%" not in row.inner_text()
    page.get_by_role("radio", name="Show noise.png").check()
    card.get_by_role("heading", name="This does not look like a knee X-ray").wait_for()
    assert card.locator(".badge, .bars, .sure, .stage, .reports").count() == 0
    assert "no grade" in page.get_by_role("status").inner_text()
    assert card.get_by_role("button").all_inner_texts() == ["Forget this X-ray"]


@pytest.mark.parametrize("width", [320, 375, 820, 1280, 1920])
def test_bars_are_as_long_as_they_say(browser, served, visitor, knee, width):
    told = visitor.grade(knee().read_bytes())["probabilities"]
    with visiting(browser, served.url, viewport={"width": width, "height": 900}, reduced_motion="reduce") as page:
        upload(page, knee())
        page.locator("#card .bars").first.wait_for()
        for share, (bar, track) in zip(told, _lengths(page), strict=True):
            assert track > 60 and bar / track == pytest.approx(share, abs=0.01)


def test_files_without_a_suffix_and_bad_ones_beside_good_ones(page, knee, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    (tmp_path / "empty.dcm").write_bytes(b"")
    dicom = (tmp_path / "IM0001").write_bytes((ROOT / "tests/data/dicom/implicit.dcm").read_bytes())
    assert dicom
    upload(
        page, tmp_path / "broken.png", tmp_path / "IM0001", knee().rename(tmp_path / "knee"), tmp_path / "empty.dcm"
    )
    rows = page.locator("#list tbody tr")
    assert [row.split("\t")[0].split("\n")[0] for row in rows.locator("th").all_inner_texts()] == [
        "broken.png", "IM0001", "knee", "empty.dcm",
    ]  # fmt: skip
    assert rows.filter(has_text="Not graded").count() == 2
    page.locator("#card").get_by_text(re.compile("IM0001|knee")).first.wait_for()  # a good one is shown
    assert page.get_by_role("status").inner_text().startswith("2 graded, 2 not graded.")
    page.get_by_role("radio", name="Show broken.png").check()
    refused = page.locator("#card .refused")
    assert "broken.png was not graded" in refused.inner_text() and "is not a PNG" in refused.inner_text()


def _drop(page, place, *files):
    """Drops files on an element, as from a file manager."""
    transfer = page.evaluate_handle(
        "files => { const transfer = new DataTransfer(); for (const [name, bytes] of files)"
        " transfer.items.add(new File([new Uint8Array(bytes)], name)); return transfer; }",
        [[file.name, list(file.read_bytes())] for file in files],
    )
    for event in ("dragenter", "dragover", "drop"):
        page.locator(place).dispatch_event(event, {"dataTransfer": transfer})


def test_drops_beside_the_box_and_during_grading_are_graded(page, knee):
    held = []
    page.route("**/xrays?name=slow*", lambda route: held.append(route))  # it is being graded until it is let go
    page.locator("#file").set_input_files([str(knee("slow.png"))])
    _drop(page, "header", knee("beside.png", 1))
    _drop(page, "#results", knee("again.png", 2), knee("third", 3))
    page.locator("#list .tag").nth(2).wait_for()
    until(page, lambda: held)
    held[0].continue_()
    page.locator("#list .tag").nth(3).wait_for()
    names = page.locator("#list tbody th").all_inner_texts()
    assert [name.strip() for name in names] == ["slow.png", "beside.png", "again.png", "third"]
    assert page.locator("#over").is_hidden()


def test_the_table_is_sorted_and_downloaded(page, knee, noise):
    files = [knee(f"{name}.png", seed) for seed, name in enumerate(("b", "=a", "c10", "c9"))]
    upload(page, *files, noise)

    def names():
        return [name.strip() for name in page.locator("#list tbody th").all_inner_texts()]

    sort = page.get_by_role("columnheader", name="X-ray").get_by_role("button")
    sort.click()
    assert names() == ["=a.png", "b.png", "c9.png", "c10.png", "noise.png"]
    sort.press("Enter")
    assert names()[::-1] == ["=a.png", "b.png", "c9.png", "c10.png", "noise.png"]
    assert page.locator("#list th[aria-sort=descending]").inner_text().startswith("X-ray")
    assert page.evaluate("() => document.activeElement.textContent").startswith("X-ray")  # focus stays
    page.get_by_role("columnheader", name="Osteoarthritis").get_by_role("button").click()
    shares = [int(text.split()[0]) for text in page.locator("td.osteoarthritis").all_inner_texts()[:4]]
    assert shares == sorted(shares) and names()[-1] == "noise.png"
    with page.expect_download() as download:
        page.get_by_role("link", name="Download the table").click()
    rows = list(csv.DictReader(io.StringIO(download.value.path().read_text())))
    assert [row["file"] for row in rows] == ["b.png", "\\x3da.png", "c10.png", "c9.png", "noise.png"]
    assert all(row["grade"] in tuple("01234") for row in rows[:-1])
    assert not rows[-1]["grade"] and "no frontal knee X-ray" in rows[-1]["error"]


def test_forgetting_one_and_all(page, knee):
    upload(page, knee("a.png", 1), knee("b.png", 2))
    page.get_by_role("radio", name="Show a.png").check()  # either may have been graded first
    page.get_by_role("button", name="Forget this X-ray").click()
    page.locator("#card .file", has_text="b.png").wait_for()
    assert page.locator("#list tr").count() == 0  # one needs no table
    assert page.evaluate("() => document.activeElement.id") == "results-title"
    page.get_by_role("button", name="Forget all").click()
    assert page.locator("#card .card").count() == 0 and page.evaluate("() => document.activeElement.id") == "file"
    assert page.get_by_role("status").inner_text() == "All X-rays were forgotten."


def test_an_example_is_graded_and_its_grade_in_the_data_set_named(page):
    page.get_by_role("button", name="Example: KL2 mild, right knee").click()
    page.locator("#card .truth").wait_for()
    assert "is KL2 mild" in page.locator("#card .truth").inner_text()
    assert page.locator(".mark").all_inner_texts() == ["lateral", "medial"]


def test_a_phone_sees_the_answer_at_once_and_moves_the_slider_by_touch(browser, served):
    phone = {"viewport": {"width": 375, "height": 740}, "is_mobile": True, "has_touch": True}
    with visiting(browser, served.url, reduced_motion="reduce", **phone) as page:
        page.get_by_role("button", name="Example: KL3").first.tap()
        page.locator("#card .stage").wait_for()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= 375
        assert page.locator("#card .badge").bounding_box()["y"] < 740 / 2  # scrolled to
        slider = page.get_by_role("slider", name="Opacity of the heat map")
        slider.scroll_into_view_if_needed()
        box = slider.bounding_box()
        page.touchscreen.tap(box["x"] + 0.2 * box["width"], box["y"] + box["height"] / 2)
        opacity = float(page.locator("#card .heat").evaluate("heat => heat.style.opacity"))
        assert box["width"] > 100 and opacity == pytest.approx(0.2, abs=0.07)
