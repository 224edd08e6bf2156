"""Grades images: PIL images in, for each a `Grade`, by whatever network gives the two views' logits.

Importing it takes nothing of transformers: an image processor and its class are imported when one is read.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image, ImageOps

from .appearance_clip_koa import WAYS, measure_appearance, otherwise
from .calibration_clip_koa import (
    ATYPICAL,
    CALIBRATION_FILE,
    TYPICALITY_FILE,
    SetRule,
    Typicality,
    file_beside,
    pair_prior,
    read_calibration,
    read_typicality,
    set_rule,
    typicality_file,
)
from .explanation_clip_koa import Explanation, explain_picture
from .localisation_clip_koa import (
    KNOWN_SIDES,
    LOCALISATION_FILE,
    MOST_OUTSIDE,
    NO_LOCATOR,
    Knee,
    KneeLocator,
    LocalisationError,
    cut_knee,
    find_knees,
    locator_file,
    name_sides,
    read_locator,
)
from .preprocessing_clip_koa import XrayPreprocessor, read_picture, turn, turns_of
from .prompts_clip_koa import GRADE_MEANINGS

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

    from .configuration_clip_koa import CLIPKOAConfig

# Radiographic osteoarthritis begins here (Kellgren & Lawrence).
_OSTEOARTHRITIS_GRADE = 2
_BATCH_SIZE = 16
# An image processor saved by itself, or with a tokenizer.
_PROCESSOR_FILES = ("preprocessor_config.json", "processor_config.json")


@dataclass(frozen=True)
class Grade:
    """What the model says of one X-ray. Probabilities are (K,), one for each grade."""

    grade: int  # 0..4, from the two views averaged
    name: str  # the grade's label
    meaning: str  # in the words of the Kellgren-Lawrence scale
    probabilities: tuple[float, ...]  # of the two views' averaged logits
    image_probabilities: tuple[float, ...]  # of the X-ray as given
    mirror_probabilities: tuple[float, ...]  # of its mirror image
    confidence_set: tuple[int, ...] = ()  # neighbouring grades; empty where the checkpoint is not calibrated
    atypicality: float | None = None  # share of unseen knees more like the training X-rays, 0..1; None: unknown
    inverted: bool = False  # whether the X-ray was taken to show bone dark, and was inverted before it was graded
    side: str = ""  # of a knee that was found: "R", "L", or "" where it is not known
    side_assumed: bool = False  # whether the side is only that of films as they are usually shown
    box: tuple[int, int, int, int] | None = None  # of a knee that was found: left, top, right, bottom, in pixels
    angle: float = 0.0  # degrees by which that knee leaned clockwise, where it was set upright
    outside: float = 0.0  # share of the box that lies outside of the image, 0..1
    ways: tuple[str, ...] = ()  # of `WAYS`: how the X-ray was taken or stored otherwise than those of training
    tells_knees: bool = True  # False: the checkpoint takes another machine's knee for no knee too, and only warns
    single_probabilities: tuple[float, ...] = ()  # of this knee alone, where `combine_knees` combined it; else empty

    @property
    def combined(self) -> bool:
        """Whether the grade is read from both knees of a person together."""
        return bool(self.single_probabilities)

    @property
    def refusal(self) -> str:
        """Why this image has no KL grade, in a sentence; empty where it has one.

        The other fields say all the same what the model would give it. Whoever shows a grade leaves it out here.
        """
        if "metal" in self.ways:
            return "This knee has metal in it, such as an implant: it has no KL grade."
        if self.tells_knees and self.is_atypical:
            return "This is no frontal knee X-ray as the model was trained on: it has no KL grade."
        return ""

    @property
    def warning(self) -> str:
        """What a reader must know before he trusts the grade; empty where there is nothing."""
        warnings = []
        if self.outside > MOST_OUTSIDE:
            warnings.append("The border of the image cuts this knee off: the grade may mean nothing.")
        if self.is_atypical:
            warnings.append("Unlike the knee X-rays the model was trained on: the grade may mean nothing.")
        if self.ways:
            ways = ", ".join(WAYS[way] for way in self.ways)
            warnings.append(
                f"Taken or stored otherwise than the knee X-rays the model was trained on ({ways}): the grade may be "
                "less sure."
            )
        return " ".join(warnings)

    @property
    def is_atypical(self) -> bool:
        """Whether the X-ray is unlike the knee X-rays of the training."""
        return self.atypicality is not None and self.atypicality >= ATYPICAL

    @property
    def expected_grade(self) -> float:
        """The mean grade under the probabilities, 0..4."""
        return sum(grade * share for grade, share in enumerate(self.probabilities))

    @property
    def osteoarthritis_probability(self) -> float:
        """The probability of grade 2 or above."""
        return sum(self.probabilities[_OSTEOARTHRITIS_GRADE:])

    @property
    def entropy(self) -> float:
        """Of the probabilities, in nats."""
        return -sum(share * math.log(share) for share in self.probabilities if share > 0)

    @property
    def flip_agreement(self) -> bool:
        """Whether X-ray and mirror image alone would get the same grade."""
        return len({view.index(max(view)) for view in (self.image_probabilities, self.mirror_probabilities)}) == 1


class Beside:
    """What lies beside a model's weights, for grading: read with them, refused only where it is asked for.

    So a folder without an image processor can be trained from, and a damaged calibration calibrated anew.

    Args:
        image_processor: None where there is none; or the error that reading it ended with, as with the others.
        calibration: as `read_calibration` gives it.
        typicality: as `read_typicality` gives it.
        locator: as `read_locator` gives it.
    """

    def __init__(
        self,
        image_processor: BaseImageProcessor | ValueError | None = None,
        calibration: dict | ValueError | None = None,
        typicality: Typicality | ValueError | None = None,
        locator: KneeLocator | ValueError | None = None,
    ):
        self._found = (image_processor, calibration, typicality, locator)
        self._preprocess: XrayPreprocessor | None = None

    @classmethod
    def read(
        cls, name: str, config: CLIPKOAConfig, preprocess: XrayPreprocessor | None = None, **hub_arguments
    ) -> Beside:
        """Reads what lies in a model folder or Hub repository.

        Args:
            config: of the model.
            preprocess: what was made of its image processor, which then is not read; default: it is.
            **hub_arguments: for a Hub id, such as `revision`.
        """
        beside = cls(
            preprocess.image_processor if preprocess else _or_error(_read_image_processor, name, **hub_arguments),
            _or_error(read_calibration, name, **hub_arguments),
            _or_error(read_typicality, name, config, **hub_arguments),
            _or_error(read_locator, name, config, **hub_arguments),
        )
        beside._preprocess = preprocess
        return beside

    @property
    def image_processor(self) -> BaseImageProcessor:
        """Raises `ValueError` where there is none, or a damaged one."""
        found = _or_raise(self._found[0])
        if found is None:
            raise ValueError(
                "The model came without an image processor: set model.image_processor, such as to "
                "AutoImageProcessor.from_pretrained(...) of the checkpoint it was trained from."
            )
        return found

    @property
    def preprocess(self) -> XrayPreprocessor:
        """From pictures to pixel values; raises as `image_processor` does."""
        if self._preprocess is None:
            self._preprocess = XrayPreprocessor(self.image_processor)
        return self._preprocess

    @property
    def calibration(self) -> dict | None:
        """None where the model is not calibrated; raises `CalibrationError` where it is damaged."""
        return _or_raise(self._found[1])

    @property
    def typicality(self) -> Typicality | None:
        """None where nothing is known of the training X-rays; raises `CalibrationError` where it is damaged."""
        return _or_raise(self._found[2])

    @property
    def has_locator(self) -> bool:
        """Whether there is one, damaged or not."""
        return self._found[3] is not None

    @property
    def locator(self) -> KneeLocator:
        """Raises `LocalisationError` where there is none, or a damaged one."""
        found = _or_raise(self._found[3])
        if found is None:
            raise LocalisationError(NO_LOCATOR)
        return found

    def with_image_processor(self, image_processor: BaseImageProcessor) -> Beside:
        """The same with another image processor."""
        return Beside(image_processor, *self._found[1:])

    def without_calibration(self) -> Beside:
        """The same without what was fitted to grades and to how typical X-rays are."""
        return Beside(self._found[0], locator=self._found[3])

    def without_locator(self) -> Beside:
        """The same without what finds knees."""
        return Beside(*self._found[:3])

    def save(self, folder: Path) -> None:
        """Writes into a model folder what there is and is not damaged."""
        image_processor, calibration, typicality, locator = (
            None if isinstance(found, ValueError) else found for found in self._found
        )
        if image_processor is not None:
            image_processor.save_pretrained(folder)
        if calibration is not None:
            (folder / CALIBRATION_FILE).write_text(json.dumps(calibration, indent=1), encoding="utf-8")
        if typicality is not None:
            (folder / TYPICALITY_FILE).write_bytes(typicality_file(typicality))
        if locator is not None:
            (folder / LOCALISATION_FILE).write_bytes(locator_file(locator))


def _or_error(read: Callable, *arguments, **options):
    try:
        return read(*arguments, **options)
    except ValueError as error:
        return error


def _or_raise(found):
    if isinstance(found, ValueError):
        raise found
    return found


def _read_image_processor(name: str, **hub_arguments) -> BaseImageProcessor:
    # Looked for first: without one, transformers may ask on the terminal whether to run the folder's code.
    if not any(file_beside(name, file, **hub_arguments) for file in _PROCESSOR_FILES):
        raise ValueError(
            f"{name} holds no {_PROCESSOR_FILES[0]}: save the image processor beside the weights, or set "
            "model.image_processor."
        )
    from transformers import AutoImageProcessor
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        return AutoImageProcessor.from_pretrained(name, **hub_arguments)
    except Exception as error:  # transformers raises what a damaged file happens to lead to
        raise ValueError(f"{name}: its image processor is damaged: {error}") from error
    finally:
        logging.set_verbosity(verbosity)


def of_knee(grade: Grade, knee: Knee, inverted: bool) -> Grade:
    """The grade of what was cut out of a picture, with what is known of the knee and its place there."""
    places = {name: getattr(knee, name) for name in ("side", "side_assumed", "box", "angle", "outside")}
    return replace(grade, inverted=inverted, **places)


def _ways(picture: Image.Image, typicality: Typicality, atypical: float | None) -> tuple[str, ...]:
    """How a picture was taken otherwise than the training X-rays; bright areas of what is no knee are no metal."""
    ways = otherwise(measure_appearance(picture), typicality.bounds.tolist())
    is_knee = atypical is None or atypical < ATYPICAL
    return ways if is_knee else tuple(way for way in ways if way != "metal")


class GradesXrays:
    """`grade` and `explain` for X-rays that are images already; `dataset_script.radiograph` reads them from any file.

    An image may be in any mode, deep or turned by EXIF: it goes through `read_picture`, as files do in
    `read_radiograph`. Whoever takes this class in gives `config`, of which the labels are read, `beside` and
    `grade_pixels`, and to find knees also `tokens_after`.
    """

    # `config` has no annotation here: transformers would evaluate it, and with it import the configuration.
    beside: Beside

    def grade_pixels(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
        """Pixel values (N, 3, H, W) to what `grade` reads.

        Returns:
            Text logits (N, K) of the X-rays and of their mirror images, and what `Typicality` takes, (N, D), or None.
        """
        raise NotImplementedError

    def tokens_after(self, pixel_values: torch.Tensor, count: int, any_size: bool = False) -> torch.Tensor:
        """The tokens (V, T, D) of images (V, 3, H, W) after the lowest `count` blocks, as a locator reads them."""
        raise NotImplementedError

    @property
    def image_processor(self) -> BaseImageProcessor:
        """The one that lay beside the weights, or was set; `ValueError` where there is none."""
        return self.beside.image_processor

    @image_processor.setter
    def image_processor(self, image_processor: BaseImageProcessor) -> None:
        self.beside = self.beside.with_image_processor(image_processor)

    @property
    def can_find_knees(self) -> bool:
        """Whether a locator was fitted to the checkpoint, as `find_knees` needs one."""
        return self.beside.has_locator

    def calibration_at(self, level: float) -> tuple[SetRule | None, Typicality | None]:
        """The rule of confidence sets that hold the true grade as often as `level` says, and the typicality.

        Each is None where the checkpoint does not keep it.

        Raises:
            CalibrationError: a level for which no rule is kept, or a damaged file.
        """
        calibration = self.beside.calibration
        return set_rule(calibration, level) if calibration else None, self.beside.typicality

    def grade(
        self,
        images: Image.Image | Sequence[Image.Image],
        keep_polarity: bool = False,
        level: float = 0.9,
        readings: int = 1,
    ) -> Grade | list[Grade]:
        """Grades one X-ray, or each of a list, cropped to one knee.

        Args:
            images: PIL images in any mode, one or a list of them.
            keep_polarity: grade an X-ray that shows bone dark as it is; otherwise it is inverted.
            level: how often the confidence sets are to hold the true grade, 0.50 to 0.99.
            readings: 3 averages the logits of the X-ray as it is and turned by 4 degrees either way, for three times
                the work; 1 takes it as it is.

        Raises:
            ValueError: an image that is none, is damaged, has several frames or an absurd size; another number of
                readings; a model without an image processor, or of other labels than the five grades.
            CalibrationError: a level for which the checkpoint keeps no rule, or a damaged file.
        """
        if isinstance(images, (str, bytes)) or not isinstance(images, Sequence):
            picture, inverted = read_picture(images, keep_polarity=keep_polarity)
            return replace(self._grade_pictures([picture], level, readings)[0], inverted=inverted)
        grades = []
        for start in range(0, len(images), _BATCH_SIZE):
            read = [
                read_picture(image, keep_polarity=keep_polarity, name=f"Image {number} of {len(images)}")
                for number, image in enumerate(images[start : start + _BATCH_SIZE], start + 1)
            ]
            batch = self._grade_pictures([picture for picture, _ in read], level, readings)
            grades += [replace(grade, inverted=inverted) for grade, (_, inverted) in zip(batch, read, strict=True)]
        return grades

    def combine_knees(self, one: Grade, other: Grade, level: float = 0.9) -> tuple[Grade, Grade]:
        """The grades of a person's two knees, each with what the other shows; which comes first makes no difference.

        Grade, probabilities and confidence set become those of `PairPrior.combine`; `single_probabilities` keeps the
        knee's own. What is of the two views alone, and of the image, stays. A knee that the border cuts off, or that
        has no grade (`refusal`), tells nothing of the other: such two stay as they are.

        Args:
            one, other: as `grade` or `grade_film` gives them.
            level: how often the confidence sets are to hold the true grade.

        Raises:
            CalibrationError: a checkpoint that keeps no pair prior, or a level for which it keeps no rule.
        """
        calibration, knees = self.beside.calibration, (one, other)
        prior, sets_of = pair_prior(calibration), set_rule(calibration["pairs"], level)
        if any(knee.refusal or knee.outside > MOST_OUTSIDE for knee in knees):
            return knees
        alone = [knee.single_probabilities or knee.probabilities for knee in knees]
        together = torch.stack(prior.combine(*(torch.tensor(own, dtype=torch.float64) for own in alone)))
        rows = zip(knees, alone, together.argmax(-1).tolist(), together.tolist(),
                   sets_of(together), strict=True)  # fmt: skip
        return tuple(
            replace(
                knee, grade=grade, name=self.config.id2label[grade], meaning=GRADE_MEANINGS[grade],
                probabilities=tuple(shares), confidence_set=found, single_probabilities=own,
            )
            for knee, own, grade, shares, found in rows
        )  # fmt: skip

    def find_knees(self, image: Image.Image, keep_polarity: bool = False, sides: str = "") -> list[Knee]:
        """The knees in an X-ray of any size, with frames, of one knee or of both; right knee first.

        Args:
            image: PIL image in any mode. Boxes are in its pixels, as it stands upright.
            keep_polarity: look at an X-ray that shows bone dark as it is; otherwise it is inverted.
            sides: what is known of the sides, from left to right of the image: "R", "L", "RL" or "LR". Where two
                knees are found and nothing is known, the right knee is taken to lie at the left, as films are shown.

        Returns:
            Nothing where there is no frontal knee.

        Raises:
            ValueError: an image that `grade` refuses, or other sides.
            LocalisationError: a checkpoint to which no locator was fitted, or a damaged one.
        """
        return self._read_films([image], keep_polarity, [sides])[0][1]

    def grade_film(
        self,
        image: Image.Image,
        keep_polarity: bool = False,
        level: float = 0.9,
        sides: str = "",
        pairs: bool = False,
        readings: int = 1,
    ) -> list[Grade]:
        """Grades each knee of an X-ray that need not be cropped: one `Grade` a knee, with side and box, right first.

        An X-ray that is cropped as training X-rays are gets the grade that `grade` gives it.

        Args:
            image, keep_polarity, level, readings: see `grade`.
            sides: see `find_knees`.
            pairs: combine the grades of two knees, as `combine_knees` does.

        Returns:
            Nothing where there is no frontal knee.

        Raises:
            ValueError, CalibrationError: as in `grade`, and in `combine_knees`.
            LocalisationError: as in `find_knees`.
        """
        return self.grade_films([image], keep_polarity, level, [sides], pairs, readings)[0]

    def grade_films(
        self,
        images: Sequence[Image.Image],
        keep_polarity: bool = False,
        level: float = 0.9,
        sides: Sequence[str] | None = None,
        pairs: bool = False,
        readings: int = 1,
    ) -> list[list[Grade]]:
        """`grade_film` of each image, in batches; `sides` (one text for each image) is nowhere known by default."""
        sides = [""] * len(images) if sides is None else sides
        films = self._read_films(images, keep_polarity, sides)
        pictures = [cut_knee(picture, knee) for picture, knees, _ in films for knee in knees]
        grades = []
        for start in range(0, len(pictures), _BATCH_SIZE):
            grades += self._grade_pictures(pictures[start : start + _BATCH_SIZE], level, readings)
        rest = iter(grades)
        graded = [[of_knee(next(rest), knee, inverted) for knee in knees] for _, knees, inverted in films]
        if pairs:
            return [list(self.combine_knees(*two, level)) if len(two) == 2 else two for two in graded]
        return graded

    def _read_films(self, images: Sequence[Image.Image], keep_polarity: bool, sides: Sequence[str]):
        """For each X-ray its picture, the knees in it, and whether it was inverted."""
        for known in sides:
            if known not in KNOWN_SIDES:
                raise ValueError(f"sides={known!r}: use one of {', '.join(map(repr, KNOWN_SIDES))}.")
        locator = self.beside.locator
        read = [read_picture(image, keep_polarity=keep_polarity) for image in images]
        found = find_knees(self, locator, (picture for picture, _ in read))
        # Which polarity a film has, only its knees tell.
        unclear = [] if keep_polarity else [number for number, knees in enumerate(found) if not knees]
        others = find_knees(self, locator, (ImageOps.invert(read[number][0]) for number in unclear))
        for number, knees in zip(unclear, others, strict=True):
            if knees:
                picture, inverted = read[number]
                read[number], found[number] = (ImageOps.invert(picture), not inverted), knees
        return [
            (picture, name_sides(knees, known), inverted)
            for (picture, inverted), knees, known in zip(read, found, sides, strict=True)
        ]

    def explain(
        self, image: Image.Image, grade: int | None = None, against: int | None = None, keep_polarity: bool = False
    ) -> Explanation:
        """Which parts of an X-ray speak for a grade: relevance of the patches (Chefer et al. 2021, arXiv 2103.15679).

        Through the blocks, attention weighted by the gradient of the text head's logit of the grade, less the other
        grade's, or less the mean of all others'. Maps of X-ray and mirror image are averaged, so that the mirror image
        gives the mirrored map.

        Args:
            image, keep_polarity: see `grade`.
            grade: default: the one that the model gives.
            against: the grade to tell it from; default: all others.

        Raises:
            ValueError: a grade that the model does not give, the same grade twice, or what `grade` refuses.
        """
        picture, _ = read_picture(image, keep_polarity=keep_polarity)
        grade = self._grade_pictures([picture])[0].grade if grade is None else grade
        for asked in (grade, grade if against is None else against):
            if asked not in self.config.id2label:
                raise ValueError(f"There is no grade {asked!r}: the model gives 0 to {self.config.num_labels - 1}.")
        if grade == against:
            raise ValueError(f"Grade {grade} cannot be told from itself: give another as against.")
        return explain_picture(self, self.beside.preprocess, picture, grade, against)

    def _read_pixels(self, pixel_values: torch.Tensor, readings: int) -> tuple[torch.Tensor, ...]:
        """What `grade_pixels` gives, logits averaged over readings; what is typical is told of the X-ray as it is."""
        found = [self.grade_pixels(turn(pixel_values, degrees)) for degrees in turns_of(readings)]
        logits, flipped_logits = (sum(views) / readings for views in list(zip(*found, strict=True))[:2])
        return logits, flipped_logits, found[0][2]

    def _grade_pictures(self, pictures: list[Image.Image], level: float = 0.9, readings: int = 1) -> list[Grade]:
        """Grades pictures as `read_picture` makes them."""
        labels = self.config.id2label
        if len(labels) != len(GRADE_MEANINGS):
            raise ValueError(
                f"The model has {len(labels)} labels: grade gives KL grades 0 to {len(GRADE_MEANINGS) - 1}."
            )
        sets_of, typicality = self.calibration_at(level)
        logits, flipped_logits, features = self._read_pixels(self.beside.preprocess(pictures), readings)
        averaged = ((logits + flipped_logits) / 2).softmax(-1)
        sets, atypicality, ways = [()] * len(pictures), [None] * len(pictures), [()] * len(pictures)
        if sets_of is not None:
            sets = sets_of(averaged)
        if typicality is not None and features is not None:
            atypicality = typicality.shares(features)
        if tells_knees := typicality is not None and typicality.bounds is not None:
            ways = [
                _ways(picture, typicality, atypical) for picture, atypical in zip(pictures, atypicality, strict=True)
            ]
        views = (averaged, logits.softmax(-1), flipped_logits.softmax(-1))
        grades = averaged.argmax(-1).tolist()
        rows = zip(grades, *(view.tolist() for view in views), sets, atypicality, ways, strict=True)
        return [
            Grade(
                grade, labels[grade], GRADE_MEANINGS[grade], *map(tuple, shares), found, atypical,
                ways=how, tells_knees=tells_knees,
            )
            for grade, *shares, found, atypical, how in rows
        ]  # fmt: skip
