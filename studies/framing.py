"""How well knees are found and framed, on people of a split: the figures of docs/framing.md.

    python -m studies.framing --model models/clip-koa-small --data_dir FOLDER

Films are composed of a person's own two crops (dataset_script/films.py), of every look; the last one, "scanned", is
held out of fitting. What is graded after framing is compared with the grades of the crops as they are. Whoever has the
data set's detection films measures on these, too, or on these alone:

    python -m studies.framing --model models/clip-koa-small --sections detection --films DetKneeData.zip --split test
"""

import argparse
import io
import itertools
import json
import sys
import time
from operator import ne
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from tqdm.auto import tqdm

from clip_koa.evaluation.loading import load_checkpoint, split_name
from dataset_script.detection import DetectionFilm, read_detection_films
from dataset_script.exit_status import main_of
from dataset_script.films import LOOKS, Pair, compose_film, read_pairs
from dataset_script.layouts import resolve_data_dir
from dataset_script.names import CorpusError
from dataset_script.radiograph import read_radiograph
from metrics.kl_grading.kl_grading import kl_grading_metrics
from modeling_clip_koa.localisation_clip_koa import (
    KneeLocator,
    cut_knee,
    find_knees,
    load_locator,
    name_sides,
)
from studies.other_images import OTHER_IMAGES, SIDE

_BATCH_SIZE = 16
_GOOD = 0.8  # intersection over union from which a box is right
SECTIONS = ("films", "crops", "moved", "frames", "turned", "others", "glance", "time", "detection")


class BothViews:
    """A locator that never finds one view of a picture to be enough."""

    def __init__(self, locator: KneeLocator):
        self.window, self.locate = locator.window, locator.locate

    def glance(self, model, windows) -> np.ndarray:
        """Answers (N, 6) of no knee."""
        return np.zeros((len(windows), 6))


class Graded:
    """Grades of pictures by a checkpoint, and the knees it finds in them."""

    def __init__(self, model, locator: KneeLocator):
        self.model, self.locator = model, locator

    def grades(self, pictures: list[Image.Image]) -> np.ndarray:
        """Grades (N,) of pictures (mode L) of one knee each."""
        return np.array([grade.grade for grade in self.model.grade(pictures)], int)

    def knees(self, pictures: list[Image.Image]):
        """What `find_knees` gives of each picture."""
        starts = range(0, len(pictures), _BATCH_SIZE)
        parts = (find_knees(self.model, self.locator, pictures[start : start + _BATCH_SIZE]) for start in starts)
        return list(itertools.chain.from_iterable(parts))

    def framed(self, pictures: list[Image.Image]) -> tuple[list[Image.Image], list]:
        """Each picture cut to its surest knee, or as it is where none is found; and what was found."""
        knees = self.knees(pictures)
        cut = [
            cut_knee(picture, max(found, key=lambda knee: knee.confidence)) if found else picture
            for picture, found in zip(pictures, knees, strict=True)
        ]
        return cut, knees


def overlap(one, other) -> float:
    """Intersection over union of two boxes (left, top, right, bottom)."""
    across = max(0.0, min(one[2], other[2]) - max(one[0], other[0]))
    down = max(0.0, min(one[3], other[3]) - max(one[1], other[1]))
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return across * down / (sum(areas) - across * down)


def _agreement(predicted: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Accuracy and quadratic weighted kappa; nothing of no knees."""
    if not len(truth):
        return {}
    figures = kl_grading_metrics(predicted.tolist(), truth.tolist())
    return {"accuracy": figures["accuracy"], "qwk": figures["quadratic_weighted_kappa"]}


def measure_films(graded: Graded, people: list[Pair], look: str, width: int, official: np.ndarray) -> dict:
    """Boxes and grades on films of one look; `official` are the grades of the crops, right knee first."""
    found, cuts, kept = [], [], []
    for number, pair in enumerate(tqdm(people, look, unit=" films", leave=False)):
        film = compose_film(pair.right, pair.left, (0, pair.number), look, width)
        (knees,) = graded.knees([film.image])
        found.append((knees, film.boxes))
        if len(knees) == 2:
            cuts += [cut_knee(film.image, knee) for knee in knees]
            kept += [2 * number, 2 * number + 1]
    truth, kept = _truth(people), np.array(kept, int)
    return _describe_boxes(found) | {
        "framed": _agreement(graded.grades(cuts), truth[kept]),
        "official": _agreement(official[kept], truth[kept]),
    }


def _describe_boxes(found: list[tuple[list, tuple]]) -> dict:
    """How well the knees that were found in each film agree with its two boxes."""
    overlaps = np.array(
        [[max((overlap(knee.box, box) for knee in knees), default=0.0) for box in boxes] for knees, boxes in found]
    )
    extra = [any(max(overlap(knee.box, box) for box in boxes) < 0.3 for knee in knees) for knees, boxes in found]
    return {
        "films": len(found),
        "both_found": float((overlaps.min(1) >= _GOOD).mean()),
        "nothing_else": 1 - float(np.mean(extra)),
        "overlap": {str(share): float(np.quantile(overlaps, share)) for share in (0.01, 0.05, 0.5)},
    }


def measure_detection(graded: Graded, films: list[DetectionFilm]) -> dict:
    """Boxes on the films of the data set's detection task, and how large they are beside its own, in the median."""
    found, larger, sided = [], [], []
    for film in tqdm(films, "detection", unit=" films", leave=False):
        knees = name_sides(graded.knees([film.image])[0])
        found.append((knees, film.boxes))
        if len(knees) == 2:
            shares = [overlap(knees[0].box, box) for box in film.boxes]
            sided.append(shares[0] >= shares[1])
            larger += [
                (knee.box[2] - knee.box[0]) / np.sqrt((box[2] - box[0]) * (box[3] - box[1]))
                for knee, box in zip(knees if sided[-1] else knees[::-1], film.boxes, strict=True)
            ]
    return _describe_boxes(found) | {
        "right_knee_first": float(np.mean(sided)) if sided else None,
        "side_over_theirs": float(np.median(larger)) if larger else None,
    }


def _truth(people: list[Pair]) -> np.ndarray:
    return np.array([grade for pair in people for grade in (pair.right_grade, pair.left_grade)])


def measure_changed(graded: Graded, pictures: list[Image.Image], truth: np.ndarray) -> dict:
    """Grades of pictures as they are, and after framing."""
    cut, knees = graded.framed(pictures)
    as_is = graded.grades(pictures)
    changed = [number for number, picture in enumerate(pictures) if cut[number] is not picture]
    auto = as_is.copy()
    auto[changed] = graded.grades([cut[number] for number in changed])
    return {
        "pictures": len(pictures),
        "found": float(np.mean([len(found) == 1 for found in knees])),
        "untouched": float(np.mean([bool(found) and found[0].framed for found in knees])),
        "as_is": _agreement(as_is, truth),
        "auto": _agreement(auto, truth),
    }


def moved(crop: Image.Image, rng, shift: float = 0.15, scale: float = 1.25) -> Image.Image:
    """A crop in a larger canvas, so that the middle part lies `shift` off and is larger or smaller by `scale`.

    What lies around is what a film has there: it is composed, and cut again.
    """
    film = compose_film(crop, crop, int(rng.integers(2**31)), "dark", 794)
    box = film.boxes[0]
    side = (box[2] - box[0]) * scale ** rng.choice([-1, 1])
    across, down = rng.choice([-1, 1], 2) * shift * side
    left, top = (box[0] + box[2] - side) / 2 + across, (box[1] + box[3] - side) / 2 + down
    return film.image.crop([round(value) for value in (left, top, left + side, top + side)])


def on_canvas(crop: Image.Image, rng, shift: float = 0.15, scale: float = 1.25) -> Image.Image:
    """A crop on black, `shift` of the canvas's side off its middle; the canvas is `scale` times as large."""
    side = round(crop.width * scale)
    canvas = Image.new("L", (side, side))
    offset = np.clip(rng.choice([-1, 1], 2) * shift * side + (side - crop.width) / 2, 0, side - crop.width)
    canvas.paste(crop, tuple(int(value) for value in offset))
    return canvas


def letterboxed(crop: Image.Image, rng) -> Image.Image:
    """A crop between two flat bars, black, gray or white, at two of its sides."""
    bar, shade = round(crop.width * rng.uniform(0.1, 0.35)), int(rng.choice([0, 0, 128, 255]))
    border = (bar, 0) if rng.random() < 0.5 else (0, bar)
    return ImageOps.expand(crop, border, shade)


def measure_glance(graded: Graded, pictures: list[Image.Image]) -> dict:
    """In how many pictures other knees are found where both views of each are looked at from the start."""
    both = Graded(graded.model, BothViews(graded.locator))
    found, expected = ([[knee.box for knee in knees] for knees in one.knees(pictures)] for one in (graded, both))
    return {"pictures": len(pictures), "others by both views": sum(map(ne, found, expected))}


def measure_others(graded: Graded, crops: list[Image.Image]) -> dict:
    """For each kind of other image the share in which no knee is found."""
    found = {}
    for kind, make in OTHER_IMAGES.items():
        pictures = make([ImageOps.fit(crop, (SIDE, SIDE)) for crop in crops], np.random.default_rng(0))
        if pictures:
            knees = [graded.knees([picture])[0] for picture in tqdm(pictures, kind, leave=False)]
            found[kind] = {"images": len(pictures), "refused": float(np.mean([not one for one in knees]))}
    return found


def measure_time(graded: Graded, crops: list[Image.Image]) -> dict:
    """Of 32 pictures of one knee, processor time of framing over that of grading; of a film, its own. Best of 3."""
    crops = (crops * 32)[:32]
    rng = np.random.default_rng(0)

    def best(function) -> float:
        times = []
        for _ in range(3):
            start = time.process_time()  # others may use the machine, too
            function()
            times.append(time.process_time() - start)
        return min(times)

    changed = {"official crops": crops, "moved crops": [on_canvas(crop, rng) for crop in crops]}
    grading = best(lambda: graded.grades(crops))
    shares = {name: best(lambda: graded.knees(pictures)) / grading for name, pictures in changed.items()}  # noqa: B023
    film, file = compose_film(crops[0], crops[1], 0, "dark", 3000).image, io.BytesIO()
    film.save(file, "PNG")

    def grade_file():
        for knee in graded.knees([film := read_radiograph(file.getvalue()).image])[0]:
            graded.grades([cut_knee(film, knee)])

    return shares | {"seconds for a film of 3000x2400 pixels": best(grade_file)}


def measure(graded: Graded, people: list[Pair], options: argparse.Namespace) -> dict:
    """The figures of the sections asked for."""
    sections = options.sections
    crops = [crop for pair in people for crop in (pair.right, pair.left)]
    truth, rng, figures = _truth(people), np.random.default_rng(0), {}
    part = slice(None, None, max(1, len(crops) // options.changed))
    if "films" in sections:
        official = graded.grades(crops)
        figures["films"] = {
            look: measure_films(graded, people, look, options.width, official) for look in options.looks
        }
    kinds = {
        "crops": {"official crops": lambda crop: crop},
        "moved": {
            "shifted by 15 %, scaled by 25 %": lambda crop: moved(crop, rng),
            "the same on a black canvas": lambda crop: on_canvas(crop, rng),
        },
        "frames": {"letterbox": lambda crop: letterboxed(crop, rng)},
        "turned": {
            f"turned by {degrees} degrees": lambda crop, degrees=degrees: _turned(crop, degrees)
            for degrees in (-15, 10, 15)
        },
    }
    for section, changes in kinds.items():
        if section in sections:
            chosen = slice(None) if section == "crops" else part
            for name, change in changes.items():
                figures[name] = measure_changed(graded, [change(crop) for crop in crops[chosen]], truth[chosen])
    if "glance" in sections:
        changed = [change(crop) for changes in kinds.values() for change in changes.values() for crop in crops]
        figures["glance"] = measure_glance(graded, changed)
    if "others" in sections:
        figures["others"] = measure_others(graded, crops[:: max(1, len(crops) // 30)])
    if "time" in sections:
        figures["time"] = measure_time(graded, crops)
    return figures


def _turned(crop: Image.Image, degrees: float) -> Image.Image:
    """A crop turned in its film, so that no corner is empty."""
    film = compose_film(crop, crop, 0, "dark", 794)
    left, top, right, bottom = film.boxes[0]
    centre = (left + right) / 2, (top + bottom) / 2
    turned = film.image.rotate(-degrees, Image.Resampling.BICUBIC, center=centre)
    return turned.crop((left, top, right, bottom))


def _evenly(items: list, most: int) -> list:
    return items[:: max(1, len(items) // most)][:most]


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the figures as JSON; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="How well knees are found and framed.")
    parser.add_argument("--model", required=True, help="a model folder to which a locator was fitted")
    parser.add_argument("--locator", type=Path, help="another locator's file (default: the model's own)")
    parser.add_argument("--data_dir", help="the corpus (default: $KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation", type=split_name)
    parser.add_argument("--people", type=int, default=413, help="evenly out of the split (default: 413)")
    parser.add_argument("--changed", type=int, default=300, help="crops that are moved or turned (default: 300)")
    parser.add_argument("--width", type=int, default=800, help="of the composed films, in pixels (default: 800)")
    parser.add_argument("--looks", nargs="+", choices=LOOKS, default=list(LOOKS), help="of the films (default: all)")
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, help="default: all, detection with --films alone")
    parser.add_argument("--films", type=Path, help="DetKneeData, its archive or folder, for the section detection")
    options = parser.parse_args(arguments)
    options.sections = options.sections or SECTIONS[: None if options.films else -1]
    if ("detection" in options.sections) != (options.films is not None):
        raise CorpusError("--films DetKneeData and the section detection go together: give both, or neither.")
    model, _ = load_checkpoint(options.model, dtype=torch.float32)
    locator = model.beside.locator if options.locator is None else load_locator(options.locator, model.config)
    graded, figures = Graded(model, locator), {}
    if set(options.sections) - {"detection"}:
        people = _evenly(list(read_pairs(resolve_data_dir(options.data_dir), options.split)), options.people)
        if not people:
            raise CorpusError(f"--split {options.split}: there is nobody in it of whom both knees are there.")
        figures = measure(graded, people, options)
    if options.films:
        films = _evenly(list(read_detection_films(options.films, options.split)), options.people)
        figures["detection"] = measure_detection(graded, films)
    print(json.dumps(figures, indent=1))
    return 0


main = main_of("studies.framing", run)


if __name__ == "__main__":
    sys.exit(main())
