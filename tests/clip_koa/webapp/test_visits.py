"""What belongs to a visitor: graded, kept for him alone, and gone when he leaves."""

import gc
import threading
import time
import weakref
from dataclasses import replace

import pytest
from conftest import ROOT
from PIL import Image

from clip_koa.grading.grader import GradedXray
from clip_koa.webapp.readings import Film, Reading
from clip_koa.webapp.visits import Limits, Refusal, Visits
from dataset_script.radiograph import Radiograph
from webapp.conftest import Visitor, until, upload, visiting


def _on_disk(served):
    return [file for file in (served.folder / "uploads").rglob("*") if file.is_file()]


def test_the_same_file_from_several_visitors_at_once_and_twice_from_one(browser, served, knee):
    file = knee("same.png")
    content = file.read_bytes()
    answers = {}

    def drop(number):
        visitor = Visitor(served.url)
        answers[number] = [visitor.grade(content), visitor.grade(content)]
        visitor.leave()

    threads = [threading.Thread(target=drop, args=(number,)) for number in range(6)]
    with visiting(browser, served.url) as page:
        for thread in threads:
            thread.start()
        upload(page, file, file)
        for thread in threads:
            thread.join()
        assert page.locator("#list tbody tr").count() == 2
        assert (
            page.locator("#list .tag").count() == 2 and "not graded" not in page.locator("#list").inner_text().lower()
        )
    grades = {str(answer["probabilities"]) for pair in answers.values() for answer in pair}
    assert len(answers) == 6 and len(grades) == 1  # all were graded, all alike
    assert len({answer["id"] for pair in answers.values() for answer in pair}) == 12


def test_closing_the_page_empties_the_visit_at_once(browser, served, knee):
    seen, before = [], set(_on_disk(served))  # what the API's tests left waits there for five minutes
    with visiting(browser, served.url) as page:
        page.on("request", lambda request: "/xray.png" in request.url and seen.append(request.url))
        upload(page, knee())
        until(page, lambda: seen)
        other = Visitor(served.url)
        assert other.http.get(seen[0]).status_code == 200  # whoever knows the path, while the page is open
        left = time.monotonic()
        page.goto("about:blank")  # as closing, it fires pagehide
        while other.http.get(seen[0]).status_code == 200 and time.monotonic() - left < 20:
            time.sleep(0.1)
        assert time.monotonic() - left < 4  # less than it takes to notice a broken connection
    assert set(_on_disk(served)) <= before


def test_a_page_that_is_cut_off_is_emptied_within_seconds(browser, served, knee):
    seen = []
    with visiting(browser, served.url) as page:
        page.on("request", lambda request: "/xray.png" in request.url and seen.append(request.url))
        page.route("**/leave", lambda route: route.abort())
        page.evaluate("() => { navigator.sendBeacon = () => true; }")  # a browser that crashes sends nothing
        upload(page, knee())
        until(page, lambda: seen)
    other = Visitor(served.url)
    start = time.monotonic()
    while other.http.get(seen[0]).status_code == 200 and time.monotonic() - start < 20:
        time.sleep(0.5)
    assert other.http.get(seen[0]).status_code == 410 and time.monotonic() - start < 10
    other.leave()


def test_a_visit_that_was_too_long_unused_says_so(browser, small, knee):
    with visiting(browser, small.url) as page:
        upload(page, knee("a.png", 1), knee("b.png", 2))
        page.locator(".ended").wait_for()
        assert "ended" in page.locator(".ended").inner_text()
        assert page.locator("#list tr, .stage, .badge").count() == 0
        assert page.locator("#list").inner_text() == ""
        upload(page, knee("c.png", 3))  # and it goes on
        page.locator(".badge").wait_for()
        assert page.locator(".ended").count() == 0
        assert all("410" in fault for fault in page.faults)


def test_uploads_of_the_page_never_touch_the_disk(served, visitor, knee):
    before = set(_on_disk(served))
    for number in range(3):
        assert visitor.grade(knee(seed=number).read_bytes())["grade"] in range(5)
        assert set(_on_disk(served)) <= before


def test_limits(monkeypatch):
    ended = []
    limits = Limits(visitors=2, xrays=3, at_once=2, uploads_a_minute=5, pixels=100, file_bytes=10, waiting_bytes=15)
    visits = Visits(limits, on_end=ended.append)
    now = [time.monotonic()]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    first, second = visits.open(), visits.open()
    with pytest.raises(Refusal, match="full"):
        visits.open()
    with visits.upload(first) as intake, visits.upload(first), pytest.raises(Refusal, match="too_many_at_once"):
        intake.take(10)
        with pytest.raises(Refusal, match="too_large"):
            intake.take(1)
        with visits.upload(second) as other, pytest.raises(Refusal, match="busy"):
            other.take(6)
        with visits.upload(first):
            pass
    for _ in range(3):
        with visits.upload(first):
            pass
    with pytest.raises(Refusal, match="too_fast"), visits.upload(first):
        pass
    with visits.connection(second):
        now[0] += 6  # seconds; the first visit's page is not connected
        visits.sweep()
        assert ended == [first.token] and len(visits) == 1
        visits.find(second.token)
        now[0] += 3599
        visits.sweep()
        assert len(visits) == 1
        now[0] += 2
        visits.sweep()
    assert len(visits) == 0 and second.ended.is_set()
    with pytest.raises(Refusal, match="ended"):
        visits.find(second.token)


def _readings(name, knees):
    film = Film(Radiograph(Image.new("L", (10, 10)), name))
    return [Reading(GradedXray(name), film, place=place) for place in range(knees)]


def test_a_film_s_readings_take_the_place_of_those_before():
    visits = Visits(Limits(pixels=150))
    visit = visits.open()
    readings = _readings("film.png", 2)
    visits.keep(visit, readings)
    moved = replace(readings[1], id="moved")
    visits.keep(visit, [moved, readings[0]])
    assert visit.of_film(moved.film) == [readings[0], moved] and len(visit.readings) == 2


def test_an_ended_visit_keeps_no_xray():
    visits = Visits(Limits(pixels=150))
    visit = visits.open()
    readings = _readings("film.png", 2)
    visits.keep(visit, readings)  # two knees of one film: its pixels count once
    assert len(visit.films) == 1 and visit.pixels == 100
    with pytest.raises(Refusal, match="too_many_pixels"):
        visits.keep(visit, _readings("second.png", 1))
    kept = weakref.ref(readings[1])
    visits.end(visit.token)
    with pytest.raises(Refusal, match="ended"):
        visits.keep(visit, readings)
    del readings
    gc.collect()
    assert kept() is None


def test_the_server_says_when_it_is_full(browser, small, knee):
    inside = [Visitor(small.url) for _ in range(2)]
    with visiting(browser, small.url) as page:
        upload(page, knee())
        page.locator("#trouble").get_by_text("has 2 visitors").wait_for()
        for visitor in inside:
            visitor.leave()
        page.get_by_role("button", name="Try again").click()
        page.locator(".badge").wait_for()


def test_a_stopped_server_leaves_nothing(small):  # stands last, for it stops the server
    dicom = (ROOT / "tests/data/dicom/implicit.dcm").read_bytes()
    visitor = Visitor(small.url)
    visitor.http.post("gradio_api/upload", files={"files": ("Doe^Jane.dcm", dicom)})
    assert [file.name for file in _on_disk(small)] == ["Doe^Jane.dcm"]  # the API's; nobody reads it
    small.process.terminate()
    assert small.process.wait(30) == 0
    assert not list((small.folder / "uploads").iterdir())
