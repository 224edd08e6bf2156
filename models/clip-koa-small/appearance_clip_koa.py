"""In which ways a knee X-ray was taken or stored otherwise than those of training, whatever it shows."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image, ImageOps

from .frames_clip_koa import inside_of_frames

# The ways there are, and what a reader is told of each.
WAYS = {
    "contrast": "contrast",
    "brightness": "brightness",
    "sharpness": "sharpness",
    "resolution": "resolution",
    "frame": "a frame around the knee",
    "metal": "metal",
}
# All is measured on the central square in this many pixels a side, frames and metal on half as many.
_SIDE = 224
# Metal: pixels within this share of the gray scale of the brightest ones, in pieces that are at least so many pixels
# wide and that end within so many pixels in something darker by the second share.
_BRIGHT, _WIDTH, _EDGE, _DARKER = 0.06, 3, 2, 0.25


def measure_appearance(picture: Image.Image) -> dict[str, float]:
    """For each of `WAYS` a number, which the mirror image has to the bit.

    `contrast` is what lies between the percentiles 5 and 95 of the gray values, 0..1; `brightness` their median, 0..1;
    `sharpness` the root mean square of how much a pixel differs from its four neighbours, over the standard deviation
    of all; `resolution` the shorter side over 224 pixels, at most 1; `frame` the share of the area that flat frames
    take; `metal` the share of the picture's middle that is bright all over, times the square of how much of its edges
    is sharp. All but `resolution` and `frame` are of what lies inside of frames.

    Args:
        picture: mode L, bone bright, as it is graded.
    """
    square = _central_square(picture)
    half = _halved(square)
    left, top, right, bottom = inside_of_frames(Image.fromarray(half))
    inside = square[2 * top : 2 * bottom, 2 * left : 2 * right]
    low, middle, high = (value / 255 for value in _percentiles(inside, (5, 50, 95)))
    return {
        "contrast": high - low,
        "brightness": middle,
        "sharpness": _sharpness(inside),
        "resolution": min(1.0, min(picture.size) / _SIDE),
        "frame": 1 - inside.size / _SIDE**2,
        "metal": _metal(half[top:bottom, left:right]),
    }


def otherwise(measures: Mapping[str, float], bounds: Sequence[tuple[float, float]]) -> tuple[str, ...]:
    """In which of `WAYS` measures lie out of bounds, (lowest, highest) of each way."""
    return tuple(way for way, (low, high) in zip(WAYS, bounds, strict=True) if not low <= measures[way] <= high)


def _central_square(picture: Image.Image) -> np.ndarray:
    """Gray values (224, 224) uint8; those of the mirror image are mirrored to the bit."""
    side = min(picture.size)
    left, top = (picture.width - side) / 2, (picture.height - side) / 2
    box = (left, top, left + side, top + side)

    def resize(view):
        resized = view.resize((_SIDE, _SIDE), Image.Resampling.BICUBIC, box, reducing_gap=2.0)
        return np.asarray(resized, np.uint16)

    if picture.size == (_SIDE, _SIDE):
        return np.asarray(picture)
    return ((resize(picture) + resize(ImageOps.mirror(picture))[:, ::-1] + 1) // 2).astype(np.uint8)


def _halved(values: np.ndarray) -> np.ndarray:
    """Means of 2x2 pixels, rounded."""
    sums = values.reshape(len(values) // 2, 2, -1, 2).sum((1, 3), dtype=np.uint16)
    return ((sums + 2) // 4).astype(np.uint8)


def _percentiles(values: np.ndarray, percents: Sequence[float]) -> list[int]:
    """The gray levels below which these percents of the pixels lie."""
    shares = np.bincount(values.ravel(), minlength=256).cumsum()
    return [int(np.searchsorted(shares, percent / 100 * shares[-1])) for percent in percents]


def _sharpness(values: np.ndarray) -> float:
    # Sums of whole numbers, which are the same in any order.
    gray = values.astype(np.int64)
    differences = 4 * gray[1:-1, 1:-1] - gray[:-2, 1:-1] - gray[2:, 1:-1] - gray[1:-1, :-2] - gray[1:-1, 2:]
    variance = gray.size * int((gray * gray).sum()) - int(gray.sum()) ** 2
    if not variance:
        return 0.0
    return math.sqrt(int((differences * differences).sum()) / differences.size / (variance / gray.size**2)) / 4


def _metal(values: np.ndarray) -> float:
    """The share of the middle that is bright all over, in pieces of some width, times how sharp these end, squared.

    Bone that was cut off at white is bright all over too, and fades at its edges; letters are narrow.
    """
    low, top = _percentiles(values, (1, 99.5))
    scale = max(1, top - low)
    bright = values >= top - _BRIGHT * scale
    mask = ~_lowest_near(~_lowest_near(bright, _WIDTH), _WIDTH)
    edge = mask & ~_lowest_near(mask, 3)
    if not edge.any():
        return 0.0
    darkest = _lowest_near(values, 2 * _EDGE + 1)
    sharp = darkest[edge] <= top - _DARKER * scale
    height, width = mask.shape
    middle = mask[height // 8 : height - height // 8, width // 8 : width - width // 8]
    return int(middle.sum()) / middle.size * (int(sharp.sum()) / sharp.size) ** 2


def _lowest_near(values: np.ndarray, width: int) -> np.ndarray:
    """The lowest of the values in a square of this width about each, as far as it lies inside."""
    for _ in range(2):
        padded = np.pad(values, ((width // 2, width // 2), (0, 0)), mode="edge")
        values = np.minimum.reduce([padded[start : start + len(values)] for start in range(width)]).T
    return values
