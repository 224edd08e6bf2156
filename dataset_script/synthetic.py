"""Draws knee X-rays by grade: for tests, the demo and documentation, where no patient's image may stand.

Frontal views of a knee: femur with two condyles, tibial plateau with two spines, fibula on the lateral side,
trabecular texture, soft tissue and noise. Joint space, osteophytes, sclerosis and deformity follow the wording of the
Kellgren-Lawrence grades (Schiphof et al. 2008). They teach a model nothing about patients.

    python -m dataset_script.synthetic --output FOLDER --people 10 --seed 1
"""

import argparse
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from dataset_script.exit_status import main_of
from dataset_script.files import new_folder, write_picture
from dataset_script.pixels import CLIPKOAError

GRADES = (0, 1, 2, 3, 4)
SPLITS = ("train", "validation", "test")

# Lengths are in half sides of the image; x grows to the lateral side, y downwards, the joint is at y = 0.
# Medial joint space, lateral joint space, size of the osteophytes, subchondral sclerosis, deformity at grades 0 to 4.
_MEDIAL_SPACE = (0.200, 0.162, 0.124, 0.072, 0.015)
_LATERAL_SPACE = (0.200, 0.182, 0.164, 0.138, 0.105)
_OSTEOPHYTES = (0.0, 0.035, 0.085, 0.125, 0.165)
_SCLEROSIS = (0.0, 0.0, 0.03, 0.16, 0.32)
_DEFORMITY = (0.0, 0.0, 0.0, 0.02, 0.08)


class DrawingError(CLIPKOAError, ValueError):
    """What cannot be drawn; the message says what can."""


@dataclass(frozen=True)
class Drawing:
    """A generated X-ray (PIL image, mode L) and what it shows."""

    image: Image.Image
    grade: int
    person_id: str
    laterality: str


def draw_knee(
    grade: int, laterality: str, seed: int | tuple, image_size: int = 224, overlap: float = 0.15
) -> Image.Image:
    """Draws one frontal knee X-ray.

    Args:
        grade: Kellgren-Lawrence grade, 0 to 4.
        laterality: "L" or "R"; in a frontal view the fibula of a left knee is on the right of the image.
        seed: anything `numpy.random.default_rng` takes; the same arguments give the same pixels.
        image_size: side, in pixels.
        overlap: standard deviation, in grades, of the drawn severity around the grade.

    Returns:
        PIL image in mode L.

    Raises:
        DrawingError: a grade, laterality, size or overlap out of range.
    """
    if grade not in GRADES:
        raise DrawingError(f"grade={grade!r}: Kellgren-Lawrence grades are 0 to 4.")
    if laterality not in ("L", "R"):
        raise DrawingError(f"laterality={laterality!r}: use L or R.")
    if image_size < 32 or overlap < 0:
        raise DrawingError(f"image_size={image_size}, overlap={overlap}: at least 32 pixels, and no negative overlap.")
    rng = np.random.default_rng(seed)
    severity = float(np.clip(grade + rng.normal(0, overlap), 0, 4))
    x, y = _posed_grid(rng, image_size)
    values = _expose(rng, _anatomy(rng, severity, x, y, image_size))
    if laterality == "R":
        values = values[:, ::-1]
    return Image.fromarray(values)


def _posed_grid(rng, image_size: int) -> tuple[np.ndarray, np.ndarray]:
    """Coordinates of each pixel in the knee's own frame, after a small rotation, shift and scaling; (S, S) each."""
    axis = ((np.arange(image_size) + 0.5) / image_size * 2 - 1).astype(np.float32)
    column, row = np.meshgrid(axis, axis)
    angle, scale = rng.normal(0, 0.04), rng.normal(1.02, 0.04)
    column, row = column - rng.normal(0, 0.03), row - rng.normal(0, 0.03)
    return (
        (np.cos(angle) * column + np.sin(angle) * row) * scale,
        (np.cos(angle) * row - np.sin(angle) * column) * scale,
    )


def _anatomy(rng, severity: float, x: np.ndarray, y: np.ndarray, image_size: int) -> np.ndarray:
    """Attenuation of the knee at each pixel, roughly 0 (air) to 1 (dense bone); (S, S)."""

    def feature(table):
        return float(np.interp(severity, GRADES, table))

    deformity = feature(_DEFORMITY)
    lateral = 1 / (1 + np.exp(-x / 0.08))
    space = feature(_MEDIAL_SPACE) * (1 - lateral) + feature(_LATERAL_SPACE) * lateral
    space = space + rng.normal(0, 0.006)
    width = rng.normal(0.76, 0.02)
    across = np.abs(x)

    # Femur: two rounded condyles with a notch between them. Deformity flattens the medial one.
    curve = (0.11 - deformity * (1 - lateral)) * ((across - 0.55 * width) / (0.45 * width)) ** 2
    notch = rng.normal(0.10, 0.01) * np.exp(-((x / 0.13) ** 2))
    femur_edge = -space / 2 - curve - notch
    femur_width = 0.58 + (width - 0.56) * _ramp(y, -1.05, -0.45) - 0.12 * _ramp(y, -0.25, 0.1)
    femur = np.minimum(femur_width - across, femur_edge - y)

    # Tibia: a plateau with two spines, its rim rounded, its medial half sunk by deformity.
    spines = rng.normal(0.075, 0.008) * np.exp(-(((across - 0.075) / 0.04) ** 2))
    rim = 0.07 * np.clip((across - 0.8 * width) / (0.2 * width), 0, None) ** 2
    sunk = deformity * 1.5 * (1 - lateral) * np.clip(across / width, 0, 1)
    tibia_edge = space / 2 + rim + sunk - spines
    tibia_width = width + 0.01 - (width - 0.50) * _ramp(y, 0.12, 0.95)
    tibia = np.minimum(tibia_width - across, y - tibia_edge)

    size = feature(_OSTEOPHYTES) * rng.normal(1, 0.08)
    margin = feature(_MEDIAL_SPACE) / 2
    for side in (-1, 1):
        reach_femur, reach_tibia = 1.1 * size * rng.normal(1, 0.1, 2) + 1e-3
        x_margin = x - side * (width - 0.02)
        femur = np.maximum(femur, _ellipse(x_margin, y + margin + 0.12, reach_femur, 0.5 * size + 1e-3))
        tibia = np.maximum(tibia, _ellipse(x_margin, y - margin - 0.07, reach_tibia, 0.5 * size + 1e-3))

    shaft = 0.085 - np.abs(x - (width - 0.04) - 0.03 * y)
    fibula = np.minimum(np.maximum(shaft, _ellipse(x - width + 0.03, y - 0.36, 0.13, 0.11)), y - 0.26)

    pixel = 2 / image_size
    grain = _grain(rng, image_size)
    picture = _soft_tissue(rng, x, y)
    for bone, density in ((femur, 0.27), (tibia, 0.27), (fibula, 0.12)):
        inside = _soft_step(bone, pixel)
        cortex = np.exp(-((np.clip(bone, 0, None) / 0.03) ** 2))
        picture = picture + inside * (density * (1 + 0.17 * grain) + 0.11 * cortex)
    sclerosis = feature(_SCLEROSIS)
    depth = np.maximum(np.exp(-(((y - tibia_edge) / 0.06) ** 2)), 0.7 * np.exp(-(((y - femur_edge) / 0.06) ** 2)))
    in_bone = _soft_step(np.maximum(femur, tibia), pixel)
    return picture + sclerosis * depth * in_bone * (1 - 0.6 * lateral) * (across < width)


def _soft_tissue(rng, x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """The leg around the bones: denser in the middle, where it is thicker."""
    half = rng.normal(1.02, 0.06) + 0.10 * y**2
    thickness = np.sqrt(np.clip(1 - (x / half) ** 2, 0, None))
    return 0.05 + rng.normal(0.33, 0.03) * thickness


def _grain(rng, image_size: int) -> np.ndarray:
    """Trabecular texture: noise drawn out along the shaft, zero mean, unit variance; (S, S)."""
    noise = rng.standard_normal((image_size, image_size)).astype(np.float32)
    length = max(2, image_size // 24)
    drawn = sum(np.roll(noise, shift, axis=0) for shift in range(length))
    drawn = drawn + np.roll(drawn, 1, axis=1)
    # Slow variations too: the bone's thickness and what overlies it.
    coarse = Image.fromarray(rng.standard_normal((7, 7)).astype(np.float32))
    drawn = drawn / drawn.std() + 1.2 * np.asarray(coarse.resize((image_size, image_size), Image.Resampling.BICUBIC))
    return (drawn - drawn.mean()) / drawn.std()


def _expose(rng, attenuation: np.ndarray) -> np.ndarray:
    """Detector and display: contrast, brightness, gamma and noise; 8-bit."""
    values = np.clip(attenuation * rng.normal(1.0, 0.08) + rng.normal(0, 0.03), 0, 1) ** np.exp(rng.normal(0, 0.12))
    values = values + rng.normal(0, 0.018, values.shape)
    return np.rint(np.clip(values, 0, 1) * 255).astype(np.uint8)


def _ramp(values: np.ndarray, start: float, end: float) -> np.ndarray:
    """0 before `start`, 1 after `end`, smooth between."""
    t = np.clip((values - start) / (end - start), 0, 1)
    return t * t * (3 - 2 * t)


def _ellipse(x: np.ndarray, y: np.ndarray, a: float, b: float) -> np.ndarray:
    """About the distance into an ellipse with half axes a and b; negative outside."""
    return (1 - np.sqrt((x / a) ** 2 + (y / b) ** 2)) * min(a, b)


def _soft_step(distance: np.ndarray, width: float) -> np.ndarray:
    """1 inside and 0 outside, over about a pixel."""
    return np.clip(distance / width + 0.5, 0, 1)


def draw_corpus(split: str, people: int, seed: int, image_size: int = 224, overlap: float = 0.15) -> Iterator[Drawing]:
    """Draws both knees of `people` generated people: grades equally frequent, a person's two within one grade.

    Ids have seven digits, as the real ones, and no person is in two splits.
    """
    split_number = SPLITS.index(split)
    for person in range(people):
        rng = np.random.default_rng((seed, split_number, person))
        person_id = f"{1_000_000 + 1_000_000 * split_number + person:07d}"
        first = person % len(GRADES)
        second = int(np.clip(first + rng.integers(-1, 2), 0, 4))
        for side, (laterality, grade) in enumerate((("L", first), ("R", second))):
            image = draw_knee(grade, laterality, (seed, split_number, person, side), image_size, overlap)
            yield Drawing(image, grade, person_id, laterality)


def write_corpus(output: Path, people: int, seed: int, image_size: int, overlap: float, split: str) -> int:
    """Writes drawings as `{output}/{split}/{grade}/{person}{L|R}.png`; returns how many.

    Raises:
        WriteError: the folder is there and not empty, or could not be written.
    """
    count = 0
    with new_folder(output) as temporary:
        for drawing in draw_corpus(split, people, seed, image_size, overlap):
            folder = temporary / split / str(drawing.grade)
            folder.mkdir(parents=True, exist_ok=True)
            drawing.image.save(folder / f"{drawing.person_id}{drawing.laterality}.png")
            count += 1
    return count


def draw_sheet(columns: int, seed: int, image_size: int, overlap: float) -> Image.Image:
    """A contact sheet: a row for each grade, left and right knees in turn."""
    sheet = Image.new("L", (columns * image_size, len(GRADES) * image_size))
    for grade in GRADES:
        for column in range(columns):
            knee = draw_knee(grade, "LR"[column % 2], (seed, grade, column), image_size, overlap)
            sheet.paste(knee, (column * image_size, grade * image_size))
        ImageDraw.Draw(sheet).text((4, grade * image_size + 4), f"KL{grade}", fill=255)
    return sheet


def run(arguments: list[str] | None, prog: str) -> int:
    """Writes a folder of generated X-rays, or a contact sheet; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Draw knee X-rays by Kellgren-Lawrence grade.")
    parser.add_argument("--output", type=Path, help="new folder for {split}/{grade}/{file}.png")
    parser.add_argument("--sheet", type=Path, help="image file for a contact sheet of the grades")
    parser.add_argument("--people", type=int, default=10, help="people drawn, two knees each (default: 10)")
    parser.add_argument("--split", choices=SPLITS, default="test", help="name of the split (default: test)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image_size", type=int, default=224, help="side in pixels (default: 224)")
    parser.add_argument("--overlap", type=float, default=0.15, help="spread of severity, in grades (default: 0.15)")
    options = parser.parse_args(arguments)
    if not (options.output or options.sheet):
        parser.error("name --output or --sheet")
    if options.output:
        count = write_corpus(
            options.output, options.people, options.seed, options.image_size, options.overlap, options.split
        )
        print(f"{count} X-rays in {options.output}")
    if options.sheet:
        write_picture(options.sheet, draw_sheet(6, options.seed, options.image_size, options.overlap))
        print(f"contact sheet: {options.sheet}")
    return 0


main = main_of("dataset_script.synthetic", run)


if __name__ == "__main__":
    sys.exit(main())
