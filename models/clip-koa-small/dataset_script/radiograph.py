"""Reading one radiograph: any X-ray file or its bytes -> an 8-bit grayscale image and what is known of it."""

import io
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from dataset_script import dicom
from dataset_script.pixels import MAX_PIXELS, CLIPKOAError, Refusal, check_size, most_pixels, to_picture

FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
DICOM_SUFFIXES = (".dcm", ".dicom")
# What the tools search folders for; a file that is named itself may have any suffix, since its content tells.
SUFFIXES = IMAGE_SUFFIXES + DICOM_SUFFIXES
MAX_BYTES = 512 * 1024**2
# Pixels times scans of a progressive JPEG, each of which costs a pass over the image: ten of the largest size.
MAX_JPEG_WORK = 10 * MAX_PIXELS

# Names of the Osteoarthritis Initiative's crops: a person's seven digits and the side, as in 9001234L.png.
# An eighth digit makes it another kind of number, and a letter after the side another kind of word.
_NAME = re.compile(r"(?P<person_id>[0-9]{7})(?![0-9])(?P<laterality>[LR](?![A-Za-z0-9]))?")


# Pillow warns of images that are larger than this, and refuses those of twice the size; ours are checked one by one.
if Image.MAX_IMAGE_PIXELS is not None:
    Image.MAX_IMAGE_PIXELS = max(Image.MAX_IMAGE_PIXELS, MAX_PIXELS)


class RadiographError(CLIPKOAError, ValueError):
    """A file that cannot be read as a radiograph; the message names it and says why."""


@dataclass(frozen=True)
class Radiograph:
    """A radiograph and what its name and its file tell.

    `image` is a PIL image in mode L, bone bright; `source` the path, or "<bytes>"; `laterality` "L", "R", "B" (both
    knees) or None; `person_id` the name's seven digits, or a DICOM file's patient id, or None; `view` a DICOM file's
    view position, as AP or PA; `pixel_spacing` its millimetres from row to row and from column to column; `inverted`
    whether the file shows bone dark on white without saying so, and was set right; `is_dicom` its format.
    """

    image: Image.Image
    source: str
    laterality: str | None = None
    person_id: str | None = None
    view: str | None = None
    pixel_spacing: tuple[float, float] | None = None
    inverted: bool = False
    is_dicom: bool = False


def read_stored_image(cell: dict) -> Image.Image:
    """The picture (mode L) behind an undecoded `datasets.Image` cell of the builder: of its bytes, else of its path.

    The builder stores pictures with bone bright, so that this does not judge anew.
    """
    source = cell["bytes"] if cell["bytes"] is not None else cell["path"]
    return read_radiograph(source, keep_polarity=True).image


def read_radiograph(
    source: str | Path | bytes, *, name: str | None = None, first_frame: bool = False, keep_polarity: bool = False
) -> Radiograph:
    """Reads a PNG, JPEG, WebP, TIFF, BMP or DICOM radiograph as 8-bit grayscale. The content tells the format.

    Images of 8 bits are read as they are: grayscale, palette, RGB, CMYK, transparent ones on black. Deeper ones go
    through a window between their 0.5th and 99.5th percentile. EXIF orientation is applied, and a crop with bone dark
    on white is inverted (`pixels.is_inverted`); `pixels.read_picture` does the same to an image in memory. DICOM goes
    through its own modality and VOI LUT or window, else through the percentiles; MONOCHROME1 is inverted after that,
    and nothing else, since the file states its scale.

    Args:
        source: a path, or the file's bytes.
        name: what to call the X-ray in errors and in `source`, and to take person and side from; default: its path.
        first_frame: take the first of several frames or pages; otherwise such a file is refused.
        keep_polarity: leave an image that shows bone dark as it is.

    Raises:
        RadiographError: the one error for whatever cannot be read: no such file, another format, DICOM without
            pydicom, several frames, an absurd size, damage.
    """
    name = name or ("<bytes>" if isinstance(source, bytes) else str(source))
    try:
        # A file is read out of its place: beside its pixels, its bytes would take as much memory again.
        with io.BytesIO(source) if isinstance(source, bytes) else open(source, "rb", opener=_open_regular) as file:
            head = file.read(132)
            file.seek(0)
            if dicom.is_dicom(head):
                return _from_dicom(file, name, first_frame)
            if not head:
                raise Refusal("is empty.")
            image, inverted = _read_image(file, name, first_frame, keep_polarity)
    except Refusal as refusal:
        raise RadiographError(f"{name} {refusal}") from refusal
    except FileNotFoundError as error:
        raise RadiographError(f"{name}: there is no such file.") from error
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise RadiographError(f"{name} has more than {MAX_PIXELS:,} pixels: no radiograph is that large.") from error
    except UnidentifiedImageError as error:
        raise RadiographError(f"{name} is not a {', '.join(FORMATS)} or DICOM image.") from error
    except Exception as error:  # the decoders raise nearly every kind there is on damaged files
        reason = " ".join(str(error).split())[:300] or type(error).__name__
        raise RadiographError(f"{name} is damaged or cannot be read: {reason}") from error
    person_id, laterality = parse_name(os.path.basename(name))
    return Radiograph(image, name, laterality, person_id, inverted=inverted)


def parse_name(name: str) -> tuple[str | None, str | None]:
    """Person id and laterality ("L", "R") that a file's name tells; `None` for what it does not."""
    match = _NAME.match(name)
    return (match["person_id"], match["laterality"]) if match else (None, None)


def _open_regular(path: str, flags: int) -> int:
    """Opens a regular file: reading a pipe or a device might never end."""
    descriptor = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))
    status = os.fstat(descriptor)
    reason = ""
    if stat.S_ISDIR(status.st_mode):
        reason = "is a folder, not a file."
    elif not stat.S_ISREG(status.st_mode):
        reason = "is not a regular file."
    elif status.st_size > MAX_BYTES:
        reason = f"has {status.st_size:,} bytes, more than {MAX_BYTES:,}: no radiograph is so large."
    if reason:
        os.close(descriptor)
        raise Refusal(reason)
    return descriptor


def _read_image(file: BinaryIO, name: str, first_frame: bool, keep_polarity: bool) -> tuple[Image.Image, bool]:
    """The picture of an image file of `FORMATS`, and whether it had to be inverted."""
    with _open_image(file, name) as opened:
        check_size(*opened.size, most_pixels(opened))
        if opened.format in ("JPEG", "MPO") and opened.info.get("progressive"):
            place = file.tell()
            file.seek(0)
            scans = file.read().count(b"\xff\xda")
            file.seek(place)
            if scans * opened.width * opened.height > MAX_JPEG_WORK:
                raise Refusal(
                    f"has {scans} progressive scans of {opened.width}x{opened.height} pixels: no JPEG needs so many."
                )
        return to_picture(opened, first_frame=first_frame, keep_polarity=keep_polarity, close=True)


def _open_image(file: BinaryIO, name: str) -> Image.Image:
    try:
        return Image.open(file, formats=FORMATS)
    except UnidentifiedImageError:
        if name.lower().endswith(DICOM_SUFFIXES):
            raise Refusal("is not a DICOM file: it lacks the DICM prefix at byte 128.") from None
        raise


def _from_dicom(file: BinaryIO, name: str, first_frame: bool) -> Radiograph:
    read = dicom.read_dicom(file, first_frame)
    person_id, laterality = parse_name(os.path.basename(name))
    return Radiograph(
        read.image,
        name,
        read.laterality or laterality,
        read.person_id or person_id,
        read.view,
        read.pixel_spacing,
        is_dicom=True,
    )
