"""A DINOv2 vision tower under CLIP's key names (Oquab et al. 2023, arXiv 2304.07193).

DINOv2 and CLIP's vision tower differ in four places, and each can be folded away: LayerScale into the projections
before it, the bias of the patch projection into the position table, the size of the position table by interpolation,
and CLIP's layernorm before the first block, which stays but is made almost an identity.
"""

import re
from pathlib import Path

import torch
import torch.nn.functional as F

# How far the pre-layernorm's constant stands above the tokens it must not change, as a multiple of their rms. The
# lowest cosine of the class features to DINOv2's own, over unseen X-rays, is .9968 at 10, .9995 at 30 and .9999 at 60;
# larger values cost digits in half precision.
CONSTANT_RATIO = 30.0

# Key of the position table, (1, 1 + patches, hidden), in a `Dinov2Model`.
POSITIONS = "embeddings.position_embeddings"

# Names of the attention projections: those of transformers 4 and of published files, and those of transformers 5.
_ATTENTION_NAMES = {
    "attention.attention.query": "attention.q_proj",
    "attention.attention.key": "attention.k_proj",
    "attention.attention.value": "attention.v_proj",
    "attention.output.dense": "attention.o_proj",
}
_HEAD_WIDTH = 64  # of every published DINOv2


def read_dinov2_onnx(path: str | Path) -> dict[str, torch.Tensor]:
    """Reads the DINOv2 backbone out of an ONNX file, under the key names of transformers 5's `Dinov2Model`.

    Args:
        path: ONNX file whose backbone was exported from a `Dinov2Model` called `backbone`.

    Raises:
        ImportError: the package onnx is not installed.
        ValueError: no such file, or one without such a backbone.
    """
    try:
        import onnx
    except ImportError as error:
        raise ImportError(f"Reading {path} needs onnx: pip install 'clip-koa[vision-weights]'.") from error
    if not Path(path).is_file():
        raise ValueError(f"{path}: there is no such file. `make vision-weights` fetches the DINOv2 ViT-S/14 it names.")
    try:
        graph = onnx.load(str(path)).graph
    except Exception as error:  # onnx passes on protobuf's own exceptions
        raise ValueError(f"{path} is not an ONNX file.") from error

    tensors = {
        tensor.name: torch.from_numpy(onnx.numpy_helper.to_array(tensor).copy()) for tensor in graph.initializer
    }
    state = {name.removeprefix("backbone."): value for name, value in tensors.items() if name.startswith("backbone.")}
    class_position = patch_positions = None
    for node in graph.node:
        # The exporter transposes linear weights and gives them new names: the node's own name tells the layer.
        if node.op_type == "MatMul" and node.name.startswith("/backbone/") and node.input[1] in tensors:
            key = node.name.removeprefix("/backbone/").removesuffix("/MatMul").replace("/", ".")
            state[f"{key}.weight"] = tensors[node.input[1]].t().contiguous()
        # It also splits the position table into the class token's row and the patches'.
        elif node.name.startswith("/backbone/embeddings/") and node.input and node.input[0] in tensors:
            if node.op_type == "Reshape":
                patch_positions = tensors[node.input[0]]
            elif node.op_type == "Concat":
                class_position = tensors[node.input[0]]
    if class_position is None or patch_positions is None or "embeddings.cls_token" not in state:
        raise ValueError(f"{path} holds no DINOv2 backbone exported from transformers.")
    state[POSITIONS] = torch.cat([class_position, patch_positions], dim=1)  # (1, 1 + patches, hidden)
    return _with_new_names(state)


@torch.no_grad()
def dinov2_to_clip_vision(
    state_dict: dict[str, torch.Tensor],
    sample_pixel_values: torch.Tensor,
    num_attention_heads: int | None = None,
) -> tuple[dict, dict[str, torch.Tensor]]:
    """Converts the weights of a `Dinov2Model` to those of a `CLIPVisionModel` with the same features.

    Args:
        state_dict: of a `Dinov2Model`, with an MLP (not SwiGLU) and without register tokens.
        sample_pixel_values: a few dozen normalised X-rays, (N, 3, H, W), of the size the tower will read.
        num_attention_heads: of the tower; default: hidden size / 64, as in every published DINOv2.

    Returns:
        Keyword arguments of the `CLIPVisionConfig`, and the state dict.

    Raises:
        ValueError: another architecture.
    """
    if "encoder.layer.0.mlp.fc1.weight" not in state_dict or "embeddings.register_tokens" in state_dict:
        raise ValueError("These weights are no plain DINOv2 (ViT-S, B or L with an MLP, without register tokens).")
    state_dict = _with_new_names(state_dict)
    patch_weight = state_dict["embeddings.patch_embeddings.projection.weight"].float()  # (hidden, 3, patch, patch)
    hidden_size, _, patch_size, _ = patch_weight.shape
    image_size = sample_pixel_values.shape[-1]
    positions = resize_positions(state_dict[POSITIONS].float()[0], image_size // patch_size)  # (1 + patches, hidden)
    positions[1:] += state_dict["embeddings.patch_embeddings.projection.bias"].float()
    class_token = state_dict["embeddings.cls_token"].float().flatten()

    patches = F.conv2d(sample_pixel_values.float(), patch_weight, stride=patch_size).flatten(2).transpose(1, 2)
    tokens = (
        torch.cat([class_token.expand(len(patches), 1, -1), patches], dim=1) + positions
    )  # (N, 1 + patches, hidden)
    constant, scale = _near_identity_layernorm(tokens.flatten(0, 1))

    converted = {
        "embeddings.class_embedding": class_token,
        "embeddings.patch_embedding.weight": patch_weight,
        "embeddings.position_embedding.weight": positions + constant,
        "pre_layrnorm.weight": torch.full((hidden_size,), scale),
        "pre_layrnorm.bias": -constant,
        "post_layernorm.weight": state_dict["layernorm.weight"],
        "post_layernorm.bias": state_dict["layernorm.bias"],
    }
    num_layers = 1 + max(int(match[1]) for key in state_dict if (match := re.match(r"encoder\.layer\.(\d+)\.", key)))
    for layer in range(num_layers):
        converted |= _convert_layer(state_dict, layer)
    config = {
        "hidden_size": hidden_size,
        "intermediate_size": len(state_dict["encoder.layer.0.mlp.fc1.bias"]),
        "num_hidden_layers": num_layers,
        "num_attention_heads": num_attention_heads or hidden_size // _HEAD_WIDTH,
        "image_size": image_size,
        "patch_size": patch_size,
        "hidden_act": "gelu",
        "layer_norm_eps": 1e-6,
    }
    return config, {name: tensor.float().contiguous() for name, tensor in converted.items()}


def _with_new_names(state_dict: dict) -> dict:
    def rename(name):
        for old, new in _ATTENTION_NAMES.items():
            name = name.replace(old, new)
        return name

    return {rename(name): tensor for name, tensor in state_dict.items()}


def _convert_layer(state_dict: dict, layer: int) -> dict[str, torch.Tensor]:
    source, target = f"encoder.layer.{layer}.", f"encoder.layers.{layer}."
    converted = {}
    for ours, theirs in {
        "layer_norm1": "norm1",
        "layer_norm2": "norm2",
        "self_attn.q_proj": "attention.q_proj",
        "self_attn.k_proj": "attention.k_proj",
        "self_attn.v_proj": "attention.v_proj",
        "mlp.fc1": "mlp.fc1",
    }.items():
        for part in ("weight", "bias"):
            converted[f"{target}{ours}.{part}"] = state_dict[f"{source}{theirs}.{part}"]
    for ours, theirs, layer_scale in (
        ("self_attn.out_proj", "attention.o_proj", "layer_scale1.lambda1"),
        ("mlp.fc2", "mlp.fc2", "layer_scale2.lambda1"),
    ):
        factor = state_dict.get(source + layer_scale, torch.ones(()))  # per output channel
        converted[f"{target}{ours}.weight"] = state_dict[f"{source}{theirs}.weight"] * factor.unsqueeze(-1)
        converted[f"{target}{ours}.bias"] = state_dict[f"{source}{theirs}.bias"] * factor
    return converted


def resize_positions(table: torch.Tensor, grid: int) -> torch.Tensor:
    """Bicubic interpolation of the patches' rows of (1 + S*S, hidden) to (1 + grid*grid, hidden), as DINOv2 does."""
    side = round((len(table) - 1) ** 0.5)
    if side == grid:
        return table.clone()
    patches = table[1:].view(1, side, side, -1).permute(0, 3, 1, 2)
    patches = F.interpolate(patches, size=(grid, grid), mode="bicubic", align_corners=False)
    return torch.cat([table[:1], patches.permute(0, 2, 3, 1).flatten(0, 2)])


def _near_identity_layernorm(tokens: torch.Tensor) -> tuple[torch.Tensor, float]:
    """The constant that makes a layernorm almost an identity on `tokens` (M, hidden), and the weight to go with it.

    With a constant c (mean 0) added to every token, in the direction in which tokens vary least, the norm hardly
    depends on the token: layernorm times sqrt(c's variance + mean variance), less c, gives the token back, up to its
    mean over channels, which no later layer can see because each reads through a layernorm.
    """
    centred = (tokens - tokens.mean(dim=-1, keepdim=True)).double()
    second_moment = centred.t() @ centred / len(centred)
    # The vector of ones is an eigenvector too, with eigenvalue 0: lift it out of the way.
    size = len(second_moment)
    lifted = second_moment + second_moment.trace() / size
    direction = torch.linalg.eigh(lifted).eigenvectors[:, 0]
    variance = centred.square().mean().item()
    constant_variance = CONSTANT_RATIO**2 * variance
    return (direction * (size * constant_variance) ** 0.5).float(), (constant_variance + variance) ** 0.5
