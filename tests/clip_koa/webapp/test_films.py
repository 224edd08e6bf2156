"""Films on the page: a card for each knee, boxes that the reader moves, and a film that shows no knee."""

import csv
import io

import pytest

from clip_koa.grading.grade_table import table_row
from clip_koa.grading.grader import Grader
from dataset_script.radiograph import read_radiograph
from modeling_clip_koa import grading_clip_koa
from modeling_clip_koa.grading_clip_koa import Beside
from modeling_clip_koa.localisation_clip_koa import Knee
from webapp.conftest import until, upload, visiting
from webapp.film_page import FILMS, find_made

RIGHT, LEFT = FILMS["both"][1]
EDGES = ("left", "top", "right", "bottom")


@pytest.fixture
def grader(films, monkeypatch):
    """What `clip-koa grade` grades with, by the model of the page."""
    monkeypatch.setattr(grading_clip_koa, "find_knees", find_made)
    monkeypatch.setattr(Beside, "has_locator", True)
    monkeypatch.setattr(Beside, "locator", None)
    return Grader(str(films.folder.parent / "model"), framing="auto")


def status(page, words):
    """Waits until the page says so to screen readers."""
    page.get_by_role("status").filter(has_text=words).wait_for()


def own_box(page):
    return page.get_by_label("Box of this knee")


def place_of(page):
    """Where the box of the chosen knee lies in its film, in pixels of the film."""
    return page.evaluate(
        """() => { const rect = s => document.querySelector(s).getBoundingClientRect();
        const [b, f] = [rect('.box:not(.other)'), rect('.film-stage')];
        return [b.left - f.left, b.top - f.top, b.right - f.left, b.bottom - f.top].map(x => 420 * x / f.width); }"""
    )


def test_a_card_for_each_knee_right_knee_first(film_page, film):
    page = film_page
    upload(page, film())
    assert page.locator("#list td.side").all_inner_texts() == ["right knee", "left knee"]
    assert page.locator("#list .tag").count() == 2
    assert page.get_by_role("status").inner_text().count("both.png: KL") == 2  # both are told
    card = page.locator("#card .card")
    assert card.get_attribute("aria-label") == "both.png, right knee"
    assert "120 × 120" in card.locator(".file").inner_text() and "is assumed" in card.locator(".warning").inner_text()
    assert place_of(page) == pytest.approx(RIGHT, abs=3)
    seen = page.locator(".stage .picture").evaluate("e => [e.naturalWidth, e.naturalHeight]")
    assert seen == [120, 120]  # under its heat map is the knee alone
    page.get_by_role("button", name="Show the other knee: left knee").click()
    assert card.get_attribute("aria-label") == "both.png, left knee"
    assert place_of(page) == pytest.approx(LEFT, abs=3)
    card.get_by_role("group", name="Side of this knee").get_by_role("radio", name="right knee").check()
    page.get_by_role("button", name="Show the other knee").click()
    page.get_by_role("button", name="Show the other knee").click()
    assert "is assumed" not in card.inner_text()  # the reader has said it


def test_the_box_is_moved_by_keyboard_and_the_knee_graded_anew(film_page, film, grader):
    page, asked = film_page, []
    page.on("request", lambda request: "/box?" in request.url and asked.append(request.url))
    upload(page, film("both", "9000001.png"))
    own_box(page).focus()
    for key in ("ArrowRight", "ArrowRight", "ArrowDown", "+", "Shift+ArrowLeft", "-"):
        page.keyboard.press(key)
    status(page, "9000001.png: KL")
    page.locator("#card", has_text="The box was placed by hand.").wait_for()
    assert len(asked) == 1  # when the keys were let go
    box = (52, 98, 164, 210)  # right by 8 pixels, down by 4, smaller by 8
    assert dict(pair.split("=") for pair in asked[0].split("?")[1].split("&")) == {
        edge: str(place) for edge, place in zip(EDGES, box, strict=True)
    }
    assert place_of(page) == pytest.approx(box, abs=3)
    assert page.evaluate("() => document.activeElement.dataset.focus") == "box"  # where it was
    shown = [int(text.split()[0]) for text in page.locator("#card .details > .bars .share").all_inner_texts()]
    expected = grader.grade_knee(read_radiograph(film()), Knee(box, "R")).grade.probabilities
    assert shown == [pytest.approx(100 * share, abs=0.51) for share in expected]
    page.keyboard.press("0")  # back to where it was found
    page.locator("#card .card:not(:has-text('placed by hand'))").wait_for()
    status(page, "9000001.png: KL")
    assert place_of(page) == pytest.approx(RIGHT, abs=3)


def test_the_box_is_moved_by_buttons_alone(film_page, film):
    upload(film_page, film())
    button = film_page.get_by_role("button", name="Move the box down")
    button.press("Enter")
    film_page.locator("#card", has_text="placed by hand").wait_for()
    assert film_page.evaluate("() => document.activeElement.dataset.focus") == "box_down"
    assert place_of(film_page) == pytest.approx([RIGHT[0], RIGHT[1] + 4, RIGHT[2], RIGHT[3] + 4], abs=3)


def _drag(page, start, by):
    x, y = start
    page.mouse.move(x, y)
    page.mouse.down()
    page.mouse.move(x + by[0] / 2, y + by[1] / 2)
    page.mouse.move(x + by[0], y + by[1])
    page.mouse.up()


def test_the_box_is_dragged_and_resized_by_its_corners(film_page, film):
    page = film_page
    upload(page, film())
    own_box(page).scroll_into_view_if_needed()
    scale = page.locator(".film-stage").bounding_box()["width"] / 420
    box = own_box(page).bounding_box()
    _drag(page, (box["x"] + box["width"] / 2, box["y"] + box["height"] / 2), (30 * scale, 20 * scale))
    page.locator("#card .card:not(.stale)", has_text="placed by hand").wait_for()
    assert place_of(page) == pytest.approx([70, 110, 190, 230], abs=4)
    own_box(page).scroll_into_view_if_needed()
    box = own_box(page).bounding_box()
    _drag(page, (box["x"] + box["width"] - 2, box["y"] + box["height"] - 2), (24 * scale, 24 * scale))
    page.locator("#card .file", has_text="144 × 144").wait_for()
    assert place_of(page) == pytest.approx([70, 110, 214, 254], abs=4)  # its other corner stays


def test_a_film_without_a_knee_has_no_grade_but_a_way_out(film_page, film):
    page = film_page
    upload(page, film("none"))
    card = page.locator("#card")
    card.get_by_role("heading", name="No knee seen from the front was found").wait_for()
    assert card.locator(".badge, .bars, .stage, .reports").count() == 0
    assert "no grade" in page.get_by_role("status").inner_text()
    card.get_by_role("button", name="Place a box by hand").press("Enter")
    card.locator(".badge").wait_for()
    assert page.evaluate("() => document.activeElement.dataset.focus") == "box"
    assert "132 × 132" in card.locator(".file").inner_text()  # .6 of the film's height
    card.get_by_role("radio", name="is cropped to one knee already").check()
    card.locator(".file", has_text="320 × 220").wait_for()
    assert card.locator(".film-stage").count() == 0 and card.locator(".badge").count() == 1
    card.get_by_role("radio", name="find its knees").check()
    card.get_by_role("heading", name="No knee seen from the front was found").wait_for()


def test_as_it_is_where_the_visitor_says_so(film_page, film, knee):
    page = film_page
    page.locator("#upload").get_by_role("radio", name="is cropped to one knee already").check()
    upload(page, film())
    assert page.locator("#list tbody tr").count() == 0  # one X-ray needs no table
    assert "420 × 300" in page.locator("#card .file").inner_text()
    page.locator("#card").get_by_role("radio", name="find its knees").check()
    page.locator("#list .tag").nth(1).wait_for()
    page.locator("#upload").get_by_role("radio", name="find its knees").check()
    upload(page, knee("framed.png"))
    page.get_by_role("radio", name="Show framed.png").check()
    # A knee that is framed already has the card that it always had.
    assert page.locator("#card .film-stage").count() == 0 and "120 × 120" in page.locator("#card .file").inner_text()
    assert page.locator("#card fieldset").count() == 3


def test_a_knee_that_the_border_cuts_off_is_told_of(film_page, film):
    upload(film_page, film("cut"))
    assert "border of the film cuts this knee off" in film_page.locator("#card .warning").inner_text()
    film_page.get_by_role("button", name="Place a box by hand").click()  # beside it, for the other knee
    film_page.locator("#list .tag").nth(1).wait_for()
    assert film_page.locator("#list td.side").all_inner_texts() == ["right knee", "left knee"]
    assert "Cut off" in film_page.locator("#list td.warning").first.inner_text()


def test_forgetting_one_knee_keeps_the_other(film_page, film):
    upload(film_page, film())
    film_page.get_by_role("button", name="Forget this X-ray").click()
    status(film_page, "both.png, right knee")
    assert film_page.locator("#card .card").get_attribute("aria-label") == "both.png"
    assert film_page.locator("#list tbody tr").count() == 0


@pytest.mark.parametrize("first", ["graded", "forgotten"])
def test_a_knee_that_is_forgotten_while_it_is_graded_anew_does_no_harm(browser, films, film, first):
    """Whichever of the two the server hears of first, the knee is gone."""
    with visiting(browser, films.url) as page:
        held, forgetting = [], []
        page.route("**/box?*", lambda route: held.append(route))
        page.route(
            "**/xrays/*",
            lambda route: forgetting.append(route) if route.request.method == "DELETE" else route.continue_(),
        )
        upload(page, film())
        page.get_by_role("button", name="Move the box up").click()
        until(page, lambda: held)
        page.get_by_role("button", name="Show the other knee").click()
        assert page.locator("#card .stale").count() == 0  # the other knee's answer stands
        page.get_by_role("radio", name="Show both.png, right knee").check()
        page.get_by_role("button", name="Forget this X-ray").click()
        until(page, lambda: forgetting)
        order = [(held[0], "**/box?*"), (forgetting[0], lambda response: response.request.method == "DELETE")]
        page.unroute("**/xrays/*")
        answers = []
        for route, which in order if first == "graded" else order[::-1]:
            with page.expect_response(which) as answer:
                route.continue_()
            answers.append(answer.value.status)
        assert answers == ([200, 204] if first == "graded" else [204, 410])
        table = page.locator("#csv").evaluate("link => link.href")
        until(page, lambda: len(page.request.get(table).text().splitlines()) == 2)  # its head, and the other knee
        page.get_by_role("button", name="Move the box up").wait_for()
        assert page.locator("#card .card").get_attribute("aria-label") == "both.png"
        assert page.locator(".ended").count() == 0  # the visit goes on


@pytest.mark.parametrize("width", [375, 820])
def test_a_film_fits_a_small_screen(browser, films, film, width):
    touch = {"is_mobile": True, "has_touch": True, "viewport": {"width": width, "height": 800}}
    with visiting(browser, films.url, reduced_motion="reduce", **touch) as page:
        upload(page, film("both", "a film with a long_name_that_cannot_be_broken_and_goes_on_and_on.png"))
        page.locator("#card .film-stage").wait_for()
        assert page.evaluate("() => document.documentElement.scrollWidth") <= width
        stage, card = (page.locator(part).bounding_box() for part in (".film-stage", "#card .card"))
        assert stage["width"] > 250 and stage["x"] + stage["width"] <= card["x"] + card["width"]
        assert width > 375 or page.locator("#card .badge").bounding_box()["y"] < stage["y"]  # the answer first
        page.get_by_role("button", name="Make the box larger").tap()
        page.locator("#card", has_text="placed by hand").wait_for()


def test_the_table_is_that_of_the_command(film_visitor, film, grader):
    for kind in FILMS:
        film_visitor.upload(film(kind).read_bytes(), f"{kind}.png")
    rows = list(csv.DictReader(io.StringIO(film_visitor.get("table.csv").text)))
    expected = [table_row(xray) for xray in grader.grade([film(kind) for kind in FILMS])]
    assert [row["laterality"] for row in rows] == ["R", "L", "", "", ""] and rows[0]["laterality_assumed"] == "True"
    assert [row["box_left"] for row in rows] == ["40", "250", "40", "-30", ""]
    for row, other in zip(rows, expected, strict=True):
        for name, value in other.items():
            if name.startswith(("probability", "entropy", "expected", "osteoarthritis")) and value is not None:
                assert float(row[name]) == pytest.approx(value, abs=1e-6)
            elif name not in ("file", "error"):  # they name the file, which is another
                assert row[name] == ("" if value is None else str(value)), name


def test_boxes_that_no_knee_can_have_are_refused(film_visitor, film):
    right, left = film_visitor.upload(film().read_bytes()).json()["knees"]

    def ask(*box, **more):
        return film_visitor.ask(right, "box", **dict(zip(EDGES, box, strict=True)), **more)

    for box in (
        (0, 0, 20, 20),
        (400, 100, 520, 220),
        (0, 0, 500, 500),
        (50, 50, 50, 90),
        (0, 0, 200, 90),
        (90, 9, 9, 90),
    ):
        assert ask(*box).json() == {"refused": "box_refused", "values": {}}, box
    assert ask("a", 0, 1, 1).status_code == 422 and ask(*RIGHT, new=True).status_code == 400  # two knees are there
    assert film_visitor.ask(right, "framing", to="else").status_code == 404
    moved, other = ask(30, 90, 150, 210).json()["knees"]
    assert moved["box"] == [30, 90, 150, 210] and moved["by_hand"] and moved["id"] != right["id"]
    assert other == left  # the other knee stays as it was
    assert ask(*RIGHT).status_code == 410  # its reading is another now


def test_two_boxes_moved_at_once_are_both_kept(film_visitor, film):
    from concurrent.futures import ThreadPoolExecutor

    knees = film_visitor.upload(film().read_bytes()).json()["knees"]
    boxes = [dict(zip(EDGES, (box[0] + 4, box[1], box[2] + 4, box[3]), strict=True)) for box in (RIGHT, LEFT)]
    with ThreadPoolExecutor(2) as threads:
        list(threads.map(lambda asked: film_visitor.ask(asked[0], "box", **asked[1]), zip(knees, boxes, strict=True)))
    rows = list(csv.DictReader(io.StringIO(film_visitor.get("table.csv").text)))
    assert [row["box_left"] for row in rows] == ["44", "254"]
