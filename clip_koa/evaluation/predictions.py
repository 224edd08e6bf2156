"""Prediction files: what a model said of every X-ray of a split, one JSON line each, the same from every script."""

import hashlib
import json
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from datasets import Dataset

from clip_koa.evaluation.heads import Predictions
from clip_koa.files import replaced
from metrics.kl_grading.kl_grading import NUM_GRADES, known_person
from modeling_clip_koa import CLIPKOAError

# The columns of logits; a row holds `file`, `person`, `label` and these.
LOGITS = ("logits", "flipped_logits", "classifier_logits", "flipped_classifier_logits")


class PredictionsError(CLIPKOAError, ValueError):
    """A prediction file that cannot be used; the message names it, its line, and what would be right."""


@dataclass
class GradedSplit:
    """Predictions of N X-rays, with the files they are of and whose they are."""

    predictions: Predictions
    files: list[str]  # below the data folder
    people: list[str]  # pseudonyms; X-rays of equal pseudonym are one person's

    @classmethod
    def of_split(cls, predictions: Predictions, split: Dataset) -> "GradedSplit":
        """The predictions of a split of the `KneeXray` builder, of which `file` and `person_id` are read.

        Raises:
            PredictionsError: predictions that are not of every X-ray of the split, each once and in its order.
        """
        files = list(split["file"])
        if predictions.index.tolist() != list(range(len(files))):
            raise PredictionsError(
                f"{len(predictions.index)} predictions for {len(files)} X-rays: there must be one for each, in order."
            )
        return cls(predictions, files, pseudonyms(files, list(split["person_id"])))


def pseudonyms(files: list[str], person_ids: list[str]) -> list[str]:
    """For each X-ray a name for its person, the same in every split, script and year.

    An X-ray without a person id counts as a person of its own. The name groups X-rays and hides nothing: the id may
    stand in the file's name beside it.
    """
    names = [known_person(person) for person in person_ids]
    keys = [f"file {file}" if name is None else f"person {name}" for file, name in zip(files, names, strict=True)]
    return [hashlib.blake2b(key.encode(), digest_size=6).hexdigest() for key in keys]


def write_predictions(path: str | Path, graded: GradedSplit) -> None:
    """Writes a prediction file, whole or not at all.

    Raises:
        WriteError: it could not be written; an earlier one stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # Through Python's floats, which hold every fp32 value, so that reading gives the same logits to the bit.
    columns = [getattr(graded.predictions, name).tolist() for name in LOGITS]
    rows = zip(graded.files, graded.people, graded.predictions.labels.tolist(), *columns, strict=True)
    with replaced(path) as temporary, open(temporary, "w", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(dict(zip(("file", "person", "label", *LOGITS), row, strict=True))) + "\n")


def read_predictions(path: str | Path) -> GradedSplit:
    """Reads a prediction file; an X-ray whose person is empty or null is a person of its own.

    Raises:
        PredictionsError: no such file, an empty one, or a line that is no JSON, lacks a column, or holds a label that
            is no grade or logits that are not five finite numbers.
    """
    path = Path(path)
    if not path.is_file():
        raise PredictionsError(
            f"{path}: there is no such file; clip-koa evaluate and clip-koa train write such files."
        )
    rows = []
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        where = f"{path}, line {number}"
        try:
            row = json.loads(line)
            logits = [torch.tensor(row[name], dtype=torch.float32) for name in LOGITS]
            file, label = str(row["file"]), row["label"]
            # As `pseudonyms`: a file that another program wrote may name nobody.
            person = known_person(row["person"]) or pseudonyms([file], [None])[0]
        except (KeyError, TypeError, ValueError, OverflowError, RecursionError) as error:
            raise PredictionsError(
                f"{where} is no prediction ({type(error).__name__}: {error}): "
                f"it must hold file, person, label, {', '.join(LOGITS)}."
            ) from error
        if isinstance(label, bool) or label not in range(NUM_GRADES):
            raise PredictionsError(f"{where}: label {repr(label)[:40]} is no grade; give 0 to {NUM_GRADES - 1}.")
        for name, values in zip(LOGITS, logits, strict=True):
            if values.shape != (NUM_GRADES,) or not values.isfinite().all():
                raise PredictionsError(f"{where}: {name} must be {NUM_GRADES} finite numbers.")
        rows.append((file, person, int(label), *logits))
    if not rows:
        raise PredictionsError(f"{path} is empty: it must hold a line for each X-ray.")
    files, people, labels, *logits = map(list, zip(*rows, strict=True))
    tensors = [torch.arange(len(rows)), torch.tensor(labels), *map(torch.stack, logits)]
    names = [f.name for f in fields(Predictions)]
    return GradedSplit(Predictions(**dict(zip(names, tensors, strict=True))), files, people)
