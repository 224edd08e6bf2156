"""Reading one radiograph: any X-ray file or its bytes -> an 8-bit grayscale image and what is known of it."""

import io
import re
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

FORMATS = ("PNG", "JPEG", "WEBP")
MIN_SIDE, MAX_PIXELS = 32, 64_000_000
# 16-bit values outside these percentiles are taken for markers and dead pixels, and saturate.
WINDOW_PERCENTILES = (0.5, 99.5)

# Names of the Osteoarthritis Initiative's crops: a person's seven digits and the side, as in 9001234L.png.
# An eighth digit makes it another kind of number, and a letter after the side another kind of word.
_NAME = re.compile(r"(?P<person_id>[0-9]{7})(?![0-9])(?P<laterality>[LR](?![A-Za-z0-9]))?")


class RadiographError(ValueError):
    """A file that cannot be read as a radiograph; the message names it and says why."""


@dataclass(frozen=True)
class Radiograph:
    """A radiograph and what its name tells.

    `image` is a PIL image in mode L; `laterality` "L", "R" or None; `person_id` seven digits or None; `source` the
    path, or "<bytes>".
    """

    image: Image.Image
    source: str
    laterality: str | None = None
    person_id: str | None = None


def read_radiograph(source: str | Path | bytes) -> Radiograph:
    """Reads a PNG, JPEG or WebP radiograph as 8-bit grayscale.

    Grayscale, palette, RGB and transparent images (on black) of 8 bits are read as they are; 16-bit grayscale goes
    through a window between its 0.5th and 99.5th percentile. EXIF orientation is applied.

    Args:
        source: a path, or the file's bytes.

    Raises:
        RadiographError: no such file, not one of these formats, damaged, or of an absurd size.
    """
    name = "<bytes>" if isinstance(source, bytes) else str(source)
    try:
        with warnings.catch_warnings():
            # Pillow only warns of sizes between its limit and twice that; ours is lower and an error.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=FORMATS) as opened:
                _check_size(opened, name)
                opened.load()
                image = _to_8_bit(ImageOps.exif_transpose(opened))
    except UnidentifiedImageError as error:
        raise RadiographError(f"{name} is not a {', '.join(FORMATS)} image.") from error
    except Image.DecompressionBombError as error:
        raise RadiographError(f"{name} has more than {MAX_PIXELS:,} pixels: no radiograph is that large.") from error
    except FileNotFoundError as error:
        raise RadiographError(f"{name}: there is no such file.") from error
    except RadiographError:
        raise
    # Pillow's decoders raise all of these on damaged files.
    except (OSError, SyntaxError, ValueError, EOFError, IndexError, TypeError, OverflowError, MemoryError) as error:
        raise RadiographError(f"{name} is damaged or cannot be read: {error}") from error
    person_id, laterality = (None, None) if isinstance(source, bytes) else parse_name(Path(source).name)
    return Radiograph(image, name, laterality, person_id)


def parse_name(name: str) -> tuple[str | None, str | None]:
    """Person id and laterality ("L", "R") that a file's name tells; `None` for what it does not."""
    match = _NAME.match(name)
    return (match["person_id"], match["laterality"]) if match else (None, None)


def _check_size(image: Image.Image, name: str) -> None:
    width, height = image.size
    if width * height > MAX_PIXELS:
        raise RadiographError(
            f"{name} has {width}x{height} pixels, more than {MAX_PIXELS:,}: no radiograph is so large."
        )
    if min(width, height) < MIN_SIDE:
        raise RadiographError(
            f"{name} has {width}x{height} pixels: a radiograph has at least {MIN_SIDE} on each side."
        )


def _to_8_bit(image: Image.Image) -> Image.Image:
    if image.mode.startswith("I"):  # 16 bits; Pillow's own conversion would clip them to white
        values = np.asarray(image, dtype=np.float32)
        low, high = np.percentile(values, WINDOW_PERCENTILES)
        if high <= low:  # hardly any contrast: the full range of the values is all there is
            low, high = values.min(), max(values.max(), values.min() + 1)
        return Image.fromarray(np.rint((values - low).clip(0, high - low) * (255 / (high - low))).astype(np.uint8))
    if image.mode in ("RGBA", "LA", "PA") or "transparency" in image.info:
        image = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", image.size, "black"), image).convert("L")
    return image.convert("L")
