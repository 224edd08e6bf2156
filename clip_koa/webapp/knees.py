"""A film's knees: found, as they are, or in boxes that a reader placed; each a reading."""

from dataclasses import replace

from clip_koa.grading.grader import Grader
from clip_koa.webapp.readings import Film, Reading
from clip_koa.webapp.visits import Refusal
from modeling_clip_koa.localisation_clip_koa import Knee, name_sides

LEAST_SIDE = 32  # pixels of a box; smaller pictures are refused as X-rays, too
MOST_KNEES = 2


def read_film(grader: Grader, film: Film, framing: str = "auto") -> list[Reading]:
    """The readings of a film: of each knee, right knee first, or one that says that there is none.

    Args:
        framing: "auto" or "as_is"; a model that cannot find knees takes every film as it is.
    """
    framing = "as_is" if grader.framing == "as_is" else framing
    radiograph, graded = grader.grade_radiograph(film.radiograph, framing)
    film = replace(film, radiograph=radiograph)
    return [
        Reading(xray, film, framing, place, found=xray.grade.box if xray.grade else None)
        for place, xray in enumerate(graded)
    ]


def check_box(box: tuple[int, int, int, int], size: tuple[int, int]) -> None:
    """Refuses a box (left, top, right, bottom) that cannot be a knee's in a film of that size.

    Raises:
        Refusal: its middle lies outside of the film, it is smaller than `LEAST_SIDE` or larger than the film's longer
            side, or one of its sides is twice the other.
    """
    left, top, right, bottom = box
    sides = right - left, bottom - top
    inside = all(0 <= low + high <= 2 * length for low, high, length in zip(box[:2], box[2:], size, strict=True))
    if not inside or min(sides) < LEAST_SIDE or max(sides) > max(*size, LEAST_SIDE) or max(sides) >= 2 * min(sides):
        raise Refusal("box_refused", 400)


def grade_box(grader: Grader, film: Film, box: tuple[int, int, int, int], moved: Reading | None = None) -> Reading:
    """The reading of a box (left, top, right, bottom, in pixels) that a reader placed in a film.

    Args:
        moved: the knee whose box it was before: that keeps its side, its place and how it leans.
    """
    before = moved.knee if moved else Knee(box)
    knee = replace(before, box=box, framed=False, outside=_outside(box, film.image.size))
    xray = grader.grade_knee(film.radiograph, knee)
    place, found = (moved.place, moved.found) if moved else (0, None)
    return Reading(xray, film, "auto", place, found)


def with_box(readings: list[Reading], placed: Reading, moved: Reading | None = None) -> list[Reading]:
    """A film's readings with one that a reader placed, right knee first.

    Args:
        readings: of the film as they are now.
        moved: the one that it takes the place of; None: it comes beside, and where there are two knees then, sides are
            told anew, as `name_sides` does.

    Raises:
        Refusal: the film has two knees already.
    """
    if moved:  # its side may have been told anew meanwhile
        return [
            _with_side(placed, reading.knee, reading.place) if reading.id == moved.id else reading
            for reading in readings
        ]
    knees = [reading for reading in readings if reading.knee]
    if len(knees) >= MOST_KNEES:
        raise Refusal("box_refused", 400)
    in_order = sorted([*knees, placed], key=lambda reading: reading.knee.box[0] + reading.knee.box[2])
    known = placed.film.radiograph.laterality or ""
    named = name_sides([reading.knee for reading in in_order], known if known in ("L", "R") else "")
    if named[0].box != in_order[0].knee.box:  # the right knee lies at the right
        in_order.reverse()
    return [
        _with_side(reading, knee, place) for place, (reading, knee) in enumerate(zip(in_order, named, strict=True))
    ]


def _with_side(reading: Reading, knee: Knee, place: int) -> Reading:
    grade = replace(reading.xray.grade, side=knee.side, side_assumed=knee.side_assumed)
    side = knee.side or reading.film.radiograph.laterality or ""
    return replace(reading, xray=replace(reading.xray, grade=grade, laterality=side), place=place)


def _outside(box: tuple[int, int, int, int], size: tuple[int, int]) -> float:
    """The share of a box that lies outside of a film."""
    inner = [max(0, min(high, length) - max(low, 0)) for low, high, length in zip(box[:2], box[2:], size, strict=True)]
    return 1 - inner[0] * inner[1] / ((box[2] - box[0]) * (box[3] - box[1]))
