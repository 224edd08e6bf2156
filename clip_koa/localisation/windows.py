"""Windows with known answers, cut out of training crops and of films composed of them; and windows without a knee."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageOps

from dataset_script.films import HELD_OUT_LOOK, LOOKS, Pair, compose_film
from modeling_clip_koa.localisation_clip_koa import UNIT_DEGREES, Pyramid

# A window whose middle is this far (in its sides) from a knee's, and this much larger or smaller, shows the knee.
NEAR, LARGEST, SMALLEST = 0.36, 2.3, 0.5
# One as far as that from every knee shows none; what lies between is neither.
_FAR = 0.55
MOST_DEGREES = 18.0
_LOOKS = tuple(look for look in LOOKS if look != HELD_OUT_LOOK)


@dataclass(frozen=True)
class Window:
    """A picture (mode L, square) and what a locator should say of it.

    `target` is (dx, dy, log scale, angle in `UNIT_DEGREES`) as `KneeLocator` gives them; None where there is no knee.
    """

    picture: Image.Image
    target: tuple[float, float, float, float] | None


def draw_windows(pairs: Iterator[Pair], size: int, per_person: int, seed: int) -> Iterator[Window]:
    """Windows of each person's knees; the same arguments give the same ones."""
    for pair in pairs:
        rng = np.random.default_rng((seed, pair.number))
        film = _film(pair, rng)
        for _ in range(per_person):
            kind = rng.choice(len(_KINDS), p=_SHARES)
            window = _KINDS[kind](pair, film, rng, size)
            if rng.random() < 0.5:
                window = mirror(window)
            yield Window(degrade(window.picture, rng), window.target)


def mirror(window: Window) -> Window:
    """The mirror image, whose knee lies and leans to the other side."""
    target = window.target and (-window.target[0], window.target[1], window.target[2], -window.target[3])
    return Window(ImageOps.mirror(window.picture), target)


def _film(pair: Pair, rng):
    look = _LOOKS[rng.integers(len(_LOOKS))]
    width = int(np.exp(rng.uniform(np.log(400), np.log(900))))
    trim = rng.uniform(0, 0.16) if rng.random() < 0.75 else 0.0
    film = compose_film(pair.right, pair.left, tuple(rng.integers(0, 2**31, 2)), look, width, trim)
    return Pyramid(film.image), np.array(film.boxes, float)


def _answer(box, centre, side: float, angle: float) -> tuple[float, float, float, float]:
    """Where a box (left, top, right, bottom) of an upright knee lies in a window that is turned by `angle` degrees."""
    right, down = (box[0] + box[2]) / 2 - centre[0], (box[1] + box[3]) / 2 - centre[1]
    cosine, sine = math.cos(math.radians(angle)), math.sin(math.radians(angle))
    across, along = cosine * right + sine * down, -sine * right + cosine * down
    return across / side, along / side, math.log((box[2] - box[0]) / side), -angle / UNIT_DEGREES


def _cut(pyramid: Pyramid, centre, side: float, size: int, angle: float = 0.0) -> Image.Image:
    """A window about a place (x, y) in the picture's pixels."""
    return pyramid.window((float(centre[0]) - pyramid.picture.width / 2, float(centre[1])), side, size, angle)


def _angle(rng) -> float:
    return float(rng.uniform(-MOST_DEGREES, MOST_DEGREES)) if rng.random() < 0.4 else 0.0


def _whole_crop(pair, film, rng, size: int) -> Window:
    """A crop as it is, or nearly."""
    crop = (pair.right, pair.left)[rng.integers(2)]
    side = crop.width * (1.0 if rng.random() < 0.5 else math.exp(rng.uniform(-0.12, 0.0)))
    room = (crop.width - side) / 2
    centre = crop.width / 2 + rng.uniform(-room, room), crop.width / 2 + rng.uniform(-room, room)
    return Window(_cut(Pyramid(crop), centre, side, size), _answer((0, 0, *crop.size), centre, side, 0))


def _in_crop(pair, film, rng, size: int) -> Window:
    """A window inside a crop, where nothing is made up."""
    crop = (pair.right, pair.left)[rng.integers(2)]
    side, angle = crop.width * rng.uniform(0.45, 1), _angle(rng)
    room = (crop.width - side) / 2
    centre = crop.width / 2 + rng.uniform(-room, room), crop.width / 2 + rng.uniform(-room, room)
    target = _answer((0, 0, *crop.size), centre, side, angle)
    return Window(_cut(Pyramid(crop), centre, side, size, angle), target)


def _on_canvas(pair, film, rng, size: int) -> Window:
    """A part of a crop on flat gray, as where an image ends beside the knee."""
    crop = (pair.right, pair.left)[rng.integers(2)]
    width = crop.width
    cuts = rng.uniform(0, 0.17, 4) * width * (rng.random(4) < 0.6)
    box = [round(cut) for cut in (cuts[0], cuts[1], width - cuts[2], width - cuts[3])]
    shade = 0 if rng.random() < 0.5 else int(rng.integers(0, 256))
    canvas = Image.new("L", (2 * width, 2 * width), shade)
    canvas.paste(crop.crop(box), (width // 2 + box[0], width // 2 + box[1]))
    side, angle = width * math.exp(rng.uniform(math.log(0.6), math.log(1.8))), _angle(rng)
    offset = rng.uniform(-0.3, 0.3, 2) * side
    centre = width + offset[0], width + offset[1]
    target = _answer((width / 2, width / 2, 1.5 * width, 1.5 * width), centre, side, angle)
    return Window(_cut(Pyramid(canvas), centre, side, size, angle), target)


def in_film(pair, film, rng, size: int) -> Window:
    """A window about a knee of a film, (its pyramid, its boxes (2, 4))."""
    pyramid, boxes = film
    box = boxes[rng.integers(2)]
    side = (box[2] - box[0]) * math.exp(rng.uniform(math.log(1 / LARGEST), math.log(1 / SMALLEST)))
    angle, offset = _angle(rng), rng.uniform(-NEAR, NEAR, 2) * side
    centre = (box[0] + box[2]) / 2 + offset[0], (box[1] + box[3]) / 2 + offset[1]
    return Window(_cut(pyramid, centre, side, size, angle), _answer(box, centre, side, angle))


def beside(pair, film, rng, size: int) -> Window:
    """A window of a film that shows no knee, or none well enough: shafts, air, both knees at once, a part of one."""
    pyramid, boxes = film
    width, height = pyramid.picture.size
    knee = boxes[0, 2] - boxes[0, 0]
    while True:
        side = knee * math.exp(rng.uniform(math.log(0.3), math.log(4.5)))
        centre = np.array([rng.uniform(0, width), rng.uniform(0, height)])
        away = np.abs((boxes[:, :2] + boxes[:, 2:]) / 2 - centre).max(1) / side
        if away.min() > _FAR or side < 0.34 * knee or side > 3.2 * knee or (away.max() < 0.45 and away.min() > 0.2):
            return Window(_cut(pyramid, centre, side, size, _angle(rng)), None)


def _wrong_way(pair, film, rng, size: int) -> Window:
    """A knee, or a part of one, as no frontal X-ray shows it."""
    knee = (pair.right, pair.left)[rng.integers(2)].resize((2 * size, 2 * size))
    picture = _WAYS[rng.integers(len(_WAYS))](pair, knee, rng)
    side = picture.width * (1.0 if rng.random() < 0.4 else rng.uniform(0.5, 1.1))
    room = abs(picture.width - side) / 2
    centre = picture.width / 2 + rng.uniform(-room, room, 2)
    return Window(_cut(Pyramid(picture), centre, side, size, _angle(rng)), None)


def _on_its_side(pair, knee: Image.Image, rng) -> Image.Image:
    return knee.rotate(90 * int(rng.choice([1, 3])))


def _on_its_head(pair, knee: Image.Image, rng) -> Image.Image:
    return ImageOps.flip(knee)


def _oblique(pair, knee: Image.Image, rng) -> Image.Image:
    return knee.rotate(float(rng.uniform(45, 135) * rng.choice([-1, 1])), Image.Resampling.BILINEAR)


def _negative(pair, knee: Image.Image, rng) -> Image.Image:
    return ImageOps.invert(knee)


def _both_squeezed(pair, knee: Image.Image, rng) -> Image.Image:
    both = Image.new("L", (2 * knee.width, knee.height))
    for place, one in enumerate((pair.right, pair.left)):
        both.paste(one.resize(knee.size), (place * knee.width, 0))
    return both.resize(knee.size)


def _stretched(pair, knee: Image.Image, rng) -> Image.Image:
    """Twice as high or wide, more or less, as an image is that was put into a square of its own."""
    side, part = knee.width, round(knee.width / rng.uniform(1.6, 2.4))
    size = (part, side) if rng.random() < 0.5 else (side, part)
    canvas = Image.new("L", (side, side))
    canvas.paste(knee.resize(size), ((side - size[0]) // 2, (side - size[1]) // 2))
    return canvas


def _half(pair, knee: Image.Image, rng) -> Image.Image:
    """The part above the joint or below it, as it is or stretched."""
    top = 0 if rng.random() < 0.5 else knee.height // 2
    half = knee.crop((0, top, knee.width, top + knee.height // 2))
    return (half.crop((0, 0, half.height, half.height)) if rng.random() < 0.5 else half).resize(knee.size)


def _in_disorder(pair, picture: Image.Image, rng) -> Image.Image:
    pieces = int(rng.choice([2, 3, 4]))
    side = picture.width // pieces
    places = [(side * column, side * row) for row in range(pieces) for column in range(pieces)]
    mixed = Image.new("L", (side * pieces, side * pieces))
    order = rng.permutation(len(places))
    order = np.roll(order, 1) if (order == np.arange(len(places))).all() else order
    for place, source in zip(places, order, strict=True):
        left, top = places[source]
        mixed.paste(picture.crop((left, top, left + side, top + side)), place)
    return mixed


_WAYS = (_on_its_side, _on_its_head, _oblique, _negative, _both_squeezed, _stretched, _half, _in_disorder)


def _drawn(pair, film, rng, size: int) -> Window:
    """No X-ray of a knee: noise of any grain, ramps, rods and rounds as other bones, letters, empty film."""
    way = rng.integers(6)
    if way == 0:
        grain = int(rng.choice([3, 6, 14, 28, 56, size]))
        values = rng.normal(rng.uniform(20, 230), rng.uniform(2, 80), (grain, grain)).clip(0, 255).astype(np.uint8)
        picture = Image.fromarray(values).resize((size, size), Image.Resampling.BICUBIC)
    elif way == 1:
        ramp = np.linspace(*rng.uniform(0, 255, 2), size)[None].repeat(size, 0).astype(np.uint8)
        picture = Image.fromarray(ramp).rotate(90 * int(rng.integers(4)))
    elif way == 2:  # noise whose parts are larger the fewer they are, as in photographs
        values = sum(
            np.asarray(
                Image.fromarray(rng.normal(0, 60 / 2**level, (2**level * 3, 2**level * 3)).astype(np.float32)).resize(
                    (size, size), Image.Resampling.BICUBIC
                )
            )
            for level in range(6)
        )
        picture = Image.fromarray((values + rng.uniform(60, 190)).clip(0, 255).astype(np.uint8))
    elif way == 3:
        picture = Image.new("L", (size, size), int(rng.integers(0, 256)))
        draw = ImageDraw.Draw(picture)
        for _ in range(int(rng.integers(1, 30))):
            place = tuple(rng.uniform(0, size, 2))
            draw.text(place, "".join(rng.choice(list("KneeRL0123 xrayAP"), 6)), fill=int(rng.integers(0, 256)))
    else:
        picture = _bones(rng, size)
    if rng.random() < 0.3:
        picture = ImageChops.add(picture, pair.right.resize((size, size)).point(lambda value: value // 6))
    return Window(picture, None)


def _bones(rng, size: int) -> Image.Image:
    """Rods with round ends, some in rows, in soft tissue; and ribs."""
    side = 2 * size
    picture = Image.new("L", (side, side), int(rng.integers(0, 60)))
    draw = ImageDraw.Draw(picture)
    tissue, bone = int(rng.integers(40, 120)), int(rng.integers(130, 256))
    for _ in range(int(rng.integers(1, 9))):
        start, angle = rng.uniform(-0.1, 1.1, 2) * side, rng.normal(math.pi / 2, 0.5)
        width = rng.uniform(0.03, 0.3) * side
        for _ in range(int(rng.integers(1, 5))):
            end = start + rng.uniform(0.1, 0.6) * side * np.array([math.cos(angle), math.sin(angle)])
            for shade, thick in ((tissue, width * 1.6), (bone, width)):
                draw.line([*start, *end], fill=shade, width=max(1, int(thick)))
                for x, y in (start, end):
                    radius = thick * rng.uniform(0.4, 0.7)
                    draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=shade)
            start = end + rng.uniform(0.02, 0.05) * side * np.array([math.cos(angle), math.sin(angle)])
            width, angle = width * rng.uniform(0.6, 1.0), angle + rng.normal(0, 0.2)
    if rng.random() < 0.3:
        for top in range(0, side, max(8, int(rng.uniform(0.08, 0.2) * side))):
            draw.arc(
                [-0.1 * side, top, 1.1 * side, top + rng.uniform(0.3, 0.8) * side], 180, 360, bone, int(side / 30)
            )
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(rng.uniform(0.5, 4))), float)
    values = values + rng.normal(0, rng.uniform(0, 14), values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize((size, size), Image.Resampling.BICUBIC)


_KINDS = (_whole_crop, _in_crop, _on_canvas, in_film, beside, _wrong_way, _drawn)
_SHARES = (0.11, 0.18, 0.15, 0.20, 0.15, 0.15, 0.06)


def degrade(picture: Image.Image, rng) -> Image.Image:
    """Another gray curve, resolution, grain, JPEG-like coarseness and marks of metal or letters."""
    size = picture.width
    if rng.random() < 0.3:
        few = max(24, round(size * rng.uniform(0.3, 1)))
        picture = picture.resize((few, few), Image.Resampling.BICUBIC).resize((size, size), Image.Resampling.BICUBIC)
    if rng.random() < 0.15:
        picture = picture.filter(ImageFilter.UnsharpMask(rng.uniform(0.5, 3), int(rng.uniform(40, 250)), 0))
    if rng.random() < 0.25:
        _mark(picture, rng)
    values = np.asarray(picture, np.float32) / 255
    if rng.random() < 0.7:
        values = values ** math.exp(rng.normal(0, 0.35))
        values = values * math.exp(rng.normal(0, 0.2)) + rng.normal(0, 0.06)
    if rng.random() < 0.15:
        low, high = np.percentile(values, [rng.uniform(0, 10), rng.uniform(90, 100)])
        values = (values - low) / max(high - low, 0.05)
    if rng.random() < 0.3:
        values = values + rng.normal(0, rng.uniform(0, 0.05), values.shape)
    return Image.fromarray((255 * values).clip(0, 255).astype(np.uint8))


def _mark(picture: Image.Image, rng) -> None:
    """Letters, metal and rulers, which may lie anywhere."""
    draw, size = ImageDraw.Draw(picture), picture.width
    for _ in range(int(rng.integers(1, 4))):
        x, y = rng.uniform(0, size, 2)
        shade, way = int(rng.choice([0, 255, rng.integers(0, 256)])), rng.integers(3)
        if way == 0:
            draw.text((x, y), str(rng.choice(["R", "L", "AP", "12.03", "ID 4711"])), fill=shade)
        elif way == 1:
            end = rng.uniform(0, size, 2)
            draw.line([x, y, *(0.7 * np.array([x, y]) + 0.3 * end)], fill=shade, width=int(rng.integers(1, 6)))
        else:
            radius = rng.uniform(0.01, 0.06) * size
            draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=shade)
