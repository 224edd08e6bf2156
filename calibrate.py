"""Calibrate a CLIP-KOA checkpoint on a split it was not trained on.

    python calibrate.py --model runs/small/best --data_dir FOLDER --split validation

fits a temperature for each head and divides it into the weights, so that every way to load the checkpoint gives
calibrated probabilities, and writes calibration.json beside them: the thresholds of the confidence sets that
predict.py shows, and the figures. The checkpoint is replaced whole, or written to --output. Research only, no medical
device.
"""

import argparse
import json
import math
import sys
from contextlib import suppress
from pathlib import Path

from accelerate import Accelerator
from torch.utils.data import DataLoader
from tqdm.auto import tqdm

from clip_koa.calibration.temperatures import (
    cross_fitted,
    describe,
    fit_temperature,
    fold_temperatures,
    thresholds_by_level,
)
from clip_koa.calibration.typicality import collect_features, fit_typicality, typicality_block, typicality_file
from clip_koa.data.loader import XrayDataset
from clip_koa.evaluation.heads import Predictions, predict
from clip_koa.evaluation.loading import CheckpointError, load_checkpoint, load_split, load_tokenizer, split_name
from clip_koa.evaluation.predictions import pseudonyms
from clip_koa.files import WriteError
from clip_koa.locks import InUseError, WriterLock
from clip_koa.memory import keep_freed_memory
from clip_koa.training.checkpoints import SaveError, save_model_folder
from clip_koa.training.recording import only_writer
from dataset_script.knee_xray import CorpusError
from dataset_script.radiograph import RadiographError
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE, CalibrationError
from modeling_clip_koa.grader_clip_koa import Typicality


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description="Calibrate a CLIP-KOA checkpoint on a split it was not trained on.")
    parser.add_argument("--model", required=True, help="model folder, such as runs/small/best, or Hub id")
    parser.add_argument("--data_dir", help="folder of knee X-rays (default: the environment's KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation", type=split_name, help="default: validation")
    parser.add_argument("--level", type=float, default=0.9, help="of the sets that are reported on (default: 0.9)")
    parser.add_argument(
        "--typical_xrays", type=int, default=2000,
        help="training X-rays, evenly out of the train split, from which the model learns to tell images unlike them "
        "(default: 2000; 0: none)",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, help="folder to write to (default: the model's own)")
    options = parser.parse_args(arguments)
    if not 0.5 <= options.level < 1:
        parser.error(f"--level {options.level}: it must be at least 0.5 and below 1.")
    if options.typical_xrays < 0:
        parser.error(f"--typical_xrays {options.typical_xrays}: it must be at least 0.")
    if not options.output and not Path(options.model).is_dir():
        parser.error(f"--model {options.model} is no folder to write to: name one by --output.")
    return options


def calibrate(model, predictions: Predictions, people: list[str], level: float) -> dict:
    """Folds both heads' temperatures into the model; returns what calibration.json holds.

    The text head is fitted as it is read, averaged over both views, and the linear head as stock pipelines run it.
    """
    heads, temperatures = {}, {}
    for name, head in {"text": "text_flip_averaged", "linear": "linear"}.items():
        logits = predictions.of_head(head)[0]
        temperatures[name] = fit_temperature(logits, predictions.labels)
        fitted = cross_fitted(logits, predictions.labels, people, level)
        del fitted["probabilities"]
        heads[name] = {"read_by": head, "temperature": temperatures[name], **fitted}
    fold_temperatures(model, **temperatures)
    calibrated = predictions.of_head("text_flip_averaged")[0] / temperatures["text"]
    return {
        "num_xrays": len(people),
        "num_people": len(set(people)),
        "heads": heads,
        "thresholds": thresholds_by_level(calibrated, predictions.labels),
    }


def fit_on_training_xrays(options, model, image_processor, split, accelerator) -> Typicality | None:
    """What the checkpoint keeps of its training X-rays; None, with a line that says so, where none are given."""
    training = None
    if options.typical_xrays:
        with suppress(CorpusError):
            training, _ = load_split(options.data_dir, "train", accelerator)
    if training is None:
        print("X-rays unlike the training data will not be told: no training X-rays were given.")
        return None
    training = training.select(range(0, len(training), math.ceil(len(training) / options.typical_xrays)))

    def features(xrays, title):
        batches = DataLoader(XrayDataset(xrays, image_processor), batch_size=16)
        return collect_features(model, tqdm(batches, desc=title, unit="batch"))

    unseen = features(split, f"{options.split}, how typical")
    return fit_typicality(typicality_block(model), features(training, "training X-rays"), unseen)


def main(arguments: list[str] | None = None) -> int:
    """Calibrates; returns the exit status."""
    options = parse_options(arguments)
    keep_freed_memory()
    accelerator = Accelerator(mixed_precision="no")
    folder = options.output or Path(options.model)
    with only_writer(accelerator, WriterLock(folder)):
        write_calibrated(options, accelerator, folder)
    return 0


def write_calibrated(options: argparse.Namespace, accelerator: Accelerator, folder: Path) -> None:
    """Calibrates the checkpoint and writes it into `folder`."""
    split, digest = load_split(options.data_dir, options.split, accelerator)
    model, image_processor = load_checkpoint(options.model)
    tokenizer = load_tokenizer(options.model, model)
    model = model.to(accelerator.device)
    batches = accelerator.prepare(DataLoader(XrayDataset(split, image_processor), batch_size=16))
    predictions = predict(model, tqdm(batches, desc=options.split, unit="batch"), accelerator)
    people = pseudonyms(list(split["file"]), list(split["person_id"]))
    report = calibrate(model.to("cpu"), predictions, people, options.level)
    report = {"split": options.split, "data_digest": digest, **report}
    typicality = fit_on_training_xrays(options, model.to(accelerator.device), image_processor, split, accelerator)
    files = {CALIBRATION_FILE: json.dumps(report, indent=1).encode()}
    if typicality:
        files[TYPICALITY_FILE] = typicality_file(typicality)
    save_model_folder(folder, model, image_processor, tokenizer, files)
    print(f"{describe(report)}\nModel:  {folder}")


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InUseError as error:
        print(f"calibrate.py: {error}", file=sys.stderr)
        sys.exit(2)
    except (
        CalibrationError, CheckpointError, CorpusError, RadiographError, SaveError, WriteError, FloatingPointError,
    ) as error:  # fmt: skip
        sys.exit(f"calibrate.py: {error}")
