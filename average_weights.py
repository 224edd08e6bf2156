"""The mean of the weights of CLIP-KOA checkpoints of the same start, such as several seeds, as one checkpoint.

    python average_weights.py runs/seed0/best runs/seed1/best --output runs/averaged

Runs that go on from the same weights end close enough to each other that the mean of their weights is a good model
too, often a better one, at the cost of one (model soup, Wortsman et al. 2022, arXiv 2203.05482). Runs of other starts
do not: evaluate what comes out. Research only, no medical device.
"""

import argparse
import sys
from pathlib import Path

import torch
from transformers.image_processing_utils import BaseImageProcessor

from clip_koa.evaluation.loading import CheckpointError, load_checkpoint, load_tokenizer
from clip_koa.files import WriteError
from clip_koa.locks import InUseError, WriterLock
from clip_koa.training.checkpoints import SaveError, save_model_folder
from modeling_clip_koa import CLIPKOAForImageClassification

# What two checkpoints of one model may differ in.
_INCIDENTAL = {"_name_or_path", "transformers_version"}


def average(names: list[str]) -> tuple[CLIPKOAForImageClassification, BaseImageProcessor]:
    """The model whose every weight is the mean of those of the named checkpoints, in their precision.

    Its image processor is that of the first.

    Raises:
        CheckpointError: one that cannot be loaded, is calibrated already, or is of another model than the first.
    """
    mean = image_processor = config = None
    for count, name in enumerate(names, start=1):
        model, processor = load_checkpoint(name)
        if model.config.calibration:
            raise CheckpointError(
                f"{name} is calibrated already, and the mean's calibration is another: name what train.py wrote, then "
                "run calibrate.py on the mean."
            )
        settings = {key: value for key, value in model.config.to_dict().items() if key not in _INCIDENTAL}
        if mean is None:
            mean, image_processor, config = model, processor, settings
            continue
        for key in config | settings:
            if config.get(key) != settings.get(key):
                raise CheckpointError(
                    f"{name} and {names[0]} differ in {key} of their config.json: name checkpoints of one recipe."
                )
        with torch.no_grad():
            for weight, other in zip(mean.parameters(), model.parameters(), strict=True):
                weight.lerp_(other, 1 / count)
    return mean, image_processor


def main(arguments: list[str] | None = None) -> int:
    """Averages and saves; returns the exit status."""
    parser = argparse.ArgumentParser(description="The mean of the weights of CLIP-KOA checkpoints, as one checkpoint.")
    parser.add_argument("models", nargs="+", metavar="MODEL", help="two model folders or more, or Hub ids")
    parser.add_argument("--output", type=Path, required=True, help="folder to write to")
    options = parser.parse_args(arguments)
    if len(options.models) < 2:
        parser.error("name two checkpoints or more.")
    with WriterLock(options.output):
        model, image_processor = average(options.models)
        save_model_folder(options.output, model, image_processor, load_tokenizer(options.models[0], model))
    print(f"Model:  {options.output}")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except InUseError as error:
        print(f"average_weights.py: {error}", file=sys.stderr)
        sys.exit(2)
    except (CheckpointError, SaveError, WriteError) as error:
        sys.exit(f"average_weights.py: {error}")
