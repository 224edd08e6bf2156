"""Where training starts: plain CLIP weights, a DINOv2 vision tower, a CLIP-KOA checkpoint, or a small random model."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
from transformers import AutoImageProcessor, AutoModel, CLIPImageProcessor, PreTrainedTokenizerBase
from transformers.image_processing_utils import BaseImageProcessor

from clip_koa.evaluation.loading import CheckpointError, load_tokenizer, readable
from clip_koa.grading.model_loading import check_values
from clip_koa.training.dinov2_vision import dinov2_to_clip_vision, read_dinov2_onnx
from clip_koa.training.run_config import RunConfigError
from clip_koa.training.tokenizer import build_prompt_tokenizer
from modeling_clip_koa import CLIPKOAConfig, CLIPKOAForImageClassification, XrayPreprocessor

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)

# The random starting points, by the name that `model.start` takes.
SMALL_CONFIGURATIONS = {
    "tiny": {
        "vision_config": {
            "hidden_size": 128,
            "intermediate_size": 384,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "image_size": 96,
            "patch_size": 12,
            "hidden_act": "gelu",
        },
        "text_config": {
            "hidden_size": 64,
            "intermediate_size": 128,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "hidden_act": "gelu",
        },
        "projection_dim": 64,
    },
}

# The text tower beside a DINOv2 vision tower: five grades need no larger one.
_SCRATCH_TEXT = {
    "hidden_size": 192,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 3,
    "hidden_act": "gelu",
}
_SCRATCH_PROJECTION = 256
_TEXT_POSITIONS = 77
_DINOV2_SIZE = 224


@dataclass
class StartingPoint:
    """A model ready to be trained, what prepares its inputs, and the names of what is not pretrained in it."""

    model: CLIPKOAForImageClassification
    image_processor: BaseImageProcessor
    tokenizer: PreTrainedTokenizerBase
    new_parameters: tuple[str, ...]  # prefixes of parameter names


def drawn_size(name: str) -> int:
    """Side, in pixels, at which X-rays are drawn for a start: what it reads."""
    small = SMALL_CONFIGURATIONS.get(name)
    return small["vision_config"]["image_size"] if small else _DINOV2_SIZE


def load_starting_point(name: str, prompts: list[list[str]], sample_images: list, **settings) -> StartingPoint:
    """Builds the model that training starts from.

    Args:
        name: `"tiny"`, the ONNX file of a DINOv2 ViT, or a local folder or Hub id of DINOv2, CLIP or CLIP-KOA weights.
        prompts: for each grade, a list of descriptions.
        sample_images: a few dozen X-rays (PIL images), from which a DINOv2 start learns how X-rays look to it.
        **settings: fields of `CLIPKOAConfig`: losses and flip averaging.

    Raises:
        RunConfigError: a name that is none of these, weights of another kind, or a missing package.
    """
    if name in SMALL_CONFIGURATIONS:
        return _random_start(SMALL_CONFIGURATIONS[name], prompts, settings)
    if name.endswith(".onnx"):
        try:
            state_dict = read_dinov2_onnx(name)
        except (ValueError, ImportError) as error:
            raise RunConfigError(f"model.start: {error}") from error
        image_processor = build_image_processor(_DINOV2_SIZE, IMAGENET_MEAN, IMAGENET_STD)
        return _dinov2_start(state_dict, None, image_processor, prompts, sample_images, settings)
    kind = _model_type(name)
    if kind not in ("dinov2", "clip"):
        raise RunConfigError(f"model.start={name!r} is a {kind!r} model: CLIP, CLIP-KOA and DINOv2 weights are known.")
    try:
        if kind == "clip":
            return _clip_start(name, prompts, settings)
        with readable(name):
            source, info = AutoModel.from_pretrained(name, output_loading_info=True)
            image_processor = build_image_processor(_DINOV2_SIZE, *_normalisation(name))
        if info["missing_keys"]:
            raise CheckpointError(f"{name}: its weights lack {min(info['missing_keys'])}.")
    except CheckpointError as error:
        raise RunConfigError(f"model.start: {error}") from error
    heads = source.config.num_attention_heads
    return _dinov2_start(source.state_dict(), heads, image_processor, prompts, sample_images, settings)


def _model_type(name: str) -> str:
    config = Path(name, "config.json")
    if not Path(name).exists():
        try:
            config = Path(hf_hub_download(name, "config.json"))
        except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
            raise RunConfigError(
                f"model.start={name!r} is neither a folder or .onnx file here, nor a model the Hub gives: "
                f"pass one of these, or {', '.join(SMALL_CONFIGURATIONS)}."
            ) from error
    if not config.is_file():
        raise RunConfigError(f"model.start={name!r} holds no config.json: pass a folder written by save_pretrained.")
    try:
        return json.loads(config.read_text(encoding="utf-8")).get("model_type", "unknown")
    except (ValueError, AttributeError) as error:
        raise RunConfigError(f"model.start={name!r} has a damaged config.json ({error}).") from error


def _random_start(configuration: dict, prompts, settings) -> StartingPoint:
    tokenizer = build_prompt_tokenizer(prompts, _TEXT_POSITIONS)
    model = _from_scratch(configuration, tokenizer, prompts, settings)
    size = model.config.vision_config.image_size
    image_processor = build_image_processor(size, (0.5, 0.5, 0.5), (0.25, 0.25, 0.25))
    return StartingPoint(model, image_processor, tokenizer, new_parameters=("",))


def _normalisation(name: str) -> tuple:
    """Mean and standard deviation that DINOv2 weights were trained with: ImageNet's, where they do not say."""
    try:
        source = AutoImageProcessor.from_pretrained(name)
    except OSError:
        return IMAGENET_MEAN, IMAGENET_STD
    return tuple(source.image_mean), tuple(source.image_std)


def _dinov2_start(state_dict, num_attention_heads, image_processor, prompts, sample_images, settings) -> StartingPoint:
    tokenizer = build_prompt_tokenizer(prompts, _TEXT_POSITIONS)
    sample = XrayPreprocessor(image_processor)(sample_images)
    vision_config, vision_weights = dinov2_to_clip_vision(state_dict, sample, num_attention_heads=num_attention_heads)
    configuration = {
        "vision_config": vision_config,
        "text_config": _SCRATCH_TEXT,
        "projection_dim": _SCRATCH_PROJECTION,
    }
    model = _from_scratch(configuration, tokenizer, prompts, settings)
    incompatible = model.vision_model.load_state_dict(vision_weights, strict=False)
    missing = [key for key in incompatible.missing_keys if not key.endswith("position_ids")]
    if missing or incompatible.unexpected_keys:
        raise ValueError(f"The DINOv2 weights do not fit: {missing} missing, {incompatible.unexpected_keys} too many.")
    new = ("classifier", "visual_projection", "text_projection", "text_model", "logit_scale")
    return StartingPoint(model, image_processor, tokenizer, new_parameters=new)


def _clip_start(name: str, prompts, settings) -> StartingPoint:
    # A calibration holds for the weights it was fitted on, not for what is trained from them.
    with readable(name):
        config = CLIPKOAConfig.from_pretrained(name, prompts=prompts, calibration=None, **settings)
        model, info = CLIPKOAForImageClassification.from_pretrained(
            name, config=config, dtype=torch.float32, output_loading_info=True
        )
        image_processor = AutoImageProcessor.from_pretrained(name)
    check_values(name, model)
    new = ("classifier",) if "classifier.weight" in info["missing_keys"] else ()
    return StartingPoint(model, image_processor, load_tokenizer(name, model), new_parameters=new)


def _from_scratch(configuration: dict, tokenizer, prompts, settings) -> CLIPKOAForImageClassification:
    text_config = {
        **configuration["text_config"],
        "vocab_size": len(tokenizer),
        "max_position_embeddings": _TEXT_POSITIONS,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    config = CLIPKOAConfig(
        text_config=text_config,
        vision_config=configuration["vision_config"],
        projection_dim=configuration["projection_dim"],
        prompts=prompts,
        **settings,
    )
    model = CLIPKOAForImageClassification(config)
    model.set_prompts(prompts, tokenizer)
    return model


def build_image_processor(size: int, mean, std) -> BaseImageProcessor:
    return CLIPImageProcessor(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=mean, image_std=std
    )
