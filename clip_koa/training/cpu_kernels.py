"""What trains fastest on a CPU: the same functions, with fewer passes over memory."""

import torch
from torch import nn
from transformers import AttentionInterface
from transformers.activations import QuickGELUActivation
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_outputs import BaseModelOutput
from transformers.models.clip.modeling_clip import CLIPEncoder

from modeling_clip_koa import CLIPKOAForImageClassification

# The name transformers knows the attention by; configurations that are saved do not hold it.
ATTENTION = "clip_koa_on_cpu"
# What a forward pass can be asked to record of each block.
_RECORDED = ("output_attentions", "output_hidden_states")
_SLOPE = 1.702  # of CLIP's approximation of GELU, x * sigmoid(1.702 x)


def choose_kernels(model: CLIPKOAForImageClassification, device: torch.device) -> None:
    """Gives the vision tower what trains fastest on a CPU; elsewhere nothing changes.

    It is used where a gradient goes through; frozen blocks and evaluation compute what a loaded checkpoint does, to
    the bit. The gradients are the same to rounding; what is saved does not tell. docs/notebook/performance_trials.md
    has the times.
    """
    if device.type != "cpu" or model.config.vision_config._attn_implementation == ATTENTION:
        return
    AttentionInterface.register(ATTENTION, _attend)
    # The text tower keeps the one that transformers makes its causal mask for: it is a small part of a step.
    model.set_attn_implementation({"vision_config": ATTENTION})
    # By its class, so that names of weights, copies and what is saved stay as they are.
    model.vision_model.encoder.__class__ = _EncoderByView
    model.register_forward_pre_hook(_count_xrays, with_kwargs=True)
    for layer in model.vision_model.encoder.layers:
        layer.layer_norm1.register_forward_hook(_cast_once)
        if isinstance(layer.mlp.activation_fn, QuickGELUActivation):
            layer.mlp.activation_fn = _QuickGELU()


class _EncoderByView(CLIPEncoder):
    """Takes the X-rays and then their mirror images while training.

    What the backward pass keeps then fits a CPU's cache better: up to a fifth faster.
    """

    xrays = 0  # in the batch, as `_count_xrays` counts them; 0: take all at once

    def forward(self, inputs_embeds: torch.Tensor, *inputs, **options) -> BaseModelOutput:
        if not self.training or len(inputs_embeds) != 2 * self.xrays:
            return super().forward(inputs_embeds, *inputs, **options)
        found = []
        for view in inputs_embeds.split(self.xrays):
            found.append(super().forward(view, *inputs, **options).last_hidden_state)
        return BaseModelOutput(last_hidden_state=torch.cat(found))


def _count_xrays(model: CLIPKOAForImageClassification, arguments: tuple, options: dict) -> None:
    configs = (model.config, model.config.vision_config)
    asked = [options.get(name) or any(getattr(config, name, False) for config in configs) for name in _RECORDED]
    pixel_values = options.get("pixel_values", arguments[0] if arguments else ())
    # What is recorded of each block is recorded of both views together.
    model.vision_model.encoder.xrays = 0 if any(asked) else len(pixel_values)


def _cast_once(norm: nn.Module, inputs: tuple, output: torch.Tensor) -> torch.Tensor | None:
    """Under autocast a norm gives fp32, which queries, keys and values would each cast by themselves, and back."""
    kind = output.device.type
    if output.requires_grad and torch.is_autocast_enabled(kind):
        return output.to(torch.get_autocast_dtype(kind))
    return None


def _attend(
    module: nn.Module, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, attention_mask, scaling: float,
    dropout: float = 0.0, **options,
):  # fmt: skip
    """Attention of (N, heads, L, D) to (N, L, heads, D), written out where it is trained in less than fp32.

    There PyTorch's fused kernel has the faster forward pass but a slow backward pass. Softmax stays in the scores'
    precision; its sums are in fp32 inside.
    """
    if not query.requires_grad or query.dtype == torch.float32 or attention_mask is not None or dropout:
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, scaling=scaling, dropout=dropout, **options
        )
    with torch.autocast(query.device.type, enabled=False):
        weights = ((query * scaling) @ key.transpose(-1, -2)).softmax(-1)
        return (weights @ value).transpose(1, 2).contiguous(), None


class _QuickGELU(QuickGELUActivation):
    """With one pass over memory in place of five for its gradient."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:
        return _QuickGELUGradient.apply(input) if input.requires_grad else super().forward(input)


class _QuickGELUGradient(torch.autograd.Function):
    """With y = 1.702 x it is silu(y) / 1.702, whose derivative by x is that of silu by y."""

    @staticmethod
    def forward(context, x: torch.Tensor) -> torch.Tensor:
        y = x * _SLOPE
        context.save_for_backward(y)
        return nn.functional.silu(y).mul_(1 / _SLOPE)

    @staticmethod
    def backward(context, gradient: torch.Tensor) -> torch.Tensor:
        (y,) = context.saved_tensors
        return torch.ops.aten.silu_backward(gradient, y)
