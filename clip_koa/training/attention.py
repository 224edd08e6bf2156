"""The attention that trains fastest on a CPU."""

import torch
from transformers import AttentionInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.clip.modeling_clip import eager_attention_forward

from modeling_clip_koa import CLIPKOAForImageClassification

# The name transformers knows it by; configurations that are saved do not hold it.
FASTEST_ON_CPU = "clip_koa_fastest_on_cpu"


def choose_attention(model: CLIPKOAForImageClassification, device: torch.device) -> None:
    """On a CPU, attention that a gradient goes through is written out; elsewhere nothing changes.

    PyTorch's fused kernel has the faster forward pass, so evaluation and frozen blocks keep it, but a slow backward
    pass (docs/performance.md). The model is the same to rounding; what is saved does not tell the difference.
    """
    if device.type == "cpu":
        AttentionInterface.register(FASTEST_ON_CPU, _fastest_on_cpu)
        # The text tower keeps the one that transformers makes its causal mask for: it is a small part of a step.
        model.set_attn_implementation({"vision_config": FASTEST_ON_CPU})


def _fastest_on_cpu(module: torch.nn.Module, query: torch.Tensor, *arguments, **options):
    attend = eager_attention_forward if query.requires_grad else sdpa_attention_forward
    return attend(module, query, *arguments, **options)
