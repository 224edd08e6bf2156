"""Heat maps: which parts of an X-ray speak for a grade, or for a grade rather than another."""

import math
from dataclasses import dataclass

import torch
from PIL import Image

from .preprocessing_clip_koa import XrayPreprocessor

# Colours of the middle and of the top of a heat map.
_WARM, _HOT = (200.0, 40.0, 0.0), (255.0, 235.0, 60.0)


@dataclass(frozen=True)
class Explanation:
    """A heat map: which parts of an X-ray speak for a grade, or for a grade rather than another."""

    image: Image.Image  # the upright picture that was looked at, mode L
    grade: int
    against: int | None  # the other grade; None: all the others
    heat_map: torch.Tensor  # (H, W) of the image, 0..1, 1 where it speaks loudest

    def layer(self, size: tuple[int, int] | None = None) -> Image.Image:
        """The map as a picture (RGBA) to lay over the X-ray: clear where cold, orange to bright yellow where hot.

        Args:
            size: (width, height) in pixels; default: the image's.
        """
        heat = self.heat_map
        red, green, blue = (low + (high - low) * heat for low, high in zip(_WARM, _HOT, strict=True))
        pixels = torch.stack([red, green, blue, 255 * heat.clamp(0, 1)], dim=-1).round().to(torch.uint8)
        height, width = heat.shape
        picture = Image.frombytes("RGBA", (width, height), pixels.contiguous().numpy().tobytes())
        return picture.resize(size, Image.Resampling.BILINEAR) if size else picture

    def overlay(self, opacity: float = 0.6) -> Image.Image:
        """The X-ray (RGB) under its heat map."""
        layer = self.layer()
        layer.putalpha(layer.getchannel("A").point(lambda value: round(value * opacity)))
        return Image.alpha_composite(self.image.convert("RGBA"), layer).convert("RGB")


def explain_picture(
    model: torch.nn.Module, preprocess: XrayPreprocessor, picture: Image.Image, grade: int, against: int | None
) -> Explanation:
    """The heat map of a picture, as `read_picture` makes it; see `patch_relevance`."""
    relevance = patch_relevance(model, preprocess([picture]), grade, against)[0]
    return Explanation(picture, grade, against, spread(relevance, picture.size, preprocess.cut(picture.size)))


def patch_relevance(
    model: torch.nn.Module, pixel_values: torch.Tensor, grade: int, against: int | None = None
) -> torch.Tensor:
    """Relevance of each patch for a grade's cosine, less another's or less the mean of all others'.

    Through the blocks, attention weighted by the gradient of that difference (Chefer et al. 2021, arXiv 2103.15679).

    Args:
        model: a CLIP-KOA model.
        pixel_values: (N, 3, H, W).

    Returns:
        (N, side, side), not negative; of the X-ray averaged with the mirrored one of its mirror image.
    """
    config = model.vision_model.config
    implementation = config._attn_implementation
    config._attn_implementation = "eager"  # the others keep no attention
    try:
        with torch.enable_grad():
            weight = model.visual_projection.weight
            views = torch.cat([pixel_values, pixel_values.flip(-1)]).to(weight.device, weight.dtype).requires_grad_()
            output = model(views, flip_average=False, output_attentions=True, return_dict=True)
            cosines = output.image_embeds @ output.grade_embeds.float().t()
            others = [other for other in range(cosines.shape[1]) if other != grade] if against is None else [against]
            score = (cosines[:, grade] - cosines[:, others].mean(1)).sum()
            gradients = torch.autograd.grad(score, output.attentions)
    finally:
        config._attn_implementation = implementation
    relevance = _roll_out(output.attentions, gradients)
    side = math.isqrt(relevance.shape[1])
    original, mirrored = relevance.view(-1, side, side).chunk(2)
    return ((original + mirrored.flip(-1)) / 2).cpu()


@torch.no_grad()
def _roll_out(attentions, gradients) -> torch.Tensor:
    """Relevance of the patches for the class token, (N, patches), from (N, heads, tokens, tokens) of each block."""
    count, _, tokens, _ = attentions[0].shape
    # Only the class token's row is asked for: the product is taken from the last block down, a row at a time.
    row = torch.zeros(count, 1, tokens, device=attentions[0].device)
    row[:, :, 0] = 1
    for attention, gradient in zip(reversed(attentions), reversed(gradients), strict=True):
        row = row + row @ (attention * gradient).float().clamp(min=0).mean(1)
    return row[:, 0, 1:]


def spread(relevance: torch.Tensor, size: tuple[int, int], box: tuple | None) -> torch.Tensor:
    """Relevance of the patches, (side, side), over the pixels (H, W) of the box that the network sees.

    Args:
        size: (width, height) of the picture.
        box: (left, top, right, bottom) in it; None: all of it.
    """
    left, top, right, bottom = box or (0, 0, *size)
    # Places of the pixels' middles in the box, -1 to 1; halves are exact, so that mirrored places are opposite.
    across = (torch.arange(size[0]) + 0.5 - size[0] / 2) / ((right - left) / 2)
    down = (torch.arange(size[1]) + 0.5 - size[1] / 2) / ((bottom - top) / 2)
    places = torch.stack(torch.meshgrid(across, down, indexing="xy"), dim=-1)[None]
    options = {"mode": "bicubic", "padding_mode": "border", "align_corners": False}
    views = (relevance[None, None], relevance.flip(-1)[None, None])
    one, other = (torch.nn.functional.grid_sample(view, places, **options)[0, 0] for view in views)
    seen = (places[0].abs() <= 1).all(-1)
    heat_map = torch.where(seen, (one + other.flip(-1)) / 2, 0).clamp(min=0)
    return heat_map / heat_map.max().clamp(min=1e-12)
