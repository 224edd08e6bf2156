"""Heat maps: which parts of an X-ray speak for a grade, or for a grade rather than another."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from PIL import Image

from .preprocessing_clip_koa import XrayPreprocessor

# Colours of the middle and of the top of a heat map.
_WARM, _HOT = (200.0, 40.0, 0.0), (255.0, 235.0, 60.0)
# Pixels of the longer side at which a map is drawn at most, and enlarged from there: its patches have no finer detail.
_DRAWN_SIDE = 2048
# Pixels that are computed at a time, of a map and of a picture, however large it is.
_MAP_BAND, _PICTURE_BAND = 1 << 18, _DRAWN_SIDE**2


@dataclass(frozen=True)
class Explanation:
    """A heat map: which parts of an X-ray speak for a grade, or for a grade rather than another."""

    image: Image.Image  # the upright picture that was looked at, mode L
    grade: int
    against: int | None  # the other grade; None: all the others
    relevance: torch.Tensor  # (side, side), not negative, of the patches that the network saw
    box: tuple[float, float, float, float] | None  # left, top, right, bottom of these in the image; None: all of it

    @property
    def heat_map(self) -> torch.Tensor:
        """(H, W) of the image, 0..1, 1 where it speaks loudest; spread anew whenever it is asked for."""
        return spread(self.relevance, self.image.size, self.box)

    def layer(self, size: tuple[int, int] | None = None) -> Image.Image:
        """The map as a picture (RGBA) to lay over the X-ray: clear where cold, orange to bright yellow where hot.

        Args:
            size: (width, height) in pixels; default: the image's.
        """
        drawn, size = self._draw(), size or self.image.size
        if drawn.size == size:
            return drawn
        picture = Image.new("RGBA", size)
        for box, band in _bands(drawn, size):
            picture.paste(band, box)
        return picture

    def overlay(self, opacity: float = 0.6) -> Image.Image:
        """The X-ray (RGB) under its heat map."""
        drawn, picture = self._draw(), Image.new("RGB", self.image.size)
        drawn.putalpha(drawn.getchannel("A").point(lambda value: round(value * opacity)))
        for box, band in _bands(drawn, self.image.size):
            below = self.image.crop(box).convert("RGBA")
            picture.paste(Image.alpha_composite(below, band).convert("RGB"), box)
        return picture

    def _draw(self) -> Image.Image:
        """The map (RGBA) in the image's size, but its longer side at most `_DRAWN_SIDE`."""
        width, height = self.image.size
        scale = min(1.0, _DRAWN_SIDE / max(width, height))
        size = max(1, round(width * scale)), max(1, round(height * scale))
        shares = (size[0] / width, size[1] / height) * 2
        box = self.box and tuple(place * share for place, share in zip(self.box, shares, strict=True))
        heat = spread(self.relevance, size, box)
        pixels = torch.empty(*heat.shape, 4, dtype=torch.uint8)
        for channel, (low, high) in enumerate(zip(_WARM, _HOT, strict=True)):
            pixels[..., channel] = (low + (high - low) * heat).round()
        pixels[..., 3] = (255 * heat.clamp(0, 1)).round()
        return Image.frombytes("RGBA", size, pixels.numpy().tobytes())


def _bands(picture: Image.Image, size: tuple[int, int]) -> Iterator[tuple[tuple[int, int, int, int], Image.Image]]:
    """A picture resized to (width, height), some rows at a time, each with its box there."""
    width, height = size
    rows, share = max(1, _PICTURE_BAND // width), picture.height / height
    for top in range(0, height, rows):
        bottom = min(top + rows, height)
        part = (0, top * share, picture.width, min(bottom * share, picture.height))
        yield (0, top, width, bottom), picture.resize((width, bottom - top), Image.Resampling.BILINEAR, part)


def explain_picture(
    model: torch.nn.Module, preprocess: XrayPreprocessor, picture: Image.Image, grade: int, against: int | None
) -> Explanation:
    """The heat map of a picture, as `read_picture` makes it; see `patch_relevance`."""
    relevance = patch_relevance(model, preprocess([picture]), grade, against)[0]
    return Explanation(picture, grade, against, relevance, preprocess.cut(picture.size))


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
    options = {"mode": "bicubic", "padding_mode": "border", "align_corners": False}
    views = (relevance[None, None], relevance.flip(-1)[None, None])
    heat_map = torch.empty(size[1], size[0])
    rows = max(1, _MAP_BAND // size[0])
    for band, ordinates in zip(heat_map.split(rows), down.split(rows), strict=True):
        places = torch.stack(torch.meshgrid(across, ordinates, indexing="xy"), dim=-1)[None]
        one, other = (torch.nn.functional.grid_sample(view, places, **options)[0, 0] for view in views)
        seen = (places[0].abs() <= 1).all(-1)
        band[:] = torch.where(seen, (one + other.flip(-1)) / 2, 0).clamp(min=0)
    return heat_map.div_(heat_map.max().clamp(min=1e-12))
