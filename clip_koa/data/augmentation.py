"""Gentle augmentation of X-rays, on the training device and in batches.

Small rotations, shifts and scalings, changes of brightness, contrast and gamma, blur and sharpening, as positioning,
exposure, detectors and software vary them. Mirroring is off unless asked for: the model's forward pass makes the
mirror image itself.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F

from clip_koa.data.randomness import stream

MAX_BLUR = 0.008  # standard deviation of the Gaussian, of the side
MAX_SHARPENING = 1.0  # amount of the unsharp mask
UNSHARP_RADIUS = 0.005  # standard deviation of its Gaussian, of the side


class AugmentationBounds(NamedTuple):
    """How far an X-ray is changed at most, either way, at strength 1."""

    rotation: float = math.radians(7)
    shift: float = 0.04  # of the side
    scale: float = 0.08
    brightness: float = 0.10  # of full white
    contrast: float = 0.20
    log_gamma: float = 0.20
    sharpness: float = 1.0  # share of `MAX_BLUR` and of `MAX_SHARPENING`


DEFAULT_BOUNDS = AugmentationBounds()


class Augmentation:
    """Augments normalised X-rays; what it does to one depends only on the seed, the epoch and the X-ray's index.

    So the batch size, the number of processes and a resume change nothing.

    Args:
        strength: factor on all bounds; 0 leaves X-rays as they are.
        image_mean, image_std: the normalisation of the image processor, three channels.
        seed: of the run.
        flip: chance that an X-ray is mirrored, for runs whose losses do not look at the mirror image.
        bounds: of the changes.
    """

    def __init__(
        self,
        strength: float,
        image_mean,
        image_std,
        seed: int,
        flip: float = 0.0,
        bounds: AugmentationBounds = DEFAULT_BOUNDS,
    ):
        self.strength = strength
        rotation, shift, *others = bounds
        self.bounds = torch.tensor([rotation, shift, shift, *others], dtype=torch.float32)  # (8,)
        self.flip = flip
        self.mean = torch.tensor(image_mean).view(1, -1, 1, 1)
        self.std = torch.tensor(image_std).view(1, -1, 1, 1)
        self.seed = seed

    def __call__(self, pixel_values: torch.Tensor, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        """(N, 3, H, W) normalised grayscale X-rays with their indices (N,) in the split -> augmented, same shape."""
        if self.flip:
            mirrored = self._draw_flips(indices, epoch).to(pixel_values.device)  # (N,)
            pixel_values = torch.where(mirrored.view(-1, 1, 1, 1), pixel_values.flip(-1), pixel_values)
        if self.strength == 0:
            return pixel_values
        device = pixel_values.device
        mean, std = self.mean.to(device), self.std.to(device)
        draws = self._draw(indices, epoch).to(device)  # (N, 8)
        rotation, shift_x, shift_y, scale, brightness, contrast, log_gamma, sharpness = draws.unbind(1)

        gray = pixel_values[:, :1] * std[:, :1] + mean[:, :1]  # (N, 1, H, W), in 0..1
        gray = gray.clamp(0, 1).pow(log_gamma.exp().view(-1, 1, 1, 1))
        gray = (gray - 0.5) * (1 + contrast).view(-1, 1, 1, 1) + 0.5 + brightness.view(-1, 1, 1, 1)
        cos, sin = rotation.cos() / (1 + scale), rotation.sin() / (1 + scale)
        rows = torch.stack([cos, -sin, 2 * shift_x, sin, cos, 2 * shift_y], dim=1)
        grid = F.affine_grid(rows.view(-1, 2, 3), list(gray.shape), align_corners=False)
        # The border is repeated, for a black margin would be a cue that real X-rays lack. Bilinear sampling would
        # soften all X-rays, and a model so trained grades too low those that it meets as they are.
        gray = F.grid_sample(gray.clamp(0, 1), grid, mode="bicubic", padding_mode="border", align_corners=False)
        return (_sharpen(gray, sharpness).clamp(0, 1) - mean).div_(std)

    def _draw(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        """Uniform draws within the bounds, (N, 8)."""
        rows = []
        for index in indices.tolist():
            rows.append(stream("augmentation", self.seed, epoch, index).uniform(-1, 1, len(self.bounds)))
        return torch.tensor(np.stack(rows), dtype=torch.float32) * self.bounds * self.strength

    def _draw_flips(self, indices: torch.Tensor, epoch: int) -> torch.Tensor:
        """Which X-rays are mirrored, (N,)."""
        draws = [stream("flip", self.seed, epoch, index).random() for index in indices.tolist()]
        return torch.tensor(draws) < self.flip


def _sharpen(gray: torch.Tensor, sharpness: torch.Tensor) -> torch.Tensor:
    """Blurs (N, 1, H, W) X-rays where `sharpness` (N,) is below 0, by `MAX_BLUR` at -1; sharpens where above."""
    if not sharpness.any():
        return gray
    side = max(gray.shape[-2:])
    deviation = torch.where(sharpness < 0, -sharpness * MAX_BLUR, UNSHARP_RADIUS) * side  # (N,), in pixels
    radius = math.ceil(3 * MAX_BLUR * side)  # the same in any batch
    offsets = torch.arange(-radius, radius + 1, device=gray.device)
    kernels = torch.exp(-0.5 * (offsets / deviation.clamp(min=1e-2).unsqueeze(1)).square())  # (N, 2 * radius + 1)
    kernels = kernels / kernels.sum(1, keepdim=True)
    blurred = F.pad(gray, [radius] * 4, mode="replicate").transpose(0, 1)  # one channel each, to convolve them apart
    blurred = F.conv2d(blurred, kernels[:, None, None, :], groups=len(gray))
    blurred = F.conv2d(blurred, kernels[:, None, :, None], groups=len(gray)).transpose(0, 1)
    amount = torch.where(sharpness < 0, -1.0, sharpness * MAX_SHARPENING).view(-1, 1, 1, 1)
    return gray + amount * (gray - blurred)
