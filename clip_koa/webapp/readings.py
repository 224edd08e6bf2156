"""What the page knows of one X-ray: as a reading in memory, as JSON for the browser, as pictures."""

import csv
import io
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, field

from PIL import Image, ImageOps

from clip_koa.grading.grader import GradedXray
from modeling_clip_koa import Explanation

PICTURE_SIDE = 1600  # pixels of the longer side at which pictures are shown at most
THUMBNAIL_SIDE = 96
HEAT_SIDE = 448  # a heat map has no finer detail than the vision tower's patches


@dataclass(frozen=True)
class Reading:
    """An X-ray that a visitor gave, and what the model says of it."""

    xray: GradedXray
    image: Image.Image | None = None  # mode L; None where it could not be read
    inverted: bool = False  # stored with bone dark on white, and set right
    true_grade: int | None = None  # an example's grade in the data set
    number: int = 0  # its place among the uploads of the visit
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    @property
    def pixels(self) -> int:
        """How many its image has."""
        return self.image.width * self.image.height if self.image else 0


def describe(reading: Reading, crop_share: float) -> dict:
    """The reading as JSON.

    Args:
        crop_share: side of the square that the model sees, in shorter sides of the image.
    """
    xray, grade = reading.xray, reading.xray.grade
    facts = {"id": reading.id, "name": xray.file, "laterality": xray.laterality, "error": xray.error}
    if grade is None:
        return facts
    return facts | {
        "width": reading.image.width,
        "height": reading.image.height,
        "seen": seen_square(reading.image.size, crop_share),
        "grade": grade.grade,
        "probabilities": grade.probabilities,
        "image_grade": grade.image_probabilities.index(max(grade.image_probabilities)),
        "mirror_grade": grade.mirror_probabilities.index(max(grade.mirror_probabilities)),
        "mirror_probabilities": grade.mirror_probabilities,
        "set": grade.confidence_set,
        "osteoarthritis": grade.osteoarthritis_probability,
        "expected": grade.expected_grade,
        "atypical": bool(grade.warning),
        "both_knees": xray.laterality == "B",
        "inverted": reading.inverted,
        "true_grade": reading.true_grade,
    }


def as_csv(readings: Iterable[Reading]) -> str:
    """The readings as the table of `clip-koa grade`, which keeps names from being computed by a spreadsheet."""
    from clip_koa.grading.grade_table import COLUMNS, table_row  # needs pyarrow, which takes a while to import

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    writer.writerows(table_row(reading.xray) for reading in sorted(readings, key=lambda reading: reading.number))
    return text.getvalue()


def seen_square(size: tuple[int, int], crop_share: float) -> tuple[float, float, float, float]:
    """Left, top, right, bottom of the central square that the model sees, in shares of width and height."""
    width, height = size
    side = min(width, height) * crop_share
    left, top = (1 - side / width) / 2, (1 - side / height) / 2
    return left, top, 1 - left, 1 - top


def picture(image: Image.Image, longest: int = PICTURE_SIDE) -> Image.Image:
    """The image as it is shown: never enlarged, its longer side at most `longest` pixels."""
    if max(image.size) <= longest:
        return image
    return ImageOps.contain(image, (longest, longest), Image.Resampling.BICUBIC)


def heat_layer(explanation: Explanation) -> Image.Image:
    """The heat map (RGBA) to lay over the X-ray, at most `HEAT_SIDE` pixels."""
    width, height = explanation.image.size
    scale = min(1.0, HEAT_SIDE / max(width, height))
    return explanation.layer((max(1, round(width * scale)), max(1, round(height * scale))))


def png(image: Image.Image) -> bytes:
    """A picture as PNG."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=3)
    return buffer.getvalue()
