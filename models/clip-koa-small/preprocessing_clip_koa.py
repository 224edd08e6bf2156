"""From any image to the upright 8-bit gray picture with bone bright, and from there to pixel values.

Reading a file needs none of torch, which `XrayPreprocessor` alone imports.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image, ImageChops, ImageOps

if TYPE_CHECKING:
    import torch

__all__ = [
    "MAX_DEEP_PIXELS",
    "MAX_PIXELS",
    "MIN_COLOUR_LEVELS",
    "MIN_SIDE",
    "WINDOW_PERCENTILES",
    "CLIPKOAError",
    "Refusal",
    "XrayPreprocessor",
    "check_size",
    "count_values",
    "is_inverted",
    "look_up",
    "most_pixels",
    "read_picture",
    "to_gray",
    "to_picture",
    "widen_deep_colour",
    "window",
    "window_table",
]

MIN_SIDE, MAX_PIXELS = 32, 120_000_000
# Of images that take four bytes a pixel while they are decoded: of colour, with transparency, or deeper than 16 bits.
MAX_DEEP_PIXELS = 50_000_000
# Values outside these percentiles are taken for markers and dead pixels, and saturate.
WINDOW_PERCENTILES = (0.5, 99.5)
# Pillow reads the high byte alone of 16-bit colour. Fewer gray levels than this are too few to open a window on.
MIN_COLOUR_LEVELS = 64
# Longest to shortest side up to which an image may be a crop of one joint, which is what `is_inverted` knows.
_CROP_ASPECT = 4 / 3
_PHOTOMETRIC, _WHITE_IS_ZERO, _ORIENTATION = 262, 0, 0x0112  # tags of TIFF and EXIF
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
# Frames are looked for on an X-ray reduced to this many lines a side. A line is one gray where this share of it lies
# within the tolerance of its median; at most a third of a side is frame; the lines next to a frame are half frame.
_FRAME_GRID, _FRAME_SHARE, _FRAME_TOLERANCE, _FRAME_DEPTH, _FRAME_MARGIN = 64, 0.95, 10, 21, 2
# Where less of a line is one gray, it may be a frame with something on it, such as the buttons of a screenshot.
_UNCLEAR_SHARE = 0.88


# By how many readings an X-ray is graded: for each, by how many degrees the X-ray is turned.
READINGS = {1: (0.0,), 3: (0.0, 4.0, -4.0)}


def turns_of(readings: int, option: str = "readings=", error: type[ValueError] = ValueError) -> tuple[float, ...]:
    """By how many degrees an X-ray is turned for each of so many readings.

    Args:
        option: what the number was given as, which the message begins with.
        error: what is raised.

    Raises:
        ValueError: a number that is none of `READINGS`.
    """
    if readings not in READINGS:
        raise error(f"{option}{readings}: use one of {', '.join(map(str, READINGS))}.")
    return READINGS[readings]


class CLIPKOAError(Exception):
    """What keeps the project's code from its work and is no fault of the code; the message says what would be right.

    Every such error of the project derives from it, beside the one of Python's that it is. It lies here, where the
    reader of X-rays and the model's own code both find it.
    """

    exit_status = 2  # of a command that it ends


class Refusal(ValueError):
    """Why an image is refused, without its name; `read_radiograph` puts the name before it."""


def check_size(width: int, height: int, most: int = MAX_PIXELS) -> None:
    """Refuses images too large to be decoded safely, and those too small to be radiographs.

    Args:
        most: pixels that an image of its kind may have, as `most_pixels` gives them.

    Raises:
        Refusal: more pixels than that, or a side under `MIN_SIDE`.
    """
    if width * height > most:
        kind = "" if most == MAX_PIXELS else " of its kind"
        raise Refusal(f"has {width}x{height} pixels, more than {most:,}: no radiograph{kind} is so large.")
    if min(width, height) < MIN_SIDE:
        raise Refusal(f"has {width}x{height} pixels: a radiograph has at least {MIN_SIDE} on each side.")


def most_pixels(image: Image.Image) -> int:
    """How many pixels an image may have, that is loaded or only opened."""
    is_plain = image.mode in ("1", "L", "P") or image.mode.startswith("I;16")
    return MAX_DEEP_PIXELS if not is_plain or "transparency" in image.info else MAX_PIXELS


def read_picture(
    image: Image.Image, *, keep_polarity: bool = False, name: str = "The image"
) -> tuple[Image.Image, bool]:
    """The upright 8-bit gray picture of an X-ray in memory, as `read_radiograph` makes it of a file; see `to_picture`.

    Args:
        image: in any of Pillow's modes.
        keep_polarity: leave an X-ray that shows bone dark as it is.
        name: what errors call it.

    Returns:
        The picture (mode L, bone bright), and whether the X-ray had to be inverted for that.

    Raises:
        ValueError: no image, several frames, an absurd size, values that are not finite, or damage.
    """
    if not isinstance(image, Image.Image):
        raise ValueError(f"{name} is of type {type(image).__name__}: give a PIL image, as PIL.Image.open opens it.")
    try:
        return to_picture(image, keep_polarity=keep_polarity)
    except Refusal as refusal:
        raise ValueError(f"{name} {refusal}") from refusal
    except Exception as error:  # an image that was opened is decoded here, and decoders raise nearly every kind
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise ValueError(f"{name} is damaged or cannot be read: {reason}") from error


def to_picture(
    image: Image.Image, *, keep_polarity: bool = False, first_frame: bool = False, close: bool = False
) -> tuple[Image.Image, bool]:
    """From an image, loaded or only opened, to the upright 8-bit gray picture that is graded: every step there is.

    8-bit values stay as they are: grayscale, palette, colour, transparent ones on black. Deeper ones go through
    `window`, and those of a TIFF file that says white is zero are inverted. EXIF orientation is applied. A crop with
    bone dark on white is inverted (`is_inverted`).

    Args:
        image: in any of Pillow's modes.
        keep_polarity: leave an X-ray that shows bone dark as it is.
        first_frame: take the first of several frames; otherwise such an image is refused.
        close: free the image's own pixels as soon as they are not needed.

    Returns:
        The picture (mode L, no metadata), and whether the X-ray had to be inverted.

    Raises:
        Refusal: several frames, an absurd size, or values that are not finite. Damage raises what Pillow raises.
    """
    check_size(*image.size, most_pixels(image))
    if not first_frame and _has_more_frames(image):
        raise Refusal(
            "holds several frames: a radiograph has one; read_radiograph(first_frame=True) takes the first of a "
            "file, image.copy() the one that an opened image stands at."
        )
    deep_colour = len(image.getbands()) > 1 and _is_deep(image)
    _load(image)
    gray = to_gray(image)
    if deep_colour:
        gray = widen_deep_colour(gray)
    # Pillow inverts white-is-zero of 8 bits only.
    if image.mode[0] in "IF" and getattr(image, "tag_v2", {}).get(_PHOTOMETRIC) == _WHITE_IS_ZERO:
        gray = ImageOps.invert(gray)
    turn = _TURNS.get(image.getexif().get(_ORIENTATION))
    if turn is not None:
        gray = gray.transpose(turn)
    if gray is not image:
        gray.info = {}  # what a file says beside its pixels ends here
        if close:
            image.close()
    inverted = not keep_polarity and is_inverted(gray)
    return (ImageOps.invert(gray) if inverted else gray), inverted


def _has_more_frames(image: Image.Image) -> bool:
    if getattr(image, "format", None) in ("JPEG", "MPO"):  # a phone's JPEG may carry a preview as a second picture
        return False
    if getattr(image, "format", None) != "TIFF" or not hasattr(image, "tag_v2"):
        return getattr(image, "n_frames", 1) > 1
    place = image.tell()
    try:  # counting the pages of a TIFF would walk through all of them
        image.seek(place + 1)
    except EOFError:
        return place > 0
    except (AttributeError, OSError, ValueError):  # its file was closed after it was loaded
        return False
    image.seek(place)
    return True


def _load(image: Image.Image) -> None:
    """Decodes an image that was opened only, without mapping its file into memory.

    Pillow maps a plain TIFF with the size that its orientation turns it to, and so reads other pixels.
    """
    filename = getattr(image, "filename", None)
    if not filename:
        image.load()
        return
    try:
        image.filename = ""
        image.load()
    finally:
        image.filename = filename


def _is_deep(image: Image.Image) -> bool:
    """Whether a colour image that is opened and not yet loaded has 16 bits a sample, of which Pillow reads 8."""
    return any(";16" in str(tile.args) for tile in getattr(image, "tile", ()))


def to_gray(image: Image.Image) -> Image.Image:
    """The image in mode L: 8-bit values as they are, transparency on black, deeper values through `window`.

    Raises:
        Refusal: values that are not finite.
    """
    if image.mode.startswith("I;16"):
        return _window_strips(image)
    if image.mode[0] in "IF":
        return Image.fromarray(window(np.asarray(image)))
    if image.mode == "L" and type(image) is Image.Image and not image.info:
        return image  # as it is: a film may fill much of the memory
    if image.mode in ("La", "RGBa"):  # multiplied by their alpha already, which is what lying on black is
        colours = image.split()[:-1]
        return colours[0] if len(colours) == 1 else Image.merge("RGB", colours).convert("L")
    if image.has_transparency_data:
        image = image if image.mode in ("RGBA", "LA") else image.convert("RGBA")
        # The same as compositing on black, without three more copies of a large image.
        return ImageChops.multiply(image.convert("L"), image.getchannel("A"))
    if image.mode in ("LAB", "HSV"):
        image = image.convert("RGB")
    return image.convert("L")


def _window_strips(image: Image.Image) -> Image.Image:
    """`window` of a 16-bit image, of which some rows at a time are an array."""
    width, height = image.size
    rows = max(1, (1 << 21) // width)
    boxes = [(0, top, width, min(top + rows, height)) for top in range(0, height, rows)]
    found = [count_values(np.asarray(image.crop(box))) for box in boxes]
    first = min(start for start, _ in found)
    counts = np.zeros(max(start + part.size for start, part in found) - first, np.int64)
    for start, part in found:
        counts[start - first : start - first + part.size] += part
    table = window_table(np.arange(first, first + counts.size), counts)
    gray = np.empty((height, width), np.uint8)
    for box in boxes:
        gray[box[1] : box[3]] = look_up(np.asarray(image.crop(box)), first, table)
    return Image.fromarray(gray)


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
    sample = values
    if values.size > 2_000_000:
        # A million of them tell the percentiles well enough, and a fixed stride repeats exactly. With their mirror
        # images, so that the mirrored X-ray gets the same window.
        rows, columns = np.divmod(np.arange(0, values.size, values.size // 1_000_000), values.shape[1])
        sample = np.concatenate([values[rows, columns], values[rows, -1 - columns]])
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

    Flat frames, as scanners, screenshots and slides put them round an X-ray, are cut off first. Then two things must
    come together on what is left, reduced to 32x32: the outer strips at its sides, soft tissue or air, are brighter
    than its middle, bone, by 0.3 standard deviations; and the joint space is darker than the bone above and below it
    by no more than 0.05. Both must hold of the mirror image too, and where frames with something on them are cut off
    as well. X-rays further from square than 4:3 are never taken for inverted: they may show both legs. Nor is what
    lies in a frame that takes over a third of a side. On the 5,778 training X-rays of the official release this marks
    70, all of which are inverted, and misses none: of these the difference is -0.75 at most, of all others 0.08 at
    least but for one, whose joint space is far too dark.
    """
    if gray.width * gray.height > MAX_DEEP_PIXELS:
        gray = gray.reduce(4)  # views of it are copies, which would fill the memory
    return all(
        _shows_bone_dark(view, share)
        for share in (_FRAME_SHARE, _UNCLEAR_SHARE)
        for view in (gray, ImageOps.mirror(gray))
    )


def _shows_bone_dark(gray: Image.Image, frame_share: float) -> bool:
    box = _inside_of_frame(gray, frame_share)
    if box is None:
        return False
    if box != (0, 0, *gray.size):
        gray = gray.crop(box)
    if max(gray.size) > _CROP_ASPECT * min(gray.size):
        return False
    small = np.asarray(_shrink(gray, 32), np.float32)
    spread = small.std()
    columns = small.mean(axis=0)
    sides, middle = (columns[:3].mean() + columns[-3:].mean()) / 2, columns[10:22].mean()
    if spread == 0 or (middle - sides) / spread > -0.3:
        return False
    rows = small[:, 8:24].mean(axis=1)
    bone, joint = (rows[6:12].mean() + rows[22:28].mean()) / 2, rows[15:19].mean()
    return bool(joint >= bone - 0.05 * spread)


def _shrink(gray: Image.Image, side: int) -> Image.Image:
    """Means over a grid of `side` by `side` boxes."""
    if min(gray.size) >= 2 * side:  # a first step in whole pixels is many times faster
        gray = gray.reduce((gray.width // side, gray.height // side))
    return gray.resize((side, side), Image.Resampling.BOX)


def _inside_of_frame(gray: Image.Image, share: float) -> tuple[int, int, int, int] | None:
    """The box (left, top, right, bottom) inside flat frames, of any gray and on any sides, in pixels.

    A line is frame where this share of it is one gray. None where a frame takes more than a third of a side, so that
    it is unclear what is X-ray.
    """
    grid = np.asarray(_shrink(gray, _FRAME_GRID), np.float32)
    top = bottom = left = right = -1
    ends = [0, 0, 0, 0]
    while ends != [top, bottom, left, right]:  # a side may be seen to be flat once the others are cut off
        top, bottom, left, right = ends
        # Turned so that each side in its turn is the top; columns see what the rows have left, and rows the columns.
        columns, rows = slice(left, _FRAME_GRID - right), slice(top, _FRAME_GRID - bottom)
        ends[:2] = _flat_lines(grid[:, columns], top, share), _flat_lines(grid[::-1, columns], bottom, share)
        ends[2:] = _flat_lines(grid.T[:, rows], left, share), _flat_lines(grid.T[::-1, rows], right, share)
    if max(ends) == _FRAME_DEPTH:
        return None
    top, bottom, left, right = (min(end + _FRAME_MARGIN, _FRAME_DEPTH) if end else 0 for end in ends)
    width, height = gray.width / _FRAME_GRID, gray.height / _FRAME_GRID
    return (
        round(left * width),
        round(top * height),
        round(gray.width - right * width),
        round(gray.height - bottom * height),
    )


def _flat_lines(grid: np.ndarray, start: int, share: float) -> int:
    """How many lines from the top are each of one gray, `start` of which are known to be."""
    for line in range(start, _FRAME_DEPTH):
        values = np.sort(grid[line])
        median = values[len(values) // 2]
        one_gray = np.searchsorted(values, median + _FRAME_TOLERANCE, side="right")
        one_gray -= np.searchsorted(values, median - _FRAME_TOLERANCE)
        if one_gray < share * len(values):
            return line
    return _FRAME_DEPTH


class XrayPreprocessor:
    """From pictures, as `read_picture` and `read_radiograph` make them, to what the network takes.

    It does what the image processor says, and commutes with mirroring bit for bit at every size: the central square
    that the processor would cut is taken in one step, from one place between pixels if need be, and what comes of the
    picture and of its mirror image is averaged.

    Args:
        image_processor: the one saved beside a checkpoint.
        shades: (3, 256) fp32, what it makes of each gray level; default: it is asked.
    """

    def __init__(self, image_processor, shades: torch.Tensor | None = None):
        self.image_processor = image_processor
        if shades is None:
            ramp = Image.frombytes("L", (16, 16), bytes(range(256)))
            options = {"do_resize": False, "do_center_crop": False, "return_tensors": "pt"}
            shades = image_processor(ramp, **options)["pixel_values"][0].flatten(1)
        self.shades = shades

    def __call__(self, pictures: list[Image.Image]) -> torch.Tensor:
        """The pictures' pixel values, (N, 3, H, W) fp32, normalised.

        Raises:
            ValueError: an image in another mode than L, which has not been through `read_picture`.
        """
        import torch

        for picture in pictures:
            if picture.mode != "L":
                raise ValueError(f"A picture has the mode {picture.mode}: read_picture makes it 8-bit gray first.")
        if not all(self.cut(picture.size) for picture in pictures):
            return torch.cat([self([one]) if self.cut(one.size) else self._average_views(one) for one in pictures])
        squares = [self.square(picture) for picture in pictures]
        pixels = torch.frombuffer(bytearray(b"".join(square.tobytes() for square in squares)), dtype=torch.uint8).int()
        width, height = squares[0].size
        channels = [shades.index_select(0, pixels).view(-1, height, width) for shades in self.shades]
        return torch.stack(channels, dim=1)

    def cut(self, size: tuple[int, int]) -> tuple[float, float, float, float] | None:
        """The box (left, top, right, bottom) of a picture of a size (width, height) that the network sees.

        None where the processor's settings keep the picture's shape, or pad.
        """
        processor = self.image_processor
        given = processor.size if processor.do_resize else {}
        crop = (processor.crop_size["width"], processor.crop_size["height"]) if processor.do_center_crop else None
        if given.get("height") and given.get("width"):
            whole = (given["width"], given["height"])
            seen = [side * part / of for side, part, of in zip(size, crop or whole, whole, strict=True)]
        elif crop and not given.get("longest_edge") and (given.get("shortest_edge") or not processor.do_resize):
            edge = given.get("shortest_edge") or min(size)
            seen = [min(size) * part / edge for part in crop]
        else:
            return None
        if seen[0] > size[0] or seen[1] > size[1]:
            return None
        left, top = ((side - part) / 2 for side, part in zip(size, seen, strict=True))
        return left, top, size[0] - left, size[1] - top

    def square(self, picture: Image.Image) -> Image.Image:
        """The box of `cut`, where there is one, in the size that the network takes; that size itself as it is."""
        processor, box = self.image_processor, self.cut(picture.size)
        given = processor.crop_size if processor.do_center_crop else processor.size
        size = (given["width"], given["height"])
        if picture.size == size and box == (0, 0, *size):
            return picture
        resample = Image.Resampling(int(processor.resample))
        one = np.asarray(picture.resize(size, resample, box), np.uint16)
        other = np.asarray(ImageOps.mirror(picture).resize(size, resample, box), np.uint16)[:, ::-1]
        return Image.fromarray(((one + other + 1) // 2).astype(np.uint8))

    def _average_views(self, picture: Image.Image) -> torch.Tensor:
        """What the processor makes of a picture, (1, 3, H, W), averaged with what it makes of its mirror image."""
        views = (picture, ImageOps.mirror(picture))
        one, other = (self.image_processor(view, return_tensors="pt")["pixel_values"] for view in views)
        return (one + other.flip(-1)) / 2


def turn(pixel_values: torch.Tensor, degrees: float, scale: float = 1.0) -> torch.Tensor:
    """Pixel values (N, 3, H, W), turned and shown `scale` times as large, same shape; by default the size stays.

    The border is repeated, and no value lies outside of those of its X-ray. Turned the other way, the mirror image
    gives the mirrored values, to rounding.
    """
    import torch

    if (degrees, scale) == (0, 1):
        return pixel_values
    angle = math.radians(degrees)
    cos, sin = math.cos(angle) / scale, math.sin(angle) / scale
    rows = torch.tensor([[cos, -sin, 0.0], [sin, cos, 0.0]], dtype=pixel_values.dtype, device=pixel_values.device)
    sample = torch.nn.functional
    grid = sample.affine_grid(rows.expand(len(pixel_values), 2, 3), list(pixel_values.shape), align_corners=False)
    turned = sample.grid_sample(pixel_values, grid, mode="bicubic", padding_mode="border", align_corners=False)
    return turned.clamp(pixel_values.amin((2, 3), keepdim=True), pixel_values.amax((2, 3), keepdim=True))
