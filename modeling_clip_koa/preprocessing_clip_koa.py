"""From any values to 8-bit grayscale, and from there to pixel values: limits, windows, inverted X-rays.

Reading a file needs none of torch, which `XrayPreprocessor` alone imports.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageOps

if TYPE_CHECKING:
    import torch

__all__ = [
    "MAX_PIXELS",
    "MIN_COLOUR_LEVELS",
    "MIN_SIDE",
    "WINDOW_PERCENTILES",
    "Refusal",
    "XrayPreprocessor",
    "check_size",
    "count_values",
    "is_inverted",
    "look_up",
    "set_right",
    "to_gray",
    "widen_deep_colour",
    "window",
    "window_table",
]

MIN_SIDE, MAX_PIXELS = 32, 50_000_000
# Values outside these percentiles are taken for markers and dead pixels, and saturate.
WINDOW_PERCENTILES = (0.5, 99.5)
# Pillow reads the high byte alone of 16-bit colour. Fewer gray levels than this are too few to open a window on.
MIN_COLOUR_LEVELS = 64
# Longest to shortest side up to which an image may be a crop of one joint, which is what `is_inverted` knows.
_CROP_ASPECT = 4 / 3


class Refusal(ValueError):
    """Why an image is refused, without its name; `read_radiograph` puts the name before it."""


def check_size(width: int, height: int) -> None:
    """Refuses images too large to be decoded safely, and those too small to be radiographs.

    Raises:
        Refusal: more than `MAX_PIXELS` pixels, or a side under `MIN_SIDE`.
    """
    if width * height > MAX_PIXELS:
        raise Refusal(f"has {width}x{height} pixels, more than {MAX_PIXELS:,}: no radiograph is so large.")
    if min(width, height) < MIN_SIDE:
        raise Refusal(f"has {width}x{height} pixels: a radiograph has at least {MIN_SIDE} on each side.")


def to_gray(image: Image.Image) -> Image.Image:
    """The image in mode L: 8-bit values as they are, transparency on black, deeper values through `window`.

    Raises:
        Refusal: values that are not finite.
    """
    if image.mode[0] in "IF":
        return Image.fromarray(window(np.asarray(image)))
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        image = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
        # The same as compositing on black, without three more copies of a large image.
        return ImageChops.multiply(image.convert("L"), image.getchannel("A"))
    return image.convert("L")


def widen_deep_colour(gray: Image.Image) -> Image.Image:
    """Opens a window on the high bytes that Pillow reads of a 16-bit colour image; returns mode L.

    Raises:
        Refusal: so little of the range is used that the high bytes hold too few gray levels.
    """
    used = sum(count > 0 for count in gray.histogram())
    if used == 1:
        return gray
    if used < MIN_COLOUR_LEVELS:
        raise Refusal(f"is a 16-bit colour image with {used} gray levels left in its high bytes: save it as gray.")
    return Image.fromarray(window(np.asarray(gray)))


def window(values: np.ndarray) -> np.ndarray:
    """Maps the range between the `WINDOW_PERCENTILES` linearly to 0..255; values outside saturate.

    Args:
        values: (H, W), integers or floats.

    Returns:
        (H, W) uint8; all 0 where every value is the same.

    Raises:
        Refusal: values that are not finite.
    """
    if values.dtype.kind in "iu" and values.dtype.itemsize <= 2:
        first, counts = count_values(values)
        return look_up(values, first, window_table(np.arange(first, first + counts.size), counts))
    if values.dtype.kind == "f" and not np.isfinite(values.sum(dtype=np.float64)):
        raise Refusal("holds values that are not finite numbers.")
    # A million of them tell the percentiles well enough, and a fixed stride repeats exactly.
    sample = values.reshape(-1)[:: max(1, values.size // 1_000_000)]
    low, high = np.percentile(sample, WINDOW_PERCENTILES)
    if high <= low:
        low, high = values.min(), values.max()
    return _in_chunks(values, lambda chunk: _stretch(chunk, float(low), float(high)))


def count_values(values: np.ndarray) -> tuple[int, np.ndarray]:
    """The smallest of some 8- or 16-bit integers, and how often it and each one up to the largest occur."""
    first = int(values.min())
    counts = np.zeros(int(values.max()) - first + 1, np.int64)
    rows = _rows_of_chunk(values)
    for start in range(0, len(values), rows):
        chunk = values[start : start + rows].astype(np.int32).reshape(-1)
        chunk -= first
        counts += np.bincount(chunk, minlength=counts.size)
    return first, counts


def window_table(levels: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The gray value of each level under the window of `WINDOW_PERCENTILES`.

    Args:
        levels: (N,) values, in any order.
        counts: (N,) how many pixels have each; 0 leaves a level out of the percentiles.

    Returns:
        (N,) uint8.
    """
    order = np.argsort(levels, kind="stable")
    order = order[counts[order] > 0]
    if order.size == 0:
        return np.zeros(levels.shape, np.uint8)
    ranks = np.array(WINDOW_PERCENTILES) / 100 * (counts.sum() - 1)
    low, high = levels[order[np.searchsorted(np.cumsum(counts[order]), ranks, side="right")]]
    if high <= low:  # hardly any contrast: the full range of the values is all there is
        low, high = levels[order[0]], levels[order[-1]]
    return _stretch(levels, float(low), float(high))


def look_up(values: np.ndarray, first: int, table: np.ndarray) -> np.ndarray:
    """`table[values - first]`, in chunks; (H, W) uint8."""
    return _in_chunks(values, lambda chunk: table[chunk.astype(np.int32) - first])


def _stretch(values: np.ndarray, low: float, high: float) -> np.ndarray:
    scale = 255 / (high - low) if high > low else 0.0
    return np.rint((values.astype(np.float64).clip(low, high) - low) * scale).astype(np.uint8)


def _in_chunks(values: np.ndarray, function) -> np.ndarray:
    """Applies `function` to some rows at a time: the floats of a large X-ray would fill the memory."""
    gray = np.empty(values.shape, np.uint8)
    rows = _rows_of_chunk(values)
    for start in range(0, len(values), rows):
        gray[start : start + rows] = function(values[start : start + rows])
    return gray


def _rows_of_chunk(values: np.ndarray) -> int:
    return max(1, (1 << 21) // values.shape[1])


def is_inverted(gray: Image.Image) -> bool:
    """Whether a crop of a knee joint shows bone dark on a bright ground.

    Two things must come together on the image reduced to 32x32: the outer strips at its sides, soft tissue or air,
    are brighter than its middle, bone, by 0.3 standard deviations; and the joint space is no darker than the bone
    above and below it. Images further from square than 4:3 are never taken for inverted: they may show both legs.
    On the 5,778 training X-rays of the official release this marks 70, all of which are inverted, and misses none:
    of these the difference is -0.75 at most, of all others 0.40 at least.
    """
    if max(gray.size) > _CROP_ASPECT * min(gray.size):
        return False
    if min(gray.size) >= 64:  # a first step in whole pixels is many times faster
        gray = gray.reduce((gray.width // 32, gray.height // 32))
    small = np.asarray(gray.resize((32, 32), Image.Resampling.BOX), np.float32)
    spread = small.std()
    columns = small.mean(axis=0)
    sides, middle = (columns[:3].mean() + columns[-3:].mean()) / 2, columns[10:22].mean()
    if spread == 0 or (middle - sides) / spread > -0.3:
        return False
    rows = small[:, 8:24].mean(axis=1)
    bone, joint = (rows[6:12].mean() + rows[22:28].mean()) / 2, rows[15:19].mean()
    return bool(joint >= bone)


def set_right(gray: Image.Image) -> tuple[Image.Image, bool]:
    """The image with bone bright, and whether it had to be inverted for that."""
    inverted = is_inverted(gray)
    return (ImageOps.invert(gray) if inverted else gray), inverted


class XrayPreprocessor:
    """Makes of images what the image processor makes of them, bit by bit, the quick way where there is one.

    Grey images of the size that it gives take a table of grey levels.

    Args:
        image_processor: the one saved beside a checkpoint.
    """

    def __init__(self, image_processor):
        self.image_processor, self._shades = image_processor, None
        crop, edge = image_processor.crop_size, image_processor.size.get("shortest_edge")
        # Otherwise it would cut an image of the size that it gives.
        if image_processor.do_center_crop and crop["height"] == crop["width"] == edge:
            ramp = Image.frombytes("L", (16, 16), bytes(range(256)))
            options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
            self._shades = image_processor(ramp, **options)["pixel_values"][0].flatten(1)  # (3, 256)
            self._size = (edge, edge)

    def __call__(self, images: list[Image.Image]) -> torch.Tensor:
        """The images' pixel values, (N, 3, H, W) fp32, normalised."""
        import torch

        if self._shades is None or any(image.mode != "L" or image.size != self._size for image in images):
            return self.image_processor(images, return_tensors="pt")["pixel_values"]
        pixels = bytearray(b"".join(image.tobytes() for image in images))
        pixels = torch.frombuffer(pixels, dtype=torch.uint8).int()
        channels = [shades.index_select(0, pixels).view(-1, *self._size) for shades in self._shades]
        return torch.stack(channels, dim=1)
