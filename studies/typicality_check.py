"""How well images unlike the training X-rays are told, by kind, and how often real knees are called so.

    python -m studies.typicality_check --model CALIBRATED_MODEL --data_dir FOLDER --split validation

The people of the split are parted: one half's distances set the bounds, the other half's X-rays are the false alarms.
"""

import argparse
import json
import sys

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Image
from PIL import ImageOps
from sklearn.metrics import roc_auc_score
from tqdm.auto import tqdm

from clip_koa.calibration.typicality import collect_features
from clip_koa.evaluation.loading import load_checkpoint, load_split, split_name
from clip_koa.evaluation.predictions import pseudonyms
from dataset_script.exit_status import main_of
from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import CalibrationError, XrayPreprocessor
from modeling_clip_koa.calibration_clip_koa import read_typicality
from studies.other_images import OTHER_IMAGES, SIDE

FALSE_ALARMS = (0.05, 0.01)
_BATCH_SIZE = 16


def check(model, image_processor, typicality, split, changed: int) -> dict:
    """Detection of every kind of image.

    Args:
        changed: real knees that the kinds made of knees are made of.

    Returns:
        `false_alarms`: for each of `FALSE_ALARMS`, how many of the other half's real knees are called unlike; `kinds`:
        number, AUROC against them, and the share told at each.
    """
    undecoded = split.cast_column("image", Image(decode=False))
    preprocess = XrayPreprocessor(image_processor)

    def knee(index: int):
        return read_stored_image(undecoded[int(index)]["image"])

    def measure(images, title) -> np.ndarray:
        starts = tqdm(range(0, len(images), _BATCH_SIZE), desc=title, unit="batch", leave=False)
        batches = ({"pixel_values": preprocess(images[start : start + _BATCH_SIZE])} for start in starts)
        return typicality.measure(collect_features(model, batches)).numpy()

    people = pseudonyms(list(split["file"]), list(split["person_id"]))
    names = sorted(set(people))
    first = set(np.random.default_rng(0).permutation(names)[: len(names) // 2].tolist())
    distances = measure([knee(index) for index in range(len(split))], "real knees")
    in_first = np.array([person in first for person in people])
    bounds = [np.quantile(distances[in_first], 1 - share) for share in FALSE_ALARMS]
    real = distances[~in_first]

    chosen = np.linspace(0, len(split) - 1, min(changed, len(split))).round().astype(int)
    knees = [ImageOps.fit(knee(index), (SIDE, SIDE)) for index in chosen]
    kinds = {}
    for kind, make in OTHER_IMAGES.items():
        if images := make(knees, np.random.default_rng(0)):
            found = measure(images, kind)
            truth = np.r_[np.zeros(len(real)), np.ones(len(found))]
            kinds[kind] = {
                "images": len(images),
                "auroc": float(roc_auc_score(truth, np.r_[real, found])),
                **{f"told_at_{share:.0%}": float((found > bound).mean()) for share, bound in _zip(bounds)},
            }
    return {
        "false_alarms": {f"{share:.0%}": float((real > bound).mean()) for share, bound in _zip(bounds)},
        "kinds": kinds,
    }


def _zip(bounds):
    return zip(FALSE_ALARMS, bounds, strict=True)


def as_table(figures: dict) -> str:
    """The figures as Markdown."""
    lines = [
        f"| images | number | AUROC | {' | '.join(f'told at {share:.0%}' for share in FALSE_ALARMS)} |",
        "|---|---|---|" + "---|" * len(FALSE_ALARMS),
    ]
    for kind, found in figures["kinds"].items():
        told = " | ".join(f"{found[f'told_at_{share:.0%}']:.0%}" for share in FALSE_ALARMS)
        lines.append(f"| {kind} | {found['images']} | {found['auroc']:.3f} | {told} |")
    alarms = " | ".join(f"{share:.1%}" for share in figures["false_alarms"].values())
    return "\n".join([*lines, f"| real knees of other people | | | {alarms} |"])


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="How well images unlike the training X-rays are told.")
    parser.add_argument(
        "--model", required=True, help="a model that clip-koa calibrate gave the training X-rays' statistics"
    )
    parser.add_argument("--data_dir", help="the corpus (default: $KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--changed", type=int, default=100, help="real knees to make other images of (default: 100)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args(arguments)
    model, image_processor = load_checkpoint(options.model)
    if (typicality := read_typicality(options.model, model.config)) is None:
        raise CalibrationError(f"--model {options.model} knows no training X-rays: calibrate it with them first.")
    split, _ = load_split(options.data_dir, split_name(options.split), Accelerator(cpu=not torch.cuda.is_available()))
    figures = check(model, image_processor, typicality, split, options.changed)
    print(json.dumps(figures, indent=1) if options.json else as_table(figures))
    return 0


main = main_of("studies.typicality_check", run)


if __name__ == "__main__":
    sys.exit(main())
