"""In which precision a machine grades fastest."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from clip_koa.grading.model_loading import CheckpointError

if TYPE_CHECKING:
    from modeling_clip_koa import CLIPKOAForImageClassification

# fp32; bf16, faster where the hardware has it, and not quite the same; int8, faster still, of an export by OpenVINO
# alone; auto, bf16 where the hardware has it.
PRECISIONS = ("fp32", "bf16", "int8", "auto")


def bf16_is_fast(device: str) -> bool:
    """Whether a torch device computes matrix products in bf16 with hardware of its own."""
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return kind == "mps" or torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def set_precision(model: CLIPKOAForImageClassification, precision: str) -> str:
    """Has the vision tower of a model in fp32, on its device, compute in one of `PRECISIONS`; returns fp32 or bf16.

    Raises:
        CheckpointError: int8, which PyTorch does not compute in here.
        ValueError: another precision.
    """
    if precision not in PRECISIONS:
        raise ValueError(f"There is no precision {precision!r}: use one of {', '.join(PRECISIONS)}.")
    if precision == "int8":
        raise CheckpointError("--precision int8 is OpenVINO's: clip-koa export-openvino makes a model for it.")
    if precision == "fp32" or (precision == "auto" and not bf16_is_fast(model.device)):
        return "fp32"
    tower = model.vision_model
    heads = (model.visual_projection, model.classifier)
    for part in (tower.embeddings.patch_embedding, tower.encoder, tower.post_layernorm, *heads):
        part.to(torch.bfloat16)
    # Tokens are put together and first normalised in fp32, for positions may stand far above what tells tokens apart:
    # those of a tower that started from DINOv2 do.
    tower.pre_layrnorm.register_forward_hook(_to_bf16)
    return "bf16"


def _to_bf16(norm: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor:
    return output.to(torch.bfloat16)
