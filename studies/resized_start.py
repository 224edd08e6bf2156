"""Makes of a checkpoint a start that reads images of another size: its position table is interpolated.

    python -m studies.resized_start --model models/clip-koa-small --image_size 336 --output runs/start_336
    clip-koa train --config configs/student.yaml --model.start runs/start_336 --data.corpus FOLDER

The start is to be trained: its temperatures are those of the old size, and it finds no knees.
"""

import argparse
import sys
from pathlib import Path

from clip_koa.evaluation.loading import CheckpointError, load_checkpoint, load_tokenizer
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.dinov2_vision import resize_positions
from clip_koa.training.starting_points import build_image_processor
from dataset_script.exit_status import main_of
from modeling_clip_koa import CLIPKOAConfig, CLIPKOAForImageClassification

_TABLE = "vision_model.embeddings.position_embedding.weight"


def resize_checkpoint(name: str, image_size: int):
    """A checkpoint for images of `image_size` pixels a side, and its image processor; at its own size the same model.

    Raises:
        CheckpointError: no such checkpoint, or a size that its patches do not fill.
    """
    source, processor = load_checkpoint(name)
    patch = source.config.vision_config.patch_size
    if image_size < patch or image_size % patch:
        raise CheckpointError(
            f"--image_size {image_size}: patches of {name} are {patch} pixels wide; give a multiple."
        )
    settings = source.config.to_dict()
    settings["vision_config"]["image_size"] = image_size
    settings["calibration"] = None
    model = CLIPKOAForImageClassification(CLIPKOAConfig.from_dict(settings))
    weights = source.state_dict()
    weights[_TABLE] = resize_positions(weights[_TABLE], image_size // patch)
    model.load_state_dict(weights)
    return model.eval(), build_image_processor(image_size, processor.image_mean, processor.image_std)


def run(arguments: list[str] | None, prog: str) -> None:
    """Writes the start."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--model", required=True, help="model folder or Hub id")
    parser.add_argument("--image_size", required=True, type=int, help="side in pixels, a multiple of the patches'")
    parser.add_argument("--output", required=True, type=Path, help="folder to write to")
    options = parser.parse_args(arguments)
    model, processor = resize_checkpoint(options.model, options.image_size)
    save_model_folder(options.output, model, processor, load_tokenizer(options.model, model))
    print(f"Start:  {options.output}")


main = main_of("studies.resized_start", run)


if __name__ == "__main__":
    sys.exit(main())
