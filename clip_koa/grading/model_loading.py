"""A model folder or Hub id in, a model that grades out; or one line that says why it cannot."""

from __future__ import annotations

import textwrap
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from PIL import Image
from safetensors import SafetensorError

from modeling_clip_koa import CLIPKOAError
from modeling_clip_koa.grading_clip_koa import Beside
from modeling_clip_koa.prompts_clip_koa import GRADE_MEANINGS
from modeling_clip_koa.tensors_clip_koa import all_finite

if TYPE_CHECKING:
    from transformers.image_processing_utils import BaseImageProcessor

    from modeling_clip_koa import CLIPKOAConfig, CLIPKOAForImageClassification

_ADVICE = "give a model folder, such as runs/demo/best"


class CheckpointError(CLIPKOAError, ValueError):
    """A model folder or Hub id that cannot grade; the message names it and says why, in one line."""


@contextmanager
def readable(name: str, part: str = ""):
    """While it is open, whatever goes wrong with the files of a model is a `CheckpointError` of one line.

    Args:
        name: model folder or Hub id.
        part: what of it is read, as in "its tokenizer".
    """
    from huggingface_hub.utils import logging as hub_logging
    from transformers.utils import logging  # here: what OpenVINO has compiled grades without transformers

    verbosity, hub_verbosity = logging.get_verbosity(), hub_logging.get_verbosity()
    logging.set_verbosity_error()  # what transformers only warns of is an error here
    hub_logging.set_verbosity_error()  # each of its attempts to reach the Hub
    try:
        yield
    except CheckpointError:
        raise
    except Exception as error:  # a damaged or foreign folder can hold anything
        reason = textwrap.shorten(str(error), 300, placeholder=" ...") or type(error).__name__
        if isinstance(error, SafetensorError):
            reason = f"its weights are damaged ({reason})"
        here = (Path(name) / "config.json").is_file()
        advice = "" if here else f"{_ADVICE}, or a Hub id. "
        subject = f"{name}: {part}" if part else name
        raise CheckpointError(f"{subject} cannot be loaded: {advice}{reason}") from error
    finally:
        logging.set_verbosity(verbosity)
        hub_logging.set_verbosity(hub_verbosity)


def load_config(name: str) -> CLIPKOAConfig:
    """The configuration of a CLIP-KOA checkpoint, or of what was exported from one.

    Args:
        name: model folder or Hub id.

    Raises:
        CheckpointError: none, a damaged one, or one of another model or of other labels than the five grades.
    """
    from modeling_clip_koa import CLIPKOAConfig

    check_name(name)
    with readable(name):
        found, _ = CLIPKOAConfig.get_config_dict(name)
        if not found:  # what transformers gives of a folder without one
            raise CheckpointError(f"{name} holds no config.json: {_ADVICE}.")
        if found.get("model_type") != CLIPKOAConfig.model_type:
            raise CheckpointError(f"{name} is a {found.get('model_type')} model: give a CLIP-KOA checkpoint.")
        if found.get("tokenized_prompts") is None:
            raise CheckpointError(
                f"{name} is a plain CLIP model: give a CLIP-KOA checkpoint, as clip-koa train writes it."
            )
        config = CLIPKOAConfig.from_dict(found)
    if config.num_labels != len(GRADE_MEANINGS):
        raise CheckpointError(f"{name} has {config.num_labels} labels: it must grade 0 to {len(GRADE_MEANINGS) - 1}.")
    return config


def check_name(name: str) -> None:
    """Refuses, as `CheckpointError`, a file in the place of a model folder, and a name that is no Hub id either."""
    if Path(name).is_file():
        raise CheckpointError(f"{name} is a file: {_ADVICE}.")
    if len(Path(name).parts) == 1 and not Path(name).is_dir():
        raise CheckpointError(f"{name} is no folder, and a Hub id is USER/NAME: {_ADVICE}.")


def checked_image_processor(name: str, beside: Beside, image_size: int) -> BaseImageProcessor:
    """The image processor that lies beside a model which reads square images of `image_size` pixels.

    Raises:
        CheckpointError: none, a damaged one, or one that gives images of another size.
    """
    with readable(name, "its image processor"):
        image_processor = beside.image_processor
        given = image_processor([Image.new("RGB", (image_size + 8, image_size))], return_tensors="pt")["pixel_values"]
    if given.shape[2:] != (image_size, image_size):
        raise CheckpointError(
            f"{name}: preprocessor_config.json gives images of {given.shape[3]}x{given.shape[2]} pixels, but its "
            f"model reads {image_size}x{image_size}."
        )
    return image_processor


def load_checkpoint(name: str, **options) -> tuple[CLIPKOAForImageClassification, BaseImageProcessor]:
    """A model in evaluation mode, all of whose weights were found, and the image processor saved beside it.

    Args:
        name: model folder or Hub id.
        **options: for `from_pretrained`, such as `dtype`.

    Raises:
        CheckpointError: no such checkpoint, a damaged one, or one that does not grade 0 to 4.
    """
    from modeling_clip_koa import CLIPKOAForImageClassification  # here, as it brings all of transformers' models

    config = load_config(name)
    with readable(name):
        model, info = CLIPKOAForImageClassification.from_pretrained(name, output_loading_info=True, **options)
    if missing := sorted(info["missing_keys"]):
        raise CheckpointError(f"{name} cannot be loaded: its weights lack {missing[0]}, which train.py writes.")
    check_values(name, model)
    model.config.return_dict = True  # what grades reads outputs by name
    return model.eval(), checked_image_processor(name, model.beside, config.vision_config.image_size)


def check_values(name: str, model: torch.nn.Module) -> None:
    """Refuses, as `CheckpointError`, weights with values that are no finite numbers."""
    for key, weight in model.named_parameters():
        if all_finite(weight) is False:
            raise CheckpointError(f"{name} cannot be loaded: {key} holds values that are no finite numbers.")
