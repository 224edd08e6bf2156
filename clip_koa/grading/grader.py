"""From X-ray files to grades: one reader, one preprocessing, the model, and what it says of each view."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from glob import glob
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from transformers import AutoImageProcessor

from clip_koa.grading.calibration import confidence_sets, read_threshold
from dataset_script.radiograph import SUFFIXES, RadiographError, read_radiograph
from modeling_clip_koa import GRADE_MEANINGS, CLIPKOAForImageClassification

BATCH_SIZE = 16


@dataclass(frozen=True)
class GradedXray:
    """What the model says of one X-ray, or why it could not be read."""

    file: str
    grade: int | None = None  # 0..4, from the two views averaged
    name: str = ""  # the grade's label
    meaning: str = ""  # in the words of the Kellgren-Lawrence scale
    probabilities: tuple[float, ...] = ()  # of the two views' averaged logits, (K,)
    image_probabilities: tuple[float, ...] = ()  # of the X-ray as given, (K,)
    mirror_probabilities: tuple[float, ...] = ()  # of its mirror image, (K,)
    confidence_set: tuple[int, ...] = ()  # neighbouring grades; empty where the checkpoint is not calibrated
    laterality: str = ""  # L, R, or B for both knees, where the file or its name tells
    error: str = ""  # empty where the X-ray was graded


class Grader:
    """Grades X-ray files with a CLIP-KOA checkpoint.

    Args:
        name: model folder or Hub id.
        level: how often the confidence sets are to hold the true grade.
        device: a torch device; default: a GPU where there is one.

    Raises:
        OSError: no such model (transformers' own message).
        CalibrationError: a level for which the checkpoint keeps no threshold.
    """

    def __init__(self, name: str, level: float = 0.9, device: str | None = None):
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.model = CLIPKOAForImageClassification.from_pretrained(name).to(self.device).eval()
        self.image_processor = AutoImageProcessor.from_pretrained(name)
        self.threshold = read_threshold(name, level)  # None where the checkpoint is not calibrated

    def grade(self, files: Iterable[str | Path]) -> Iterator[GradedXray]:
        """Grades files in their order; one that can't be read gives its error instead of a grade."""
        files = iter(files)
        while batch := list(islice(files, BATCH_SIZE)):
            yield from self._grade_batch(batch)

    def _grade_batch(self, files: list) -> list[GradedXray]:
        images, sides, errors = {}, {}, {}
        for index, file in enumerate(files):
            try:
                radiograph = read_radiograph(file)
                images[index], sides[index] = radiograph.image, radiograph.laterality or ""
            except RadiographError as error:
                errors[index] = GradedXray(str(file), error=str(error))
        graded = dict(errors)
        if images:
            probabilities = self._probabilities(list(images.values()))
            sets = [()] * len(images)
            if self.threshold is not None:
                sets = confidence_sets(np.array(probabilities[0]), self.threshold)
            for index, row, found in zip(images, zip(*probabilities, strict=True), sets, strict=True):
                grade = max(range(len(row[0])), key=row[0].__getitem__)
                name = self.model.config.id2label[grade]
                graded[index] = GradedXray(
                    str(files[index]), grade, name, GRADE_MEANINGS[grade], *map(tuple, row), found, sides[index]
                )
        return [graded[index] for index in range(len(files))]

    @torch.inference_mode()
    def _probabilities(self, images: list) -> list[list[list[float]]]:
        """For N images: probabilities of both views averaged, of the image, of its mirror image; each (N, K)."""
        pixel_values = self.image_processor(images, return_tensors="pt")["pixel_values"].to(self.device)
        output = self.model(pixel_values, flip_average=True)
        image_logits = 2 * output.logits - output.flipped_logits  # logits is the mean of the two
        return [logits.softmax(-1).tolist() for logits in (output.logits, image_logits, output.flipped_logits)]


def find_xrays(inputs: Iterable[str | Path]) -> list[Path]:
    """The X-ray files that `inputs` name, each once: files as they are, folders searched for images and globs, sorted.

    Raises:
        FileNotFoundError: an input that does not exist, a glob that nothing matches, or a folder without X-rays.
    """
    files = []
    for path in map(Path, inputs):
        if not path.exists() and any(sign in str(path) for sign in "*?["):
            found = sorted(Path(file) for file in glob(str(path), recursive=True) if Path(file).is_file())
            if not found:
                raise FileNotFoundError(f"{path}: no file matches this pattern.")
            files += found
        elif path.is_dir():
            found = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES and file.is_file())
            if not found:
                raise FileNotFoundError(f"{path} holds no X-rays ({', '.join(SUFFIXES)}).")
            files += found
        elif path.exists():
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: there is no such file or folder.")
    return list(dict.fromkeys(files))
