"""Calibrates a checkpoint on a split that it was not trained on: temperatures, confidence sets, pairs, typicality."""

import json
from dataclasses import dataclass
from pathlib import Path

from datasets import Dataset
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clip_koa.calibration.pairs import describe_pairs, pairs_entry
from clip_koa.calibration.temperatures import (
    cross_fitted,
    describe,
    fit_temperature,
    fold_temperatures,
    least_by_level,
    lowest_text_temperature,
)
from clip_koa.calibration.typicality import fit_on_xrays
from clip_koa.data.loader import XrayDataset
from clip_koa.evaluation.heads import Predictions, predict
from clip_koa.evaluation.loading import CheckpointError, load_checkpoint, load_split, load_tokenizer
from clip_koa.evaluation.predictions import pseudonyms
from dataset_script.knee_xray import CorpusError
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE, CalibrationError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import Typicality, read_calibration, typicality_file


@dataclass(frozen=True)
class CalibrationRequest:
    """What to calibrate, and on what.

    Raises:
        CalibrationError: a level out of range.
    """

    model: str  # model folder or Hub id
    data_dir: str | None  # None: the environment's KNEE_XRAY_DIR
    split: str = "validation"
    level: float = 0.9  # of the sets that are reported on
    typical_xrays: int = 2000  # training X-rays that images are told from as unlike; 0: none
    keep_weights: bool = False  # fit only what is kept beside them

    def __post_init__(self):
        if not 0.5 <= self.level < 1:
            raise CalibrationError(f"--level {self.level}: it must be at least 0.5 and below 1.")


@dataclass(frozen=True)
class Calibrated:
    """A calibrated checkpoint: what is saved, and the report."""

    model: CLIPKOAForImageClassification
    image_processor: object
    tokenizer: object
    files: dict[str, bytes]  # beside the weights, by name
    report: dict


def folder_to_write(request: CalibrationRequest, output: Path | None) -> Path:
    """The model folder that is written.

    Raises:
        CheckpointError: a Hub id that is to be written to.
        CalibrationError: another folder for weights that are to be left as they are, or weights never calibrated.
    """
    if not output and not Path(request.model).is_dir():
        raise CheckpointError(f"--model {request.model} is no folder to write to: name one by --output.")
    if request.keep_weights and output:
        raise CalibrationError(f"--output {output}: --keep_weights writes into the model's own folder; leave one out.")
    if request.keep_weights and not read_calibration(request.model):
        raise CalibrationError(f"--model {request.model} was never calibrated: leave --keep_weights out.")
    return output or Path(request.model)


def describe_calibration(report: dict) -> str:
    """The report as lines to print."""
    return "\n".join([describe(report), *([describe_pairs(report["pairs"])] if "pairs" in report else [])])


def calibrate_checkpoint(request: CalibrationRequest, accelerator) -> Calibrated:
    """Calibrates a checkpoint; writes nothing.

    Raises:
        CheckpointError: it cannot be loaded.
        CorpusError, RadiographError: no such split, or an X-ray that cannot be read.
    """
    split, digest = load_split(request.data_dir, request.split, accelerator)
    model, image_processor = load_checkpoint(request.model)
    tokenizer = load_tokenizer(request.model, model)
    model = model.to(accelerator.device)
    batches = accelerator.prepare(DataLoader(XrayDataset(split, image_processor), batch_size=16))
    predictions = predict(model, tqdm(batches, desc=request.split, unit="batch"), accelerator)
    people = pseudonyms(list(split["file"]), list(split["person_id"]))
    kept = read_calibration(request.model) if request.keep_weights else None
    report = calibrate(model.to("cpu"), predictions, people, request.level, kept)
    report = {"split": request.split, "data_digest": digest, **report}
    calibrated = predictions.of_head("text_flip_averaged")[0].double()
    if not kept:
        calibrated /= report["heads"]["text"]["temperature"]
    probabilities, labels = calibrated.softmax(-1).numpy(), predictions.labels.numpy()
    report["least_probabilities"] = least_by_level(probabilities, labels)
    training = _load_training_xrays(request, accelerator)
    report |= _fit_pairs(training, split, probabilities, people)
    typicality = _fit_on_training_xrays(request, model.to(accelerator.device), image_processor, training, split)
    files = {CALIBRATION_FILE: json.dumps(report, indent=1).encode()}
    if typicality:
        files[TYPICALITY_FILE] = typicality_file(typicality)
    return Calibrated(model, image_processor, tokenizer, files, report)


def calibrate(model, predictions: Predictions, people: list[str], level: float, kept: dict | None = None) -> dict:
    """Folds both heads' temperatures into the model; returns what calibration.json says of them and of the sets.

    The text head is fitted as it is read, averaged over both views, and the linear head as stock pipelines run it.

    Args:
        kept: the calibration of weights that stay as they are; their temperatures and what they gave stay too.
    """
    heads, temperatures, lowest = {}, {}, {"text": lowest_text_temperature(model), "linear": 0.0}
    for name, head in {"text": "text_flip_averaged", "linear": "linear"}.items():
        logits = predictions.of_head(head)[0]
        temperatures[name] = 1.0 if kept else fit_temperature(logits, predictions.labels, lowest[name])
        fitted = cross_fitted(logits, predictions.labels, people, level, 1.0 if kept else None, lowest[name])
        del fitted["probabilities"]
        heads[name] = {"read_by": head, "temperature": temperatures[name], **fitted}
        own = (kept or {}).get("heads", {}).get(name, {})
        heads[name] |= {figure: own[figure] for figure in ("temperature", "before", "after") if figure in own}
    if not kept:
        if temperatures["text"] < 1.001 * lowest["text"]:
            print("The text head stays less sure than it is right: CLIP's bound on the logit scale, 100, is reached.")
        fold_temperatures(model, **temperatures)
    return {"num_xrays": len(people), "num_people": len(set(people)), "heads": heads}


def _load_training_xrays(request, accelerator) -> Dataset | CorpusError:
    """The train split, or why there is none."""
    try:
        return load_split(request.data_dir, "train", accelerator)[0]
    except CorpusError as error:
        return error


def _fit_pairs(training, split, probabilities, people: list[str]) -> dict:
    """`pairs` of calibration.json; nothing, with a line that says so, where people of two knees are not given.

    Args:
        probabilities: (N, K) of the split's X-rays, calibrated.
    """
    try:
        if isinstance(training, CorpusError):
            raise training
        return {"pairs": pairs_entry(training, split, probabilities, people)}
    except (CalibrationError, CorpusError) as error:
        print(f"Both knees of a person will not be graded together (--pairs): {error}")
        return {}


def _fit_on_training_xrays(request, model, image_processor, training, split) -> Typicality | None:
    """What the checkpoint keeps of its training X-rays; None, with a line that says so, where none are given."""
    if not request.typical_xrays or isinstance(training, CorpusError):
        told = "will be told as before" if request.keep_weights else "will not be told"
        print(f"X-rays unlike the training data {told}: no training X-rays were given.")
        return None
    return fit_on_xrays(model, image_processor, training, split, request.typical_xrays)
