"""From X-ray files to grades: one reader for all formats, then the model's own `grade`."""

import math
import threading
from collections import deque
from collections.abc import Iterable, Iterator, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image, ImageOps

from clip_koa.grading.backends import choose_backend, load_model
from clip_koa.grading.polarity import LEAST_UNLIKE, is_doubtful, negative, unlikeness
from clip_koa.grading.sources import read_xray, try_to_read
from dataset_script.radiograph import Radiograph, RadiographError
from modeling_clip_koa import Explanation, Grade
from modeling_clip_koa.calibration_clip_koa import ATYPICAL, pair_prior
from modeling_clip_koa.grading_clip_koa import of_knee
from modeling_clip_koa.localisation_clip_koa import Knee, cut_knee
from modeling_clip_koa.preprocessing_clip_koa import turns_of

BATCH_SIZE = 16
FRAMINGS = ("auto", "as_is")
_MOST_PIXELS = 32_000_000  # read before they are graded: a batch of large films would fill the memory
_Read = tuple[str | Path, Radiograph | RadiographError]  # a file, and what was read of it
NO_KNEE = "no knee seen from the front was found in it; --framing as_is grades an X-ray as it is."


@dataclass(frozen=True)
class GradedXray:
    """What the model says of one X-ray, or why it could not be read.

    An image that has no KL grade keeps in `grade` what the model would give it; `reason` says why none is to be shown.
    """

    file: str
    grade: Grade | None = None  # None where it could not be read
    laterality: str = ""  # L, R, or B for both knees, where the file or its name tells
    error: str = ""  # why it could not be read, or that no knee is in it; else empty
    paired_with: str = ""  # the file of the same person's other knee, where it was to be graded with this one

    @property
    def reason(self) -> str:
        """Why there is no grade to show; empty where there is one."""
        refusal = self.grade.refusal if self.grade else ""
        return self.error or (f"{self.file}: {refusal}" if refusal else "")

    @property
    def warnings(self) -> tuple[str, ...]:
        """What a reader must know before he trusts the grade."""
        if self.grade is None:
            return ()
        inverted = (
            "Bone looked dark in it: it was inverted before it was graded (--keep-polarity grades it as it is)."
            if self.grade.inverted
            else ""
        )
        both = "Both knees are in it: crop it to one." if self.laterality == "B" else ""
        assumed = (
            "Which knee it is, is assumed: the right knee lies on the left of a film."
            if self.grade.side_assumed
            else ""
        )
        return tuple(filter(None, (self.grade.warning, inverted, both, assumed)))


class Grader:
    """Grades X-ray files with a CLIP-KOA checkpoint.

    Args:
        name: model folder or Hub id.
        level: how often the confidence sets are to hold the true grade.
        device: a torch device; default: a GPU where there is one.
        backend: one of `BACKENDS`; for onnx, `name` is a folder that clip-koa export-onnx wrote.
        precision: of the vision tower, one of `PRECISIONS`; default: that of an export, else fp32.
        keep_polarity: grade X-rays that show bone dark as they are; otherwise they are inverted.
        framing: one of `FRAMINGS`. auto: the knees of films are found, and an X-ray that is framed as training X-rays
            are stays as it is; a model that cannot find knees takes all X-rays as they are, and `framing` says so.
        pairs: combine the grades of a person's two knees, as `combine_knees` of the model does: of the two knees of a
            film, and of two files where the first is one of these and the second follows it, as in `PairedFiles`.
            None: combine none.
        readings: of `READINGS`, how many slightly turned readings of an X-ray are averaged.

    Raises:
        CheckpointError: no such model, a damaged one, one that cannot grade, or a precision that it does not have.
        CalibrationError: a level for which the checkpoint keeps no rule, a damaged file, or, with `pairs`, a
            checkpoint that keeps no pair prior.
        ValueError: a number of readings that is none of `READINGS`.
        ImportError: the backend is not installed.
    """

    def __init__(
        self,
        name: str,
        level: float = 0.9,
        device: str | None = None,
        backend: str = "pytorch",
        precision: str | None = None,
        keep_polarity: bool = False,
        framing: str = "as_is",
        pairs: Set[str] | None = None,
        readings: int = 1,
    ):
        turns_of(readings)  # raises where there are none
        self.keep_polarity, self.level, self.pairs, self.readings = keep_polarity, level, pairs, readings
        self.backend = choose_backend(name, device) if backend == "auto" else backend
        self.model, self.precision = load_model(name, self.backend, precision, device)
        # Two batches at once keep all cores at work in OpenVINO. PyTorch's model is used by one thread at a time.
        self._at_once = 2 if self.backend == "openvino" else 1
        self._turn = nullcontext() if self.backend == "openvino" else threading.Lock()
        set_rule, _ = self.model.calibration_at(level)
        if pairs is not None:
            pair_prior(self.model.beside.calibration)  # raises where there is none
        self.is_calibrated = set_rule is not None  # it then gives confidence sets
        self.framing = framing if self.model.can_find_knees else "as_is"

    @property
    def labels(self) -> list[str]:
        """The grades' names."""
        labels = self.model.config.id2label
        return [labels[grade] for grade in range(len(labels))]

    def grade(self, files: Iterable[str | Path]) -> Iterator[GradedXray]:
        """Grades files in their order: each once, or once for each knee that is found in it, right knee first.

        One that can't be read, or in which no knee is found, gives its error instead of a grade.
        """
        for entry in self.grade_each(files):
            yield from entry

    def grade_each(self, files: Iterable[str | Path]) -> Iterator[list[GradedXray]]:
        """As `grade`, but for each file a list: of its X-ray, or of one for each knee in it.

        Files are read while those before them are graded. Who stops it gets what is being graded before
        `KeyboardInterrupt`.
        """
        entries = self._grade_ahead((file, self.read(file)) for file in files)
        for entry in entries:
            together = [entry]
            if entry[0].file in (self.pairs or ()):
                together.append(next(entries))
            if self.pairs is not None:
                self._combine(together, self.pairs)
            yield from together

    def _grade_ahead(self, read: Iterator[_Read]) -> Iterator[list[GradedXray]]:
        """What `_grade_read` gives, in order, by other threads, while this one reads."""
        at_work = deque()

        def done() -> list[list[GradedXray]]:
            entries = at_work[0][0].result()
            at_work.popleft()
            return entries

        with ThreadPoolExecutor(self._at_once) as threads:
            try:
                for chunk, pixels in _chunks(read):
                    at_work.append((threads.submit(self._grade_read, chunk), pixels))
                    del chunk  # its X-rays may fill the memory
                    while len(at_work) > self._at_once or sum(size for _, size in at_work) >= _MOST_PIXELS:
                        yield from done()
                while at_work:
                    yield from done()
            except KeyboardInterrupt:
                for grading in [grading for grading, _ in at_work if not grading.cancel()]:
                    yield from grading.result()
                raise
            finally:
                for grading, _ in at_work:
                    grading.cancel()

    def read(self, file: str | Path) -> Radiograph | RadiographError:
        """What `read_xray` gives of a file, or says of one that cannot be read."""
        return try_to_read(str(file), self.keep_polarity)

    def grade_batch(
        self, files: list, read: Iterable[Radiograph | RadiographError], firsts: Set[str] | None = None
    ) -> list[list[GradedXray]]:
        """For each file of a batch its X-ray, or one for each knee in it.

        Args:
            read: what `read` gives of each file; it is taken when it is needed.
            firsts: combine the grades of pairs, of which these are the first files. None: combine none.
        """
        entries = [entry for chunk, _ in _chunks(zip(files, read, strict=True)) for entry in self._grade_read(chunk)]
        if firsts is not None:
            self._combine(entries, firsts)
        return entries

    def _combine(self, entries: list[list[GradedXray]], firsts: Set[str]) -> None:
        """Combines, in their places, the knees of each film that shows two, and those of two files that are a pair."""
        for number, entry in enumerate(entries):
            if len(entry) == 2:
                entries[number] = self._combined(*entry)
            if entry[0].file in firsts:
                other = entries[number + 1]
                if len(entry) == len(other) == 1:
                    entries[number], entries[number + 1] = ([xray] for xray in self._combined(*entry, *other))
                else:  # a film of both knees, each of which has the other already
                    for place, partner in ((number, other), (number + 1, entry)):
                        if len(entries[place]) == 1:
                            entries[place] = [replace(entries[place][0], paired_with=partner[0].file)]

    def _combined(self, one: GradedXray, other: GradedXray) -> list[GradedXray]:
        grades = one.grade, other.grade
        if None not in grades:
            grades = self.model.combine_knees(*grades, self.level)
        return [
            replace(xray, grade=grade, paired_with=partner.file)
            for xray, partner, grade in zip((one, other), (other, one), grades, strict=True)
        ]

    def grade_radiograph(
        self, radiograph: Radiograph, framing: str | None = None
    ) -> tuple[Radiograph, list[GradedXray]]:
        """Grades an X-ray that is read already: once, or once for each knee that is found in it, right knee first.

        Where no knee is found in it, the one that is given has an error instead of a grade.

        Args:
            framing: one of `FRAMINGS`; default: the grader's.

        Returns:
            The radiograph besides, which is inverted where its knees were found only so.
        """
        ((radiograph, grades),) = self._grade_films([radiograph], framing)
        return radiograph, self._all_graded(radiograph.source, radiograph, grades)

    def grade_knee(self, radiograph: Radiograph, knee: Knee) -> GradedXray:
        """Grades the knee in a box that a reader placed in an X-ray that is read already."""
        (grade,) = self._grade_images([cut_knee(radiograph.image, knee)])
        return self._graded(radiograph.source, radiograph, of_knee(grade, knee, radiograph.inverted))

    def explain_picture(self, picture: Image.Image, grade: int, against: int | None = None) -> Explanation:
        """The heat map of a picture that `read_radiograph` gave; raises as `explain`."""
        with self._turn:
            return self.model.explain(picture, grade, against, keep_polarity=True)

    def explain(self, xray: GradedXray, against: int | None = None) -> Explanation:
        """The heat map of a graded X-ray: what speaks for its grade, or for it rather than `against`.

        Raises:
            ValueError: a grade that the model does not give, or the X-ray's own.
        """
        radiograph = read_xray(xray.file, keep_polarity=self.keep_polarity)
        as_graded = radiograph.inverted == xray.grade.inverted
        picture = radiograph.image if as_graded else ImageOps.invert(radiograph.image)
        if xray.grade.box:
            picture = cut_knee(picture, Knee(xray.grade.box, angle=xray.grade.angle))
        return self.explain_picture(picture, xray.grade.grade, against)

    def _grade_images(self, images: list[Image.Image]) -> list[Grade]:
        # The reader has judged already whether they show bone dark; what a DICOM file says of that is not judged.
        return self.model.grade(images, keep_polarity=True, level=self.level, readings=self.readings)

    def _grade_films(
        self, radiographs: list[Radiograph], framing: str | None = None
    ) -> list[tuple[Radiograph, list[Grade]]]:
        """Each radiograph with its grade, or with one for each knee in it; inverted where its knees show that.

        The reader judges the polarity of an image file as that of a crop. Of a film it may be wrong: where it inverted
        one, the file's own polarity is searched first. The other polarity is searched too where no knee is found, or
        one that is unlike those of the training; where more are found, or likelier ones, that is the right one.
        """
        if "as_is" in (framing or self.framing, self.framing):
            grades = self._grade_images([radiograph.image for radiograph in radiographs])
            return [(radiograph, [grade]) for radiograph, grade in zip(radiographs, grades, strict=True)]
        films = self._find_and_grade([negative(one) if is_doubtful(one) else one for one in radiographs])
        for place, (judged, (radiograph, grades)) in enumerate(zip(radiographs, films, strict=True)):
            framed = [grade.box for grade in grades] == [(0, 0, *radiograph.image.size)]
            is_sure = framed or unlikeness(grades) < (LEAST_UNLIKE if judged.inverted else ATYPICAL)
            if is_sure or self.keep_polarity or radiograph.is_dicom:
                continue
            ((other, found),) = self._find_and_grade([negative(radiograph)])
            if (len(found), -unlikeness(found)) > (len(grades), -unlikeness(grades)):
                films[place] = other, found
        return films

    def _find_and_grade(self, radiographs: list[Radiograph]) -> list[tuple[Radiograph, list[Grade]]]:
        images = [radiograph.image for radiograph in radiographs]
        sides = [radiograph.laterality if radiograph.laterality in ("L", "R") else "" for radiograph in radiographs]
        films = self.model.grade_films(
            images, keep_polarity=True, level=self.level, sides=sides, readings=self.readings
        )
        return list(zip(radiographs, films, strict=True))

    def _grade_read(self, chunk: list[_Read]) -> list[list[GradedXray]]:
        """For each file its X-ray, or one for each knee in it; or the error that reading it gave."""
        radiographs = [radiograph for _, radiograph in chunk if isinstance(radiograph, Radiograph)]
        with self._turn:
            films = iter(self._grade_films(radiographs) if radiographs else [])
        return [
            self._all_graded(str(file), *next(films))
            if isinstance(radiograph, Radiograph)
            else [GradedXray(str(file), error=str(radiograph))]
            for file, radiograph in chunk
        ]

    def _all_graded(self, file: str, radiograph: Radiograph, grades: list[Grade]) -> list[GradedXray]:
        """An X-ray's knees, or the error that none is in it."""
        if not grades:
            return [GradedXray(file, laterality=radiograph.laterality or "", error=f"{file}: {NO_KNEE}")]
        return [self._graded(file, radiograph, grade) for grade in grades]

    @staticmethod
    def _graded(file: str, radiograph: Radiograph, grade: Grade) -> GradedXray:
        side = grade.side or radiograph.laterality or ""
        return GradedXray(file, replace(grade, inverted=radiograph.inverted != grade.inverted), side)


def _chunks(read: Iterable[_Read]) -> Iterator[tuple[list[_Read], int]]:
    """Files and what was read of them, so many as are graded together, and of how many pixels they are."""
    chunk, pixels = [], 0
    for file, radiograph in read:
        chunk.append((file, radiograph))
        if isinstance(radiograph, Radiograph):
            pixels += math.prod(radiograph.image.size)
        if len(chunk) == BATCH_SIZE or pixels >= _MOST_PIXELS:
            yield chunk, pixels
            chunk, pixels = [], 0
    if chunk:
        yield chunk, pixels
