"""An image with boxes, grades and heat maps as a DICOM Secondary Capture, to be looked at in any viewer."""

import textwrap
from collections.abc import Sequence

import numpy as np
from highdicom.sc import SCImage
from PIL import Image, ImageDraw, ImageFont, ImageOps
from pydicom.dataset import Dataset

from clip_koa.dicom.report import corners
from clip_koa.dicom.source import MadeBy, identity
from modeling_clip_koa import Grade

WIDTH = 1000  # pixels, at which it is to be read
_FILM, _MAP, _EDGE, _LINE = 620, 370, 10, 26
_LETTERS = 100  # of a line
_GROUND, _INK, _ALARM = (16, 20, 24), (235, 240, 244), (255, 196, 84)
_BOXES = ((92, 200, 255), (255, 150, 210))  # right and left
_RESEARCH = "RESEARCH ONLY. Not a medical device. Not to guide the care of patients."


def draw_picture(
    film: Image.Image, knees: Sequence[tuple[Grade, str]], maps: Sequence[Image.Image], made_by: MadeBy, level: float
) -> Image.Image:
    """The film with its boxes at the left, each knee under its heat map at the right, the grades in words below.

    Args:
        film: mode L.
        knees: the grade of each knee, and which it is: "R", "L" or "".
        maps: of each knee the X-ray under its heat map (mode RGB).

    Returns:
        Mode RGB, `WIDTH` pixels wide.
    """
    shown = ImageOps.contain(film, (_FILM, 2 * _MAP)).convert("RGB")
    words = [
        *(line for knee in knees for line in _lines(*knee, level)),
        f"CLIP-KOA {made_by.version}, {made_by.model}",
    ]
    lines = [_RESEARCH, *(part for line in words for part in textwrap.wrap(line, _LETTERS))]
    height = max(shown.height, len(maps) * (_MAP + _EDGE) - _EDGE)
    picture = Image.new("RGB", (WIDTH, height + 2 * _EDGE + len(lines) * _LINE), _GROUND)
    picture.paste(shown, (0, 0))
    draw = ImageDraw.Draw(picture)
    font = ImageFont.load_default(size=19)
    scale = shown.width / film.width
    for number, ((grade, side), overlay) in enumerate(zip(knees, maps, strict=True)):
        colour = _BOXES[number % len(_BOXES)]
        top = number * (_MAP + _EDGE)
        picture.paste(ImageOps.fit(overlay.convert("RGB"), (_MAP, _MAP)), (WIDTH - _MAP, top))
        draw.rectangle((WIDTH - _MAP, top, WIDTH - 1, top + _MAP - 1), outline=colour, width=3)
        _write(draw, (WIDTH - _MAP + 8, top + 6), _title(grade, side), font)
        if grade.box:
            line = scale * corners(film.size, grade)
            draw.line([tuple(place) for place in line], fill=colour, width=3, joint="curve")
            _write(draw, tuple(line[0] + (6, 4)), _title(grade, side), font)
    for number, line in enumerate(lines):
        draw.text((_EDGE, height + _EDGE + number * _LINE), line, fill=_INK if number else _ALARM, font=font)
    return picture


def build_picture(source: Dataset, picture: Image.Image, sides: Sequence[str], made_by: MadeBy) -> SCImage:
    """The picture as an object of the source's study.

    Args:
        sides: of the knees in it; one that is known is the picture's laterality.
    """
    capture = SCImage.from_ref_dataset(
        source, np.asarray(picture.convert("RGB")), "RGB", 8, "PATIENT",
        laterality=sides[0] if len(sides) == 1 and sides[0] else None,
        patient_orientation=tuple(source.get("PatientOrientation") or ("L", "F")),
        transfer_syntax_uid="1.2.840.10008.1.2.1", **identity(source, made_by, "picture"),
    )  # fmt: skip
    capture.copy_patient_and_study_information(source)
    if "Laterality" not in capture:
        capture.Laterality = ""  # of both knees, or not known
    capture.ImageType = ["DERIVED", "SECONDARY"]
    capture.DerivationDescription = f"CLIP-KOA {made_by.version}: knee boxes, grades and heat maps. Research only."
    capture.SeriesDescription = "CLIP-KOA grades (research only)"
    capture.BurnedInAnnotation = "NO"  # of the patient
    return capture


def _title(grade: Grade, side: str) -> str:
    return f"{side + ': ' if side else ''}{grade.name}"


def _lines(grade: Grade, side: str, level: float) -> list[str]:
    knee = {"R": "Right knee", "L": "Left knee"}.get(side, "Knee") + (" (side assumed)" if grade.side_assumed else "")
    found = grade.confidence_set
    held = f"; at {level:.0%} sure: KL{found[0]}" + (f" to KL{found[-1]}" if len(found) > 1 else "") if found else ""
    shares = ", ".join(f"KL{number} {share:.0%}" for number, share in enumerate(grade.probabilities))
    return [f"{knee}: {grade.name}{held}. {shares}", *([grade.warning] if grade.warning else [])]


def _write(draw: ImageDraw.ImageDraw, place, text: str, font) -> None:
    draw.text(place, text, fill=_INK, font=font, stroke_width=2, stroke_fill="black")
