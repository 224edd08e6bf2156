"""Composes two-knee films of a person's two crops: for fitting and measuring framing where no film is at hand.

Each film has the geometry of real ones, as the boxes of the data set's detection task give it for 3,800 baseline films
of the Osteoarthritis Initiative: for each length the 5th percentile, the median and the 95th.

    python -m dataset_script.films --data_dir FOLDER --split validation --output FILMS --look dark
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont
from scipy.ndimage import gaussian_filter
from tqdm import tqdm

from dataset_script.exit_status import main_of
from dataset_script.files import new_folder
from dataset_script.knee_xray import read_xray
from dataset_script.layouts import Xray, find_files, read_contents, resolve_data_dir
from dataset_script.synthetic import DrawingError, draw_corpus

# Width over height of a film; then shares of its width, but the two of heights.
_ASPECT = 1.25
_BOX_WIDTH = (0.267, 0.282, 0.324)
_RIGHT_CENTRE, _LEFT_CENTRE = (0.213, 0.285, 0.341), (0.647, 0.711, 0.785)
_CENTRE_HEIGHT, _HEIGHT_DIFFERENCE = (0.40, 0.50, 0.64), 0.067
_GAP = 0.055  # least share of the width between the two boxes


@dataclass(frozen=True)
class Look:
    """How a film is taken and stored. Gray values are in 0..255, lengths in sides of a knee's box.

    Each pair is a range that is drawn from evenly. `air` is the gray value beside the legs; `reach` how far soft
    tissue goes on beside a crop; `noise` the detector's standard deviation; `gamma` the display's; `sharpen` the
    percent of an unsharp mask; `collimation` the share of films with a collimated border; `border` the gray value
    outside it; `frame` the share of the film's width that a flat frame of `frame_value` takes on each side.
    """

    air: tuple[float, float] = (2, 14)
    reach: tuple[float, float] = (0.10, 0.35)
    noise: tuple[float, float] = (0.5, 3.0)
    gamma: tuple[float, float] = (0.9, 1.1)
    sharpen: tuple[int, int] = (0, 0)
    collimation: float = 0.5
    border: int = 0
    frame: tuple[float, float] = (0.0, 0.0)
    frame_value: int = 0


LOOKS = {
    "dark": Look(),
    "bright": Look(air=(20, 60), reach=(0.25, 0.6), noise=(2, 6), gamma=(0.65, 0.85), collimation=0.2),
    "contrast": Look(air=(0, 4), reach=(0.08, 0.2), gamma=(1.1, 1.5), sharpen=(60, 160), collimation=0.7),
    "framed": Look(collimation=0.3, border=0, frame=(0.02, 0.12), frame_value=255),
    # Held out: nothing is fitted to it.
    "scanned": Look(
        air=(8, 40), reach=(0.15, 0.5), noise=(3, 8), gamma=(0.75, 1.3), sharpen=(0, 60), border=18, frame=(0.0, 0.08)
    ),
}
HELD_OUT_LOOK = "scanned"


@dataclass(frozen=True)
class Film:
    """A film (PIL image, mode L) and the boxes of its knees, (left, top, right, bottom) in pixels, right knee first.

    The right knee is on the left of the image, as radiographs are shown.
    """

    image: Image.Image
    boxes: tuple[tuple[float, float, float, float], tuple[float, float, float, float]]


def compose_film(
    right: Image.Image, left: Image.Image, seed, look: str = "dark", width: int = 800, trim: float = 0.0
) -> Film:
    """A film of a person's two knees: shafts go on above and below, soft tissue fades, markers and noise are added.

    Args:
        right, left: square crops (mode L, bone bright) of the two knees.
        seed: anything `numpy.random.default_rng` takes; the same arguments give the same pixels.
        look: one of `LOOKS`.
        width: of the film without a frame, in pixels.
        trim: at most this share is left out at each side of a crop. The boxes stay those of the whole crops, so that
            what is fitted to the films cannot find a box by where a crop ends.

    Raises:
        DrawingError: another look, crops that are not square, a width under 200, or a trim that is not in 0..0.3.
    """
    if look not in LOOKS:
        raise DrawingError(f"look={look!r}: use one of {', '.join(LOOKS)}.")
    if width < 200 or any(crop.width != crop.height for crop in (right, left)):
        raise DrawingError(f"width={width}, crops of {right.size} and {left.size}: at least 200, and square crops.")
    if not 0 <= trim <= 0.3:
        raise DrawingError(f"trim={trim}: use 0 to 0.3.")
    rng, style = np.random.default_rng(seed), LOOKS[look]
    height = round(width / _ASPECT)
    boxes = _draw_boxes(rng, width, height)
    air = rng.uniform(*style.air)
    values = np.full((height, width), air, np.float32)
    for crop, box in zip((right, left), boxes, strict=True):
        inner = _trimmed(rng, box, trim) if trim else box
        knee = crop.resize((box[2] - box[0], box[3] - box[1]), Image.Resampling.BICUBIC)
        knee = knee.crop([inner[0] - box[0], inner[1] - box[1], inner[2] - box[0], inner[3] - box[1]])
        values = np.maximum(values, _leg(rng, knee, inner, (height, width), air, rng.uniform(*style.reach)))
    values = _take(rng, values, boxes, style)
    image = Image.fromarray(np.rint(values.clip(0, 255)).astype(np.uint8))
    if percent := int(rng.integers(style.sharpen[0], style.sharpen[1] + 1)):
        image = image.filter(ImageFilter.UnsharpMask(radius=width / 400, percent=percent, threshold=0))
    _mark(rng, image, boxes)
    return _set_in_frame(rng, image, boxes, style)


def _triangle(rng, low: float, middle: float, high: float) -> float:
    """A draw whose median is about the middle one and which stays between the others."""
    return float(rng.triangular(low, middle, high))


def _draw_boxes(rng, width: int, height: int) -> list[tuple[int, int, int, int]]:
    """Two boxes of one size, right knee first, as far apart as real ones are."""
    while True:
        side = round(_triangle(rng, *_BOX_WIDTH) * width)
        middle = _triangle(rng, *_CENTRE_HEIGHT)
        heights = (middle, middle + float(np.clip(rng.normal(0, 0.017), -_HEIGHT_DIFFERENCE, _HEIGHT_DIFFERENCE)))
        centres = (_triangle(rng, *_RIGHT_CENTRE), _triangle(rng, *_LEFT_CENTRE))
        boxes = []
        for across, down in zip(centres, heights, strict=True):
            left, top = round(across * width - side / 2), round(down * height - side / 2)
            boxes.append((left, top, left + side, top + side))
        inside = all(box[0] >= 0 and box[1] >= 0 and box[2] <= width and box[3] <= height for box in boxes)
        if inside and boxes[1][0] - boxes[0][2] >= _GAP * width:
            return boxes


def _trimmed(rng, box, trim: float) -> tuple[int, int, int, int]:
    """A box inside one, up to a share of it smaller at each side."""
    cuts = np.rint(rng.uniform(0, trim, 4) * (box[2] - box[0])).astype(int)
    return box[0] + cuts[0], box[1] + cuts[1], box[2] - cuts[2], box[3] - cuts[3]


def _leg(rng, knee: Image.Image, box, shape: tuple[int, int], air: float, reach: float) -> np.ndarray:
    """A film-sized picture of one leg: the knee in its box, and what it may look like around; (H, W) float32."""
    left, top, right, bottom = box
    side, half = right - left, (bottom - top) // 2
    knee = np.asarray(knee, np.float32)
    height, width = shape
    column = np.empty((height, side), np.float32)
    column[top:bottom] = knee
    column[:top] = _go_on(rng, knee[:half], top)[::-1]
    column[bottom:] = _go_on(rng, knee[: -half - 1 : -1], height - bottom)
    leg = np.empty(shape, np.float32)
    leg[:, left:right] = column
    edge = max(2, side // 40)
    for inner, target, distance in (
        (column[:, :edge], leg[:, :left], np.arange(left, 0, -1)),
        (column[:, -edge:], leg[:, right:], np.arange(1, width - right + 1)),
    ):
        level = _smooth(inner.mean(1), side // 12)[:, None]
        fade = np.exp(-((distance / (reach * side)) ** 2))[None]
        target[:] = air + (level - air) * fade
    return leg


def _go_on(rng, half: np.ndarray, length: int) -> np.ndarray:
    """Rows (length, side), from a crop's border outwards, with which a shaft goes on.

    Args:
        half: the crop's half at that border, (side / 2, side), the border's row first.
        length: how many rows.
    """
    side = half.shape[1]
    profile = _smooth(half[: side // 16].mean(0), 3)
    far = np.arange(length, dtype=np.float32)[:, None] / side
    # The bone narrows a little away from the joint, and its brightness drifts.
    narrow = 1 + rng.uniform(0, 0.25) * (1 - np.exp(-2 * far))
    across = np.arange(side, dtype=np.float32) - (side - 1) / 2
    places = (across[None] * narrow + (side - 1) / 2).clip(0, side - 1)
    rows = np.interp(places.ravel(), np.arange(side), profile).reshape(length, side) * (1 + rng.normal(0, 0.08) * far)
    # The crop's own grain goes on too, or else its border would show.
    strip = half[: side // 5]
    grain = strip - gaussian_filter(strip, side / 150)
    grain = grain.clip(*(np.median(np.abs(grain)) * np.array([-2, 2])))  # no edges of bones
    return rows + np.pad(grain, ((0, max(0, length - len(grain))), (0, 0)), mode="symmetric")[:length]


def _smooth(values: np.ndarray, length: int) -> np.ndarray:
    length = max(1, int(length))
    padded = np.pad(values, (length // 2, length - 1 - length // 2), mode="edge")
    return np.convolve(padded, np.ones(length, np.float32) / length, mode="valid")


def _take(rng, values: np.ndarray, boxes, style: Look) -> np.ndarray:
    """Detector and collimator: uneven exposure, gamma, noise, a border that was not exposed; (H, W)."""
    height, width = values.shape
    slope = (
        1
        + rng.normal(0, 0.06) * np.linspace(-1, 1, width)[None]
        + rng.normal(0, 0.06) * np.linspace(-1, 1, height)[:, None]
    )
    values = 255 * (values * slope / 255).clip(0, 1) ** rng.uniform(*style.gamma)
    values = values + rng.normal(0, rng.uniform(*style.noise), values.shape)
    if rng.random() < style.collimation:
        top, bottom = min(box[1] for box in boxes), max(box[3] for box in boxes)
        inner = (
            rng.uniform(0, 0.8) * boxes[0][0],
            rng.uniform(0, 0.8) * top,
            width - rng.uniform(0, 0.8) * (width - boxes[1][2]),
            height - rng.uniform(0, 0.8) * (height - bottom),
        )
        rows, columns = np.arange(height)[:, None], np.arange(width)[None]
        outside = (columns < inner[0]) | (columns > inner[2]) | (rows < inner[1]) | (rows > inner[3])
        values = np.where(outside, style.border, values)
    return values


def _mark(rng, image: Image.Image, boxes) -> None:
    """The letters R and L beside the knees, outside their boxes, as radiographers lay them there."""
    size = round(rng.uniform(0.08, 0.16) * (boxes[0][2] - boxes[0][0]))
    font, draw = ImageFont.load_default(size=max(8, size)), ImageDraw.Draw(image)
    for letter, box, across in (("R", boxes[0], -1), ("L", boxes[1], 1)):
        left = box[0] - 1.3 * size if across < 0 else box[2] + 0.3 * size
        left = min(max(left, 0), image.width - size)
        draw.text(
            (left, rng.uniform(0, max(1, box[1] - 1.5 * size))), letter, fill=int(rng.integers(190, 256)), font=font
        )


def _set_in_frame(rng, image: Image.Image, boxes, style: Look) -> Film:
    """The film in a flat frame, where the look has one."""
    shares = rng.uniform(*style.frame, 4) if style.frame[1] else np.zeros(4)
    left, top, right, bottom = (round(share * image.width) for share in shares)
    framed = Image.new("L", (image.width + left + right, image.height + top + bottom), style.frame_value)
    framed.paste(image, (left, top))
    moved = tuple((box[0] + left, box[1] + top, box[2] + left, box[3] + top) for box in boxes)
    return Film(framed, moved)


@dataclass(frozen=True)
class Pair:
    """A person's two crops (PIL, mode L, bone bright) and grades; `number` counts the people of a split."""

    number: int
    person_id: str
    right: Image.Image
    left: Image.Image
    right_grade: int
    left_grade: int


def read_pairs(data: Path, split: str, limit: int | None = None) -> Iterator[Pair]:
    """The people of a split of the corpus of whom both knees are there, in the order of their ids."""
    people: dict[str, dict[str, Xray]] = {}
    for xray in find_files(data).get(split, ()):
        if xray.person_id and xray.laterality in ("L", "R"):
            people.setdefault(xray.person_id, {})[xray.laterality] = xray
    both = sorted(person for person, knees in people.items() if len(knees) == 2)[:limit]
    for number, person in enumerate(both):
        knees = people[person]
        images = {}
        for xray, content in read_contents([knees["R"], knees["L"]]):
            images[xray.laterality] = read_xray(xray, content).image
        yield Pair(number, person, images["R"], images["L"], knees["R"].grade, knees["L"].grade)


def draw_pairs(people: int, seed: int, image_size: int = 224) -> Iterator[Pair]:
    """As `read_pairs`, of drawn knees."""
    drawings = list(draw_corpus("validation", people, seed, image_size))
    for number, (left, right) in enumerate(zip(drawings[::2], drawings[1::2], strict=True)):
        yield Pair(number, left.person_id, right.image, left.image, right.grade, left.grade)


def run(arguments: list[str] | None, prog: str) -> int:
    """Writes composed films and their boxes; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Compose two-knee films of the crops of a corpus.")
    parser.add_argument("--data_dir", help="the corpus, in any layout (default: KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation", help="whose crops are taken (default: validation)")
    parser.add_argument("--output", type=Path, required=True, help="new folder for the films and boxes.json")
    parser.add_argument("--look", choices=[*LOOKS], default="dark", help="how they are taken (default: dark)")
    parser.add_argument("--width", type=int, default=800, help="of a film, in pixels (default: 800)")
    parser.add_argument("--limit", type=int, help="people at most (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args(arguments)
    pairs = read_pairs(resolve_data_dir(options.data_dir), options.split, options.limit)
    count = write_films(pairs, options.output, options.look, options.width, options.seed)
    print(f"{count} films in {options.output}")
    return 0


def write_films(pairs: Iterator[Pair], output: Path, look: str, width: int, seed: int) -> int:
    """Writes `{number}.png` for each pair and `boxes.json`; returns how many films.

    Raises:
        WriteError: the folder is there and not empty, or could not be written.
    """
    entries = []
    with new_folder(output) as temporary:
        for pair in tqdm(pairs, "composing", unit=" films"):
            film = compose_film(pair.right, pair.left, (seed, pair.number), look, width)
            film.image.save(temporary / f"{pair.number:04d}.png")
            entries.append(
                {"film": f"{pair.number:04d}.png", "boxes": film.boxes, "grades": [pair.right_grade, pair.left_grade]}
            )
        (temporary / "boxes.json").write_text(json.dumps(entries, indent=1) + "\n", encoding="utf-8")
    return len(entries)


main = main_of("dataset_script.films", run)


if __name__ == "__main__":
    sys.exit(main())
