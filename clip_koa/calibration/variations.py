"""X-rays as another machine, archive or viewer would give them, and images of knees as no frontal X-ray shows them."""

import io
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageFont, ImageOps

from clip_koa.data.randomness import stream

SMALLEST_SIDE = 112  # pixels


def vary(picture: Image.Image, seed: int, number: int, index: int) -> Image.Image:
    """A variation of an X-ray (mode L): several changes, each of a strength that is drawn.

    Args:
        seed: of the fit.
        number: of the variation among those of one X-ray.
        index: of the X-ray.
    """
    rng = stream("variation", seed, number, index)
    for chance, change in _CHANGES:
        if rng.random() < chance:
            picture = change(picture, rng)
    return picture


def _place(picture: Image.Image, rng) -> Image.Image:
    """Cut a little closer and leaning, as whoever crops it may have cut it."""
    side = min(picture.size)
    margin = rng.uniform(0, 0.05, 4) * side
    picture = picture.rotate(rng.uniform(-5, 5), Image.Resampling.BICUBIC, expand=False)
    turned = 0.03 * side  # the corners that a turn leaves black
    box = (
        margin[0] + turned,
        margin[1] + turned,
        picture.width - margin[2] - turned,
        picture.height - margin[3] - turned,
    )
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box)


def _gray_curve(picture: Image.Image, rng) -> Image.Image:
    """Another gamma, contrast and brightness."""
    values = np.arange(256) / 255
    values = values ** np.exp(rng.normal(0, 0.35))
    values = (values - 0.5) * np.exp(rng.normal(-0.1, 0.3)) + 0.5 + rng.normal(0, 0.08)
    return picture.point((255 * values).clip(0, 255).round().astype(int).tolist())


def _window(picture: Image.Image, rng) -> Image.Image:
    """Cut off at other percentiles, or stretched to them."""
    low, high = np.percentile(np.asarray(picture), [rng.uniform(0, 8), rng.uniform(94, 100)])
    values = (np.arange(256) - low) / max(high - low, 10)
    return picture.point((255 * values).clip(0, 255).round().astype(int).tolist())


def _equalise(picture: Image.Image, rng) -> Image.Image:
    """Gray levels as common as each other, in part."""
    return Image.blend(picture, ImageOps.equalize(picture), rng.uniform(0.2, 1))


def _sharpen(picture: Image.Image, rng) -> Image.Image:
    radius = rng.uniform(0.002, 0.015) * min(picture.size)
    return picture.filter(ImageFilter.UnsharpMask(radius, int(rng.uniform(40, 250)), 0))


def _blur(picture: Image.Image, rng) -> Image.Image:
    return picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.001, 0.012) * min(picture.size)))


def _grain(picture: Image.Image, rng) -> Image.Image:
    values = np.asarray(picture, np.float32)
    values = values + rng.normal(0, rng.uniform(0, 10), values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8))


def _mark(picture: Image.Image, rng) -> Image.Image:
    """A letter, and perhaps a line of text, near a border."""
    picture, side = picture.copy(), min(picture.size)
    draw = ImageDraw.Draw(picture)
    texts = [("RL"[int(rng.integers(2))], rng.uniform(0.06, 0.16))]
    if rng.random() < 0.3:
        texts.append(("AP WB 12.03", rng.uniform(0.03, 0.06)))
    for text, share in texts:
        font = ImageFont.load_default(size=max(6, round(share * side)))
        left, top = rng.uniform(0.01, 0.2), rng.uniform(0.01, 0.85)
        left = left if rng.random() < 0.5 else 0.95 - left - share * 0.5 * len(text)
        draw.text((left * picture.width, top * picture.height), text, fill=int(rng.integers(180, 256)), font=font)
    return picture


def _frame(picture: Image.Image, rng) -> Image.Image:
    """Flat bars at two sides or all four, around the X-ray or over its borders, as screenshots and letterboxes do."""
    most = 0.14
    shares = rng.uniform(0.01, most, 4) if rng.random() < 0.4 else np.repeat(rng.uniform(0.01, most, 2), 2)
    shares = shares * [(1, 1, 0, 0), (0, 0, 1, 1), (1, 1, 1, 1)][int(rng.integers(3))]
    left, right, top, bottom = np.rint(shares * min(picture.size)).astype(int).tolist()
    if rng.random() < 0.4:
        picture = picture.crop((left, top, picture.width - right, picture.height - bottom))
    shade = int(rng.choice([0, 0, 255, rng.integers(0, 256)]))
    return ImageOps.expand(picture, (left, top, right, bottom), shade)


def _reduce(picture: Image.Image, rng) -> Image.Image:
    """Fewer pixels, however they are made fewer; some are enlarged again."""
    full = min(picture.size)
    if full <= SMALLEST_SIDE:
        return picture
    share = np.exp(rng.uniform(np.log(SMALLEST_SIDE / full), 0))
    ways = (Image.Resampling.BOX, Image.Resampling.BILINEAR, Image.Resampling.BICUBIC, Image.Resampling.LANCZOS)
    size = tuple(max(SMALLEST_SIDE, round(share * side)) for side in picture.size)
    reduced = picture.resize(size, ways[int(rng.integers(len(ways)))])
    return reduced.resize(picture.size, Image.Resampling.BICUBIC) if rng.random() < 0.3 else reduced


def _compress(picture: Image.Image, rng) -> Image.Image:
    file = io.BytesIO()
    picture.save(file, "JPEG", quality=int(rng.integers(15, 95)))
    return Image.open(file).convert("L")


# In the order in which an X-ray goes through them, with the chance of each.
_CHANGES: tuple[tuple[float, Callable], ...] = (
    (0.4, _place), (0.6, _gray_curve), (0.15, _window), (0.1, _equalise), (0.2, _sharpen), (0.25, _blur),
    (0.2, _grain), (0.3, _mark), (0.35, _frame), (0.35, _reduce), (0.35, _compress),
)  # fmt: skip


def show_otherwise(picture: Image.Image, other: Image.Image, seed: int, number: int, index: int) -> Image.Image:
    """A knee as no frontal X-ray shows it: upside down, on its side, leaning, half, or squeezed beside another one.

    Args:
        picture: mode L.
        other: of another X-ray.
        seed, number, index: see `vary`.
    """
    rng = stream("view", seed, number, index)
    return _VIEWS[int(rng.integers(len(_VIEWS)))](picture, other, rng)


def _upside_down(picture, other, rng):
    return ImageOps.flip(picture)


def _on_its_side(picture, other, rng):
    return picture.transpose((Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_270)[int(rng.integers(2))])


def _leaning(picture, other, rng):
    return picture.rotate(float(rng.uniform(28, 150) * rng.choice([-1, 1])), Image.Resampling.BILINEAR)


def _half(picture, other, rng):
    """What lies above the joint or below it, at full height."""
    share = rng.uniform(0.4, 0.5)
    top = 0.0 if rng.random() < 0.5 else 1 - share
    box = (0, top * picture.height, picture.width, (top + share) * picture.height)
    return picture.resize(picture.size, Image.Resampling.BICUBIC, box)


def _squeezed_pair(picture, other, rng):
    width, height = picture.size
    pair = Image.new("L", (2 * width, height))
    pair.paste(picture, (0, 0))
    pair.paste(ImageOps.mirror(other.resize(picture.size)), (width, 0))
    return pair.resize(picture.size)


_VIEWS = (_upside_down, _upside_down, _on_its_side, _leaning, _half, _squeezed_pair)
