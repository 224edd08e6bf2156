"""What the page knows of an X-ray: as readings of its knees in memory, as JSON for the browser, as pictures."""

import csv
import io
import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from PIL import Image, ImageOps

from clip_koa.grading.grader import GradedXray
from dataset_script.radiograph import Radiograph
from modeling_clip_koa import Explanation
from modeling_clip_koa.localisation_clip_koa import MOST_OUTSIDE, Knee, cut_knee

PICTURE_SIDE = 1600  # pixels of the longer side at which pictures are shown at most
THUMBNAIL_SIDE = 96
HEAT_SIDE = 448  # a heat map has no finer detail than the vision tower's patches
Box = tuple[float, float, float, float]  # left, top, right, bottom
Cut = Callable[[tuple[int, int]], Box | None]  # `XrayPreprocessor.cut`


@dataclass(frozen=True, eq=False)
class Film:
    """An X-ray file as a visitor gave it, of one knee or of both; its readings share it."""

    radiograph: Radiograph
    number: int = 0  # its place among the uploads of the visit
    true_grade: int | None = None  # an example's grade in the data set
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    @property
    def image(self) -> Image.Image:
        """All of it (mode L)."""
        return self.radiograph.image

    @property
    def pixels(self) -> int:
        """How many it has."""
        return self.image.width * self.image.height


@dataclass(frozen=True)
class Reading:
    """One knee of a film, or a film without any, and what the model says of it."""

    xray: GradedXray
    film: Film | None = None  # None where the file could not be read
    framing: str = "as_is"  # how its knee was looked for: "auto" or "as_is"
    place: int = 0  # among the knees of its film
    found: tuple[int, int, int, int] | None = None  # the box that the model found, wherever the reader moved it
    id: str = field(default_factory=lambda: secrets.token_urlsafe(18))

    @property
    def knee(self) -> Knee | None:
        """Where it lies in the film; None where the film is graded as it is, or no knee was found."""
        grade = self.xray.grade
        if grade is None or grade.box is None:
            return None
        framed = grade.box == self.found == (0, 0, *self.film.image.size) and not grade.angle
        return Knee(grade.box, grade.side, 1.0, grade.side_assumed, grade.angle, framed, grade.outside)

    @property
    def by_hand(self) -> bool:
        """Whether a reader placed its box."""
        return self.knee is not None and self.knee.box != self.found

    @property
    def laterality(self) -> str:
        """L, R, or "" where it is not known; B for both knees in a film that is graded as it is."""
        return "" if self.knee and self.xray.laterality == "B" else self.xray.laterality

    @property
    def is_cut(self) -> bool:
        """Whether it is a part of its film, or no part of it was found to be a knee."""
        return self.framing == "auto" and not (self.knee and self.knee.framed)

    @property
    def trouble(self) -> str:
        """Why a film that was read gives no grade here: "no_knee", "metal" or "unlike"; empty where it gives one."""
        grade = self.xray.grade
        if grade is None:
            return "no_knee"
        if not grade.refusal:
            return ""
        return "metal" if "metal" in grade.ways else "unlike"

    @property
    def image(self) -> Image.Image:
        """The picture that was graded (mode L); the film where no knee was found."""
        return cut_knee(self.film.image, self.knee) if self.knee else self.film.image


def describe(reading: Reading, cut: Cut, can_find: bool = False) -> dict:
    """The reading as JSON.

    Args:
        cut: which part of the image the model sees.
        can_find: whether the model can find knees.
    """
    xray, film = reading.xray, reading.film
    if film is None:
        return {"id": reading.id, "name": xray.file, "laterality": xray.laterality, "error": xray.error}
    knee = reading.knee
    facts = {
        "id": reading.id,
        "name": xray.file,
        "error": "",
        "trouble": reading.trouble,
        "laterality": reading.laterality,
        "side_assumed": bool(knee and knee.side_assumed),
        "film": film.id,
        "film_size": film.image.size,
        "framing": reading.framing if can_find else None,
        "cut": reading.is_cut,
        "box": knee.box if knee else None,
        "angle": knee.angle if knee else 0.0,
        "found": reading.found,
        "by_hand": reading.by_hand,
        "inverted": film.radiograph.inverted,
        "true_grade": film.true_grade,
    }
    return facts | (_answer(reading, cut) if not reading.trouble else {})


def _answer(reading: Reading, cut: Cut) -> dict:
    """What is said of a knee that has a grade."""
    grade, image, knee = reading.xray.grade, reading.image, reading.knee
    return {
        "width": image.width,
        "height": image.height,
        "seen": _seen(image.size, cut(image.size)),
        "grade": grade.grade,
        "probabilities": grade.probabilities,
        "image_grade": grade.image_probabilities.index(max(grade.image_probabilities)),
        "mirror_grade": grade.mirror_probabilities.index(max(grade.mirror_probabilities)),
        "mirror_probabilities": grade.mirror_probabilities,
        "set": grade.confidence_set,
        "atypicality": grade.atypicality,
        "osteoarthritis": grade.osteoarthritis_probability,
        "expected": grade.expected_grade,
        "warnings": warnings_of(reading),
        "ways": grade.ways,
        "both_knees": reading.xray.laterality == "B" and knee is None,
    }


def warnings_of(reading: Reading) -> list[str]:
    """Keys of the texts that warn of a grade, but of an assumed side; "ways" has blanks."""
    grade, film = reading.xray.grade, reading.film
    holds = {
        "cut_off": grade.outside > MOST_OUTSIDE,
        "atypical_reminder": grade.is_atypical,
        "ways": bool(grade.ways),
        "both_knees": reading.xray.laterality == "B" and reading.knee is None,
        "inverted": film.radiograph.inverted,
    }
    return [key for key, is_so in holds.items() if is_so]


def as_csv(readings: Iterable[Reading]) -> str:
    """The readings as the table of `clip-koa grade`, which keeps names from being computed by a spreadsheet."""
    from clip_koa.grading.grade_table import COLUMNS, table_row  # needs pyarrow, which takes a while to import

    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS)
    writer.writeheader()
    in_order = sorted(readings, key=lambda reading: (reading.film.number, reading.place))
    writer.writerows(table_row(reading.xray) for reading in in_order)
    return text.getvalue()


def _seen(size: tuple[int, int], box: Box | None) -> Box:
    """Left, top, right, bottom of the box that the model sees, in shares of width and height; None: all of it."""
    left, top, right, bottom = box or (0, 0, *size)
    width, height = size
    return left / width, top / height, right / width, bottom / height


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
