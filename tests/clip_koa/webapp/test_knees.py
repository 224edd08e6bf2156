"""A film's readings: whose box is whose, and what becomes of them in a visit while one is graded anew."""

import asyncio
import json
import threading
from types import SimpleNamespace

import pytest
from PIL import Image
from transformers import CLIPImageProcessor

from clip_koa.grading.grader import GradedXray
from clip_koa.webapp.knees import check_box, grade_box, read_film, with_box
from clip_koa.webapp.readings import Film, describe, warnings_of
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.visits import Limits, Refusal, Visits
from clip_koa.webapp.xrays import Xrays
from dataset_script.pixels import XrayPreprocessor
from dataset_script.radiograph import Radiograph
from modeling_clip_koa import Grade
from webapp.conftest import run_async

SIZE = (400, 300)
SQUARE = {"height": 32, "width": 32}


def whole(size) -> tuple:
    """Of an image of this size the model sees all."""
    return (0, 0, *size)


def grade(**known) -> Grade:
    views = ((0.6, 0.1, 0.1, 0.1, 0.1),) * 3
    return Grade(0, "KL0 none", "", *views, **known)


class MadeGrader:
    """Stands for a grader; finds the knees that it is told of."""

    framing = "auto"

    def __init__(self, *found):
        self.found, self.processor = found, CLIPImageProcessor(crop_size=SQUARE, size={"shortest_edge": 32})

    @property
    def model(self):
        return SimpleNamespace(beside=SimpleNamespace(preprocess=XrayPreprocessor(self.processor)))

    def grade_radiograph(self, radiograph, framing):
        if framing == "as_is":
            return radiograph, [GradedXray("film.png", grade(), radiograph.laterality or "")]
        if not self.found:
            return radiograph, [GradedXray("film.png", error="film.png: none.")]
        return radiograph, [GradedXray("film.png", one, one.side or radiograph.laterality or "") for one in self.found]

    def grade_knee(self, radiograph, knee):
        known = {name: getattr(knee, name) for name in ("side", "side_assumed", "box", "angle", "outside")}
        return GradedXray("film.png", grade(**known), knee.side or radiograph.laterality or "")


def film(laterality=None) -> Film:
    return Film(Radiograph(Image.new("L", SIZE), "film.png", laterality))


def sides(readings):
    return [(reading.laterality, reading.knee.box[0], reading.place) for reading in readings]


def test_a_moved_box_keeps_side_place_and_angle():
    grader = MadeGrader(
        grade(box=(0, 50, 100, 150), side="R", side_assumed=True, angle=9.0), grade(box=(200, 50, 300, 150), side="L")
    )
    readings = read_film(grader, film())
    moved = grade_box(grader, readings[0].film, (310, 50, 410, 150), readings[0])
    after = with_box(readings, moved, readings[0])
    assert sides(after) == [("R", 310, 0), ("L", 200, 1)] and after[1] is readings[1]
    assert (moved.knee.angle, moved.by_hand, moved.found) == (9.0, True, (0, 50, 100, 150))
    assert moved.xray.grade.outside == pytest.approx(0.1)
    back = grade_box(grader, moved.film, (0, 50, 100, 150), moved)
    assert not back.by_hand


def test_a_box_that_a_reader_drew_over_the_whole_film_can_be_moved_back():
    grader = MadeGrader(grade(box=(20, 50, 120, 150)))
    (reading,) = read_film(grader, film())
    assert grade_box(grader, reading.film, (0, 0, *SIZE), reading).is_cut
    (framed,) = read_film(MadeGrader(grade(box=(0, 0, *SIZE))), film())
    assert not framed.is_cut and framed.image is framed.film.image


def test_a_box_beside_another_tells_the_sides_anew():
    grader = MadeGrader(grade(box=(200, 50, 300, 150)))
    readings = read_film(grader, film())
    assert readings[0].laterality == ""
    added = grade_box(grader, readings[0].film, (20, 50, 120, 150))
    after = with_box(readings, added)
    assert sides(after) == [("R", 20, 0), ("L", 200, 1)] and all(one.knee.side_assumed for one in after)
    assert after[1].id == readings[0].id
    with pytest.raises(Refusal, match="box_refused"):
        with_box(after, added)
    # The first one was moved while the other was placed: it has the side that it has now.
    moved = grade_box(grader, readings[0].film, (210, 50, 310, 150), readings[0])
    assert sides(with_box(after, moved, readings[0])) == [("R", 20, 0), ("L", 210, 1)]


def test_a_box_where_no_knee_was_found_takes_the_place_of_that_answer():
    grader, given = MadeGrader(), film("L")
    readings = read_film(grader, given)
    assert [reading.trouble for reading in readings] == ["no_knee"] and readings[0].is_cut
    (only,) = with_box(readings, grade_box(grader, given, (20, 50, 120, 150)))
    assert (only.laterality, only.trouble, only.by_hand) == ("L", "", True)


@pytest.mark.parametrize("box", [(0, 0, 32, 32), (-50, -50, 50, 50), (350, 250, 450, 350), (0, 0, 400, 300)])
def test_boxes_that_are_taken(box):
    check_box(box, SIZE)


def test_what_is_told_of_a_grade_that_means_less_or_nothing():
    ways = grade(ways=("contrast", "frame"), outside=0.2, box=(0, 0, 90, 90), atypicality=1.0, tells_knees=False)
    (reading,) = read_film(MadeGrader(ways), film())
    assert warnings_of(reading) == ["cut_off", "atypical_reminder", "ways"]
    told = describe(reading, whole, True)
    assert told["ways"] == ("contrast", "frame") and told["grade"] == 0
    for known, trouble in (({"ways": ("metal",)}, "metal"), ({"atypicality": 1.0}, "unlike")):
        (reading,) = read_film(MadeGrader(grade(box=(0, 0, 90, 90), **known)), film())
        told = describe(reading, whole, True)
        assert told["trouble"] == trouble and told["box"] == (0, 0, 90, 90)
        assert not {"grade", "probabilities", "set", "expected", "osteoarthritis"} & set(told)


def test_a_knee_that_is_forgotten_while_it_is_graded_anew_stays_forgotten():
    async def play():
        grader = MadeGrader(grade(box=(0, 50, 100, 150), side="R"), grade(box=(200, 50, 300, 150), side="L"))
        turns, visits = Turns(), Visits(Limits())
        xrays, visit, free = Xrays(grader, None, turns, visits, {}), visits.open(), threading.Event()
        readings = read_film(grader, film())
        visits.keep(visit, readings)
        turns.submit("another", free.wait)  # the model is busy
        asked = [
            asyncio.create_task(xrays.take_box(visit.token, reading.id, 10, 50, 110, 150)) for reading in readings
        ]
        await asyncio.sleep(0)
        await xrays.forget(visit.token, readings[0].id)
        free.set()
        gone, kept = await asyncio.gather(*asked, return_exceptions=True)
        turns.close()
        return visit, gone, kept

    visit, gone, kept = run_async(play())
    assert isinstance(gone, Refusal) and gone.code == "ended" and kept.status_code == 200
    assert [(reading.laterality, reading.knee.box[0]) for reading in visit.readings.values()] == [("L", 10)]


@pytest.mark.parametrize(
    ("settings", "seen"),
    [
        ({"size": {"shortest_edge": 32}, "crop_size": SQUARE}, [0.125, 0, 0.875, 1]),
        ({"size": {"height": 64, "width": 64}, "crop_size": SQUARE}, [0.25, 0.25, 0.75, 0.75]),
        ({"size": SQUARE, "do_center_crop": False}, [0, 0, 1, 1]),
        ({"size": {"shortest_edge": 20}, "crop_size": SQUARE}, [0, 0, 1, 1]),  # padded
    ],
)
def test_the_page_is_told_what_the_model_sees(settings, seen):
    """Whatever its image processor cuts or squeezes, as `XrayPreprocessor` does it."""

    async def ask():
        grader, turns, visits = MadeGrader(), Turns(), Visits(Limits())
        grader.processor = CLIPImageProcessor(**settings)
        xrays, visit = Xrays(grader, None, turns, visits, {}), visits.open()
        (reading,) = read_film(grader, film(), "as_is")
        visits.keep(visit, [reading])
        answer = await xrays.take_framing(visit.token, reading.id, "as_is")
        turns.close()
        return json.loads(answer.body)["knees"][0]["seen"]

    assert run_async(ask()) == seen
