"""Perturbations of X-rays: what positioning, exposure, storage and software do to them, each at one strength.

A perturbation turns a split into a split, so that reading, preprocessing and prediction stay the ones of every other
evaluation. What is drawn at random depends on the X-ray's file alone.
"""

import io
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
from datasets import Dataset, Features, Image
from PIL import Image as PILImage
from PIL import ImageFilter, ImageOps

from dataset_script.knee_xray import encode_png
from dataset_script.radiograph import read_radiograph, read_stored_image
from modeling_clip_koa import CLIPKOAError


class PerturbationError(CLIPKOAError, ValueError):
    """A perturbation that is not known or cannot be made here; the message says what would be right."""


@dataclass(frozen=True)
class Perturbation:
    """What is done to an X-ray: (8-bit grayscale image, random generator) -> image, or the bytes of an image file."""

    title: str
    apply: Callable[[PILImage.Image, np.random.Generator], PILImage.Image | bytes]


def perturb_split(split: Dataset, name: str, folder: str | Path) -> Dataset:
    """The split with every X-ray perturbed.

    Args:
        split: of the `KneeXray` builder; `image` and `file` are read, all else stays.
        name: of `PERTURBATIONS`.
        folder: for the perturbed X-rays; they are read from there on access, so it must outlive the split.

    Raises:
        PerturbationError: an unknown name.
    """
    (name,) = check_perturbations([name])
    undecoded = split.cast_column("image", Image(decode=False))
    perturbed = undecoded.map(
        partial(_perturb_row, name=name),
        features=Features(undecoded.features),
        cache_file_name=str(Path(folder) / f"{name}.arrow"),
        load_from_cache_file=False,
        desc=name,
    )
    return perturbed.cast_column("image", Image())


def perturb(image: PILImage.Image, name: str, file: str = "") -> bytes:
    """The perturbed X-ray (8-bit grayscale) as an image file; `file` seeds what is drawn at random."""
    generator = np.random.default_rng((zlib.crc32(file.encode()), zlib.crc32(name.encode())))
    made = PERTURBATIONS[name].apply(image, generator)
    return made if isinstance(made, bytes) else _encode(made, "PNG", compress_level=1)


def check_perturbations(names: Iterable[str]) -> list[str]:
    """The perturbations named, each once; `all` stands for all of them.

    Raises:
        PerturbationError: an unknown name, or one whose library is not installed.
    """
    chosen = []
    for name in names:
        if name != "all" and name not in PERTURBATIONS:
            raise PerturbationError(f"--perturb {name}: use all, or any of {', '.join(PERTURBATIONS)}.")
        chosen += PERTURBATIONS if name == "all" else [name]
    if "clahe" in chosen:
        try:
            import skimage  # noqa: F401
        except ImportError as error:
            raise PerturbationError(
                "clahe needs scikit-image: pip install 'clip-koa[robustness]', or name the others."
            ) from error
    return list(dict.fromkeys(chosen))


def _perturb_row(row: dict, name: str) -> dict:
    changed = perturb(read_stored_image(row["image"]), name, row["file"])
    # Read as a file would be, and kept as the builder keeps it.
    return {"image": {"bytes": encode_png(read_radiograph(changed).image), "path": None}}


def _encode(image: PILImage.Image, kind: str, **settings) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **settings)
    return buffer.getvalue()


def _move(degrees: float = 0.0, right: float = 0.0, down: float = 0.0, scale: float = 1.0) -> Callable:
    """Rotation counter-clockwise, shift in shares of the side, and scaling about the centre.

    The border is repeated outwards, for a black margin would be a cue that X-rays lack.
    """

    def apply(image: PILImage.Image, _) -> PILImage.Image:
        width, height = image.size
        margin = max(width, height) // 4  # more than any of these movements uncovers
        padded = PILImage.fromarray(np.pad(np.asarray(image), margin, mode="edge"))
        centre = padded.width / 2, padded.height / 2
        angle = np.deg2rad(degrees)
        a, b = np.cos(angle) / scale, -np.sin(angle) / scale
        # PIL asks where in the source each target pixel comes from.
        x, y = centre[0] + right * width, centre[1] + down * height
        matrix = (a, b, centre[0] - a * x - b * y, -b, a, centre[1] + b * x - a * y)
        moved = padded.transform(padded.size, PILImage.Transform.AFFINE, matrix, PILImage.Resampling.BICUBIC)
        return moved.crop((margin, margin, margin + width, margin + height))

    return apply


def _values(change: Callable[[np.ndarray], np.ndarray]) -> Callable:
    """A change of the gray values, which are 0 to 1; what leaves that range saturates."""

    def apply(image: PILImage.Image, _) -> PILImage.Image:
        changed = change(np.asarray(image, dtype=np.float64) / 255)
        return PILImage.fromarray(np.rint(changed.clip(0, 1) * 255).astype(np.uint8))

    return apply


def _contrast(factor: float) -> Callable:
    return _values(lambda values: (values - values.mean()) * factor + values.mean())


def _noise(image: PILImage.Image, generator: np.random.Generator) -> PILImage.Image:
    return _values(lambda values: values + generator.normal(0, 0.05, values.shape))(image, generator)


def _blur(image: PILImage.Image, _) -> PILImage.Image:
    return image.filter(ImageFilter.GaussianBlur(min(image.size) * 0.005))


def _jpeg(image: PILImage.Image, _) -> bytes:
    return _encode(image, "JPEG", quality=30)


def _clahe(image: PILImage.Image, _) -> PILImage.Image:
    """Contrast-limited adaptive histogram equalisation (Zuiderveld 1994), 8 by 8 tiles, clip limit 0.01."""
    from skimage.exposure import equalize_adapthist  # an extra, needed nowhere else

    return _values(lambda values: equalize_adapthist(values, clip_limit=0.01))(image, None)


def _sixteen_bit(image: PILImage.Image, _) -> bytes:
    """The X-ray as a 16-bit PNG, which the reader windows back to 8 bits."""
    return _encode(PILImage.fromarray(np.asarray(image).astype(np.uint16) * 257), "PNG", compress_level=1)


PERTURBATIONS = {
    "rotate_left": Perturbation("rotated 10° counter-clockwise", _move(degrees=10)),
    "rotate_right": Perturbation("rotated 10° clockwise", _move(degrees=-10)),
    "shift_left": Perturbation("shifted 5 % to the left", _move(right=-0.05)),
    "shift_right": Perturbation("shifted 5 % to the right", _move(right=0.05)),
    "shift_up": Perturbation("shifted 5 % up", _move(down=-0.05)),
    "shift_down": Perturbation("shifted 5 % down", _move(down=0.05)),
    "smaller": Perturbation("scaled by 0.9", _move(scale=0.9)),
    "larger": Perturbation("scaled by 1.1", _move(scale=1.1)),
    "darker": Perturbation("15 % of white darker", _values(lambda values: values - 0.15)),
    "brighter": Perturbation("15 % of white brighter", _values(lambda values: values + 0.15)),
    "less_contrast": Perturbation("contrast times 0.7", _contrast(0.7)),
    "more_contrast": Perturbation("contrast times 1.3", _contrast(1.3)),
    "gamma_low": Perturbation("gamma 0.7", _values(lambda values: values**0.7)),
    "gamma_high": Perturbation("gamma 1.4", _values(lambda values: values**1.4)),
    "noise": Perturbation("Gaussian noise, 5 % of white", _noise),
    "blur": Perturbation("Gaussian blur, 0.5 % of the side", _blur),
    "jpeg": Perturbation("JPEG of quality 30", _jpeg),
    "clahe": Perturbation("CLAHE, clip limit 0.01", _clahe),
    "invert": Perturbation("inverted: black for white", lambda image, _: ImageOps.invert(image)),
    "mirror": Perturbation("mirrored left to right", lambda image, _: ImageOps.mirror(image)),
    "sixteen_bit": Perturbation("stored with 16 bits and windowed back", _sixteen_bit),
}
