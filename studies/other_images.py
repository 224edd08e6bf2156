"""Images that are no knee as the model knows it: made of knees, drawn, or found in installed packages."""

from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image, ImageDraw, ImageFilter, ImageOps
from sklearn.datasets import load_sample_images

from dataset_script.radiograph import RadiographError, read_radiograph
from dataset_script.synthetic import draw_knee

SIDE = 224  # pixels
_DRAWN = 30  # of each kind that needs no knee


def _squeezed_pair(knee: Image.Image, other: Image.Image) -> Image.Image:
    pair = np.concatenate([np.asarray(knee), np.asarray(ImageOps.mirror(other))], axis=1)
    return Image.fromarray(pair).resize((SIDE, SIDE))


def _small_pair(knee: Image.Image, other: Image.Image) -> Image.Image:
    both = Image.new("L", (2 * SIDE, 2 * SIDE), 0)
    both.paste(knee, (0, SIDE // 2))
    both.paste(ImageOps.mirror(other), (SIDE, SIDE // 2))
    return both.resize((SIDE, SIDE))


def _with_implant(knee: Image.Image, rng: np.random.Generator) -> Image.Image:
    """A knee under the outline of a total replacement: a shell on the condyles, a tray with a stem in the tibia."""
    picture, line = knee.copy(), 130 + rng.normal(0, 3)
    draw = ImageDraw.Draw(picture)
    outline = [
        (30, -45), (30, -12), (60, -3), (95, -12), (112, -30), (129, -12), (164, -3), (194, -12), (194, -45),
        (170, -20), (112, -42), (54, -20),
    ]  # fmt: skip
    draw.polygon([(x + rng.normal(0, 1.5), line + y) for x, y in outline], fill=252)
    draw.rectangle([35, line + 12, 189, line + 22], fill=252)
    draw.polygon([(100, line + 20), (124, line + 20), (117, line + 75), (107, line + 75)], fill=252)
    return picture.filter(ImageFilter.GaussianBlur(0.8))


def _grained(picture: Image.Image, rng: np.random.Generator, blur: float) -> Image.Image:
    values = np.asarray(picture.filter(ImageFilter.GaussianBlur(blur)), dtype=float)
    values += rng.normal(0, 8, values.shape)
    return Image.fromarray(values.clip(0, 255).astype(np.uint8)).resize((SIDE, SIDE))


def _draw_chest(rng: np.random.Generator) -> Image.Image:
    picture = Image.new("L", (448, 448), int(rng.integers(90, 140)))
    draw = ImageDraw.Draw(picture)
    shift = rng.normal(0, 6, 8)
    for centre in (145, 303):
        box = [centre - 85 + shift[0], 70 + shift[1], centre + 85 + shift[2], 380 + shift[3]]
        draw.ellipse(box, fill=int(rng.integers(25, 60)))
    draw.ellipse([190 + shift[4], 220, 340, 390 + shift[5]], fill=150)  # heart
    for top in range(60, 380, 36):
        for centre in (140, 308):
            draw.arc([centre - 100, top + shift[6], centre + 100, top + 110], 180, 360, fill=130, width=8)
    draw.rectangle([210 + shift[7], 30, 240 + shift[7], 448], fill=190)
    return _grained(picture, rng, 3)


def _draw_hand(rng: np.random.Generator) -> Image.Image:
    picture = Image.new("L", (448, 448), 15)
    draw = ImageDraw.Draw(picture)
    for x, tip in ((90, 190), (150, 80), (215, 50), (280, 70), (345, 130)):
        x, low = x + rng.normal(0, 5), 330.0
        for length, width in ((120, 30), (75, 26), (50, 22), (35, 18)):
            high = low - length * (330 - tip) / 280
            draw.rounded_rectangle([x - width / 2 - 14, high - 4, x + width / 2 + 14, low + 4], 14, fill=70)
            draw.rounded_rectangle(
                [x - width / 2, high + 3, x + width / 2, low - 3], 9, fill=int(rng.integers(170, 220))
            )
            low = high
    for bone in range(8):
        x, y = 120 + 60 * (bone % 4) + rng.normal(0, 4), 350 + 30 * (bone // 4)
        draw.ellipse([x - 26, y - 20, x + 26, y + 20], fill=190, outline=120)
    return _grained(picture, rng, 2)


def _noise(number: int, rng: np.random.Generator) -> Image.Image:
    coarse = SIDE // (1, 4)[number % 2]
    values = rng.normal(128, 60, (coarse, coarse)).clip(0, 255).astype(np.uint8)
    return Image.fromarray(values).resize((SIDE, SIDE))


def _gradient(rng: np.random.Generator) -> Image.Image:
    ramp = np.linspace(rng.integers(0, 100), rng.integers(120, 256), SIDE).astype(np.uint8)
    return Image.fromarray(np.tile(ramp, (SIDE, 1))).rotate(90 * int(rng.integers(4)))


def _photos() -> list[Image.Image]:
    """Photographs of scikit-learn, matplotlib and scikit-image (where it is installed), whole and in quarters."""
    pictures = [Image.fromarray(values) for values in load_sample_images().images]
    files = [Path(matplotlib.get_data_path(), "sample_data", "grace_hopper.jpg")]
    try:
        import skimage

        files += sorted(Path(skimage.__file__).parent.glob("data/*.[jp][pn]g"))
    except ModuleNotFoundError:
        pass
    pictures += [Image.open(file) for file in files]
    cut = []
    for picture in (picture.convert("L") for picture in pictures if min(picture.size) >= 100):
        width, height = picture.size
        quarters = ((0, 0, width // 2, height // 2), (width // 2, height // 2, width, height))
        cut += [picture, *(picture.crop(quarter) for quarter in quarters)]
    return [ImageOps.fit(picture, (SIDE, SIDE)) for picture in cut]


def _dicom_files() -> list[Image.Image]:
    """What pydicom brings along for its own tests, mostly CT and MR; nothing where it is not installed."""
    try:
        import pydicom
    except ModuleNotFoundError:
        return []
    images = []
    for file in sorted(Path(pydicom.__file__).parent.glob("data/test_files/*.dcm")):
        try:
            image = read_radiograph(file, first_frame=True).image
        except RadiographError:
            continue
        if min(image.size) >= 64:
            images.append(ImageOps.fit(image, (SIDE, SIDE)))
    return images


def _each(change: Callable) -> Callable:
    return lambda knees, rng: [change(knee) for knee in knees]


def _pairs(join: Callable) -> Callable:
    return lambda knees, rng: [join(knee, other) for knee, other in zip(knees, [*knees[1:], knees[0]], strict=True)]


# Each makes images (mode L) from knees of SIDE x SIDE pixels (mode L) and a random generator.
OTHER_IMAGES: dict[str, Callable[[list[Image.Image], np.random.Generator], list[Image.Image]]] = {
    "upside down": _each(ImageOps.flip),
    "on its side": _each(lambda knee: knee.rotate(90)),
    "turned by 30 degrees": _each(lambda knee: knee.rotate(30)),
    "both knees, squeezed": _pairs(_squeezed_pair),
    "both knees, small": _pairs(_small_pair),
    "with a painted implant": lambda knees, rng: [_with_implant(knee, rng) for knee in knees],
    "blurred": _each(lambda knee: knee.filter(ImageFilter.GaussianBlur(4))),
    "joint cut off": _each(lambda knee: knee.crop((0, 0, SIDE, SIDE // 2)).resize((SIDE, SIDE))),
    "small in a black frame": _each(lambda knee: ImageOps.expand(knee.resize((SIDE // 2, SIDE // 2)), SIDE // 4)),
    "noise": lambda knees, rng: [_noise(number, rng) for number in range(_DRAWN)],
    "gradients": lambda knees, rng: [_gradient(rng) for _ in range(_DRAWN)],
    "drawn chests": lambda knees, rng: [_draw_chest(rng) for _ in range(_DRAWN)],
    "drawn hands": lambda knees, rng: [_draw_hand(rng) for _ in range(_DRAWN)],
    "drawn knees": lambda knees, rng: [draw_knee(number % 5, "L", number) for number in range(_DRAWN)],
    "photographs": lambda knees, rng: _photos(),
    "CT, MR and others": lambda knees, rng: _dicom_files(),
}
