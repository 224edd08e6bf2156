"""Flat frames that scanners, screenshots and slides put round an X-ray."""

import math

import numpy as np
from PIL import Image, ImageOps

# Lines of a picture are frame where this share of them is of one gray, to within the tolerance.
_FRAME_LINES, _FRAME_SHARE, _FRAME_TOLERANCE, _LEAST_LINES = 128, 0.98, 6, 8


def inside_of_frames(picture: Image.Image) -> tuple[int, int, int, int]:
    """The box (left, top, right, bottom) inside flat frames of any gray and depth; the whole where all is flat."""
    size = picture.size
    lines = tuple(min(_FRAME_LINES, length) for length in size)
    grid = np.asarray(picture if lines == size else shrink(picture, lines), np.int16)
    box, before = [0, 0, *lines], None
    while box != before:  # a side may be seen to be flat once the others are cut off
        before, part = list(box), grid[box[1] : box[3], box[0] : box[2]]
        if min(part.shape) <= _LEAST_LINES:
            return (0, 0, *size)
        for edge, line in enumerate((part[:, 0], part[0], part[:, -1], part[-1])):
            if _is_flat(line):
                box[edge] += 1 if edge < 2 else -1
    return tuple(
        _edge(picture, box, edge, lines) if box[edge] != (0, 0, *lines)[edge] else (0, 0, *size)[edge]
        for edge in range(4)
    )


def _edge(picture: Image.Image, box: list[int], edge: int, lines: tuple[int, int]) -> int:
    """Where in the pixels a frame ends that ends near a line of the coarse box."""
    axis, length = edge % 2, picture.size[edge % 2]
    step, across = length / lines[axis], picture.size[1 - axis] / lines[1 - axis]
    other = math.ceil(box[1 - axis] * across), math.floor(box[3 - axis] * across)
    low, high = (
        min(length, max(0, round((box[edge] + more) * step))) for more in (-2, 2)
    )  # a shrunken line has grays of its neighbours
    places = range(low, high) if edge < 2 else range(high - 1, low - 1, -1)
    for place in places:
        if axis == 0:
            line = picture.crop((place, other[0], place + 1, other[1]))
        else:
            line = picture.crop((other[0], place, other[1], place + 1))
        if not _is_flat(np.asarray(line, np.int16).ravel()):
            return place if edge < 2 else place + 1
    return high if edge < 2 else low


def _is_flat(line: np.ndarray) -> bool:
    near = np.abs(line - np.median(line)) <= _FRAME_TOLERANCE
    return near.mean() >= _FRAME_SHARE


def shrink(picture: Image.Image, size: tuple[int, int]) -> Image.Image:
    """A smaller picture; the mirror image gives the mirrored one."""

    def resize(view):
        return np.asarray(view.resize(size, Image.Resampling.BICUBIC, reducing_gap=2.0), np.uint16)

    one, other = resize(picture), resize(ImageOps.mirror(picture))[:, ::-1]
    return Image.fromarray(((one + other + 1) // 2).astype(np.uint8))
