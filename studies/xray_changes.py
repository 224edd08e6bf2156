"""Knee X-rays as another machine, archive or viewer would give them: still knees, and to be graded.

Each change is of one strength. None of them is taken from `clip_koa.calibration.variations`, to which typicality is
fitted.
"""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps


def _curve(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Image.Image], Image.Image]:
    """A change of gray values in 0..1."""
    table = (255 * change(np.arange(256) / 255)).clip(0, 255).round().astype(int).tolist()
    return lambda picture: picture.point(table)


def _saturated(picture: Image.Image) -> Image.Image:
    """The darkest 5 % black and the brightest 3 % white."""
    low, high = np.percentile(np.asarray(picture), [5, 97])
    return picture.point([int(min(255, max(0, 255 * (value - low) / max(1, high - low)))) for value in range(256)])


def _locally_equalised(picture: Image.Image) -> Image.Image:
    """Gray levels made as common as each other in a neighbourhood of a quarter of the side, by three quarters."""
    values = np.asarray(picture, np.float32)
    side = min(picture.size)
    tiles, rank = 4, np.zeros((2, *values.shape), np.float32)
    edges = np.linspace(0, len(values), tiles + 1).round().astype(int)
    across = np.linspace(0, values.shape[1], tiles + 1).round().astype(int)
    tables = np.empty((tiles, tiles, 256), np.float32)
    for row in range(tiles):
        for column in range(tiles):
            tile = values[edges[row] : edges[row + 1], across[column] : across[column + 1]].astype(np.uint8)
            counts = np.bincount(tile.ravel(), minlength=256).astype(np.float32)
            counts = np.minimum(counts, 4 * counts.mean())  # contrast is limited
            tables[row, column] = 255 * counts.cumsum() / counts.sum()
    y = (np.arange(values.shape[0]) + 0.5) / side * tiles - 0.5
    x = (np.arange(values.shape[1]) + 0.5) / side * tiles - 0.5
    levels = values.astype(np.uint8)
    rank = np.zeros_like(values)
    for down in (0, 1):
        for right in (0, 1):
            rows, columns = (
                (np.floor(y) + down).clip(0, tiles - 1).astype(int),
                (np.floor(x) + right).clip(0, tiles - 1).astype(int),
            )
            weight_y = np.abs(1 - down - (y - np.floor(y)))
            weight_x = np.abs(1 - right - (x - np.floor(x)))
            rank += weight_y[:, None] * weight_x[None] * tables[rows[:, None], columns[None], levels]
    return Image.blend(picture, Image.fromarray(rank.clip(0, 255).astype(np.uint8)), 0.75)


def _blurred(share: float) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.filter(ImageFilter.GaussianBlur(share * min(picture.size)))


def _sharpened(percent: int) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.filter(ImageFilter.UnsharpMask(min(picture.size) / 110, percent, 0))


def _compressed(quality: int) -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        file = io.BytesIO()
        picture.save(file, "JPEG", quality=quality)
        return Image.open(file).convert("L")

    return change


def _of_side(side: int) -> Callable[[Image.Image], Image.Image]:
    return lambda picture: picture.resize((side, side), Image.Resampling.BICUBIC)


def _framed(share: float, shade: int, sides: str = "all") -> Callable[[Image.Image], Image.Image]:
    def change(picture: Image.Image) -> Image.Image:
        across, down = (round(share * side) for side in picture.size)
        return ImageOps.expand(picture, (across if sides != "above" else 0, down), shade)

    return change


def _letterboxed(picture: Image.Image) -> Image.Image:
    """Made square by black bars above and below, of an eighth of its height each, as a picture 4:3 is."""
    width, height = picture.size
    cut = picture.crop((0, height // 8, width, height - height // 8))
    return ImageOps.pad(cut, picture.size, color=0)


def _marked(picture: Image.Image) -> Image.Image:
    picture, side = picture.copy(), min(picture.size)
    draw = ImageDraw.Draw(picture)
    draw.text((0.04 * side, 0.05 * side), "R", fill=255, font=ImageFont.load_default(size=side * 0.14))
    draw.text((0.55 * side, 0.93 * side), "WB 14:02", fill=230, font=ImageFont.load_default(size=side * 0.06))
    return picture


def _grainy(picture: Image.Image) -> Image.Image:
    values = np.asarray(picture, np.float32)
    values = values + np.random.default_rng(0).normal(0, 8, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _collimated(picture: Image.Image) -> Image.Image:
    """Black outside of a slightly turned rectangle, as blades leave it."""
    side = min(picture.size)
    mask = Image.new("L", picture.size, 255)
    cut = round(0.07 * side)
    mask = ImageOps.expand(mask.crop((cut, cut, picture.width - cut, picture.height - cut)), cut, 0)
    mask = mask.rotate(2, Image.Resampling.BILINEAR)
    return Image.composite(picture, Image.new("L", picture.size, 4), mask)


# Each makes an X-ray (mode L) of an X-ray.
XRAY_CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "as it is": lambda picture: picture,
    "gamma .6": _curve(lambda gray: gray**0.6),
    "gamma 1.6": _curve(lambda gray: gray**1.6),
    "half the contrast": _curve(lambda gray: 0.5 + 0.5 * (gray - 0.5)),
    "1.5 times the contrast": _curve(lambda gray: 0.5 + 1.5 * (gray - 0.5)),
    "brighter by .15": _curve(lambda gray: gray + 0.15),
    "darker by .15": _curve(lambda gray: gray - 0.15),
    "ends of the gray scale cut off": _saturated,
    "equalised": ImageOps.equalize,
    "equalised locally": _locally_equalised,
    "sharpened by 150 %": _sharpened(150),
    "sharpened by 250 %": _sharpened(250),
    "blurred by .5 % of the side": _blurred(0.005),
    "blurred by 1 % of the side": _blurred(0.01),
    "JPEG of quality 40": _compressed(40),
    "JPEG of quality 20": _compressed(20),
    "120 pixels": _of_side(120),
    "160 pixels": _of_side(160),
    "600 pixels": _of_side(600),
    "2,000 pixels": _of_side(2000),
    "grain": _grainy,
    "black frame of 5 %": _framed(0.05, 0),
    "black frame of 12 %": _framed(0.12, 0),
    "white frame of 8 %": _framed(0.08, 255),
    "gray frame of 8 %": _framed(0.08, 128),
    "black bars above and below": _letterboxed,
    "black bars at the sides": lambda picture: _letterboxed(picture.rotate(90)).rotate(-90),
    "collimated": _collimated,
    "letters": _marked,
}


def in_foreign_style(picture: Image.Image) -> Image.Image:
    """An X-ray as another clinic's system might give it: another gray curve, CLAHE, half the pixels, sharpened."""
    for change in ("gamma .6", "equalised locally"):
        picture = XRAY_CHANGES[change](picture)
    picture = picture.resize((picture.width // 2, picture.height // 2), Image.Resampling.BOX)
    return XRAY_CHANGES["sharpened by 150 %"](picture)
