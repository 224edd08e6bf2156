"""What a model says of changed knee X-rays, and of images that are no knee: the figures of docs/typicality.md.

    python -m studies.typicality_check --model CALIBRATED_MODEL --data_dir FOLDER --split validation

Both are judged by the bound that the model comes with, as `model.grade` judges them.
"""

import argparse
import json
import sys
from collections import Counter

import numpy as np
import torch
from accelerate import Accelerator
from PIL import ImageOps
from tqdm.auto import tqdm

from clip_koa.calibration.typicality import collect_features
from clip_koa.data.loader import sample_images
from clip_koa.evaluation.loading import load_checkpoint, load_split, split_name
from clip_koa.grading.precision import PRECISIONS, set_precision
from dataset_script.exit_status import main_of
from modeling_clip_koa import CalibrationError, XrayPreprocessor
from modeling_clip_koa.appearance_clip_koa import measure_appearance, otherwise
from modeling_clip_koa.calibration_clip_koa import ATYPICAL, Typicality, read_typicality
from studies.other_images import OTHER_IMAGES, SIDE
from studies.radiographs import RADIOGRAPHS
from studies.xray_changes import XRAY_CHANGES

_BATCH_SIZE = 16


class Judge:
    """Says of images whether they are taken for no knee, and in which ways they were taken otherwise.

    Args:
        model, image_processor: of a checkpoint.
        typicality: of the same checkpoint, with bounds.
    """

    def __init__(self, model, image_processor, typicality: Typicality):
        self.model, self.preprocess, self.typicality = model, XrayPreprocessor(image_processor), typicality

    def __call__(self, pictures: list, title: str) -> dict:
        """Shares of pictures (mode L): `no_knee`, `metal`, `refused` for either, `warned` of others, and of `ways`."""
        starts = tqdm(range(0, len(pictures), _BATCH_SIZE), desc=title, unit="batch", leave=False)
        batches = ({"pixel_values": self.preprocess(pictures[start : start + _BATCH_SIZE])} for start in starts)
        shares = np.array(self.typicality.shares(collect_features(self.model, batches)))
        bounds = self.typicality.bounds.tolist()
        ways = [otherwise(measure_appearance(picture), bounds) for picture in pictures]
        no_knee = shares >= ATYPICAL
        metal = np.array(["metal" in found for found in ways]) & ~no_knee  # as `model.grade` has it
        refused, some = no_knee | metal, np.array([bool(found) for found in ways])
        return {
            "images": len(pictures),
            "no_knee": float(no_knee.mean()),
            "metal": float(metal.mean()),
            "refused": float(refused.mean()),
            "warned": float((some & ~refused).mean()),
            "ways": {way: count / len(ways) for way, count in Counter(way for found in ways for way in found).items()},
        }


def check(judge: Judge, knees: list, changed: int) -> dict:
    """What is said of real knees under each of `XRAY_CHANGES`, and of other images.

    Args:
        knees: real ones (mode L), on which nothing was fitted but the bound.
        changed: of them, that the kinds made of knees are made of.
    """
    real = {name: judge([change(knee) for knee in knees], name) for name, change in XRAY_CHANGES.items()}
    chosen = [ImageOps.fit(knee, (SIDE, SIDE)) for knee in knees[:changed]]
    kinds = {kind: make(chosen, np.random.default_rng(0)) for kind, make in OTHER_IMAGES.items()}
    kinds |= {kind: make(SIDE) for kind, make in RADIOGRAPHS.items()}
    return {"knees": real, "others": {kind: judge(images, kind) for kind, images in kinds.items() if images}}


def as_tables(figures: dict) -> str:
    """The figures as Markdown."""
    lines = ["| knee X-rays | number | refused | warned | of what |", "|---|---|---|---|---|"]
    for name, found in figures["knees"].items():
        ways = ", ".join(f"{way} {share:.0%}" for way, share in found["ways"].items() if share >= 0.1)
        lines.append(f"| {name} | {found['images']} | {found['refused']:.1%} | {found['warned']:.0%} | {ways} |")
    lines += ["", "| other images | number | refused | as no knee | as metal |", "|---|---|---|---|---|"]
    for kind, found in figures["others"].items():
        shares = " | ".join(f"{found[name]:.0%}" for name in ("refused", "no_knee", "metal"))
        lines.append(f"| {kind} | {found['images']} | {shares} |")
    return "\n".join(lines)


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the tables; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="What is said of changed knee X-rays and of other images.")
    parser.add_argument(
        "--model", required=True, help="a model that clip-koa calibrate gave the training X-rays' statistics"
    )
    parser.add_argument("--data_dir", help="the corpus (default: $KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--knees", type=int, default=200, help="real knees to change (default: 200)")
    parser.add_argument("--changed", type=int, default=60, help="of them, to make other images of (default: 60)")
    parser.add_argument("--precision", choices=PRECISIONS, default="fp32", help="of the vision tower (default: fp32)")
    parser.add_argument("--json", action="store_true", help="print JSON instead of tables")
    options = parser.parse_args(arguments)
    model, image_processor = load_checkpoint(options.model)
    typicality = read_typicality(options.model, model.config)
    if typicality is None or typicality.bounds is None:
        raise CalibrationError(
            f"--model {options.model} knows no training X-rays, or was calibrated by an earlier version: "
            "calibrate it with them first."
        )
    set_precision(model, options.precision)
    split, _ = load_split(options.data_dir, split_name(options.split), Accelerator(cpu=not torch.cuda.is_available()))
    figures = check(Judge(model, image_processor, typicality), sample_images(split, options.knees), options.changed)
    print(json.dumps(figures, indent=1) if options.json else as_tables(figures))
    return 0


main = main_of("studies.typicality_check", run)


if __name__ == "__main__":
    sys.exit(main())
