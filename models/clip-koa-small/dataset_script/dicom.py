"""Reading one DICOM radiograph: its pixels as they are meant to be seen, and the few attributes that grading needs.

Needs the extra `dicom` (pydicom with its decoders). Nothing but what `DicomRadiograph` holds leaves this file.
"""

import io
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
from PIL import Image

from dataset_script.dicom_decoding import DEFLATED, MISSING_EXTRA, PixelFormat, decode_frame, read_pixel_format
from dataset_script.dicom_elements import read_code, read_integer, read_number, read_text
from dataset_script.dicom_gray_scale import gray_levels, palette_colours
from dataset_script.pixels import MAX_PIXELS, Refusal, count_values, look_up, to_gray

# What a radiograph may be called: computed, digital, film, fluoroscopic, or a picture taken over from elsewhere.
MODALITIES = ("CR", "DX", "DR", "RG", "XR", "RF", "OT", "SC")
# Bytes of a deflated file: two a pixel, and what comes before the pixels.
_MOST_INFLATED = 2 * MAX_PIXELS + (16 << 20)
_PIECE = 1 << 20
_HEAD = 1024  # bytes, which hold the transfer syntax


@dataclass(frozen=True)
class DicomRadiograph:
    """A DICOM radiograph: `image` (PIL, mode L) and what it says of itself.

    `laterality` is "L", "R", "B" (both) or None; `view` its view position, as AP or PA; `pixel_spacing` millimetres
    from row to row and from column to column, at the detector where the patient's own is not given.
    """

    image: Image.Image
    laterality: str | None
    view: str | None
    pixel_spacing: tuple[float, float] | None
    person_id: str | None


def is_dicom(head: bytes) -> bool:
    """Whether the first 132 bytes of a file are a DICOM file's (PS3.10)."""
    return head[128:132] == b"DICM"


def read_dicom(source: bytes | BinaryIO, first_frame: bool = False) -> DicomRadiograph:
    """Decodes a DICOM file.

    Args:
        source: the whole file, or it opened, which takes less memory.
        first_frame: take the first frame of a multi-frame file, which is refused otherwise.

    Raises:
        Refusal: no pydicom, no pixel data, another modality, several frames, an absurd size, a transfer syntax that is
            not read here, an attribute that cannot be, or a gray scale that leaves nothing to see. A file that is
            damaged before its pixels raises whatever pydicom raises.
    """
    if not isinstance(source, bytes) and _is_odd(head := source.read(_HEAD)):
        source = head + source.read()
    elif not isinstance(source, bytes):
        source.seek(0)
    dataset = _parse(source)
    modality = read_code(dataset, "Modality")
    if modality is not None and modality not in MODALITIES:
        raise Refusal(f"is a DICOM file of modality {modality}, not a radiograph.")
    pixel_data = getattr(dataset.get_item("PixelData"), "value", None)
    if not pixel_data or not isinstance(pixel_data, bytes):
        raise Refusal("is a DICOM file without pixel data.")
    pixels = read_pixel_format(dataset)
    if pixels.frames != 1 and not (first_frame and pixels.frames > 1):
        raise Refusal(
            f"holds {pixels.frames} frames: a radiograph has one; read_radiograph(first_frame=True) takes the first."
        )
    cells, pixels = decode_frame(dataset, pixels)
    return DicomRadiograph(
        _to_gray(dataset, cells, pixels),
        _laterality(dataset),
        read_text(dataset, "ViewPosition"),
        _spacing(dataset),
        read_text(dataset, "PatientID"),
    )


def read_identity(source: str | Path | bytes) -> tuple[str | None, str | None]:
    """The patient id and the side ("L", "R" or "B") of a DICOM file, without reading its pixels; None for neither.

    Args:
        source: its path, or its bytes, of which the end may be missing.

    Raises:
        Refusal: no pydicom, or the file inflates without end. Damage raises whatever pydicom raises.
    """
    dataset = _parse_header(source, ["PatientID", "ImageLaterality", "Laterality"])
    return (read_text(dataset, "PatientID"), _laterality(dataset)) if dataset else (None, None)


def read_study(source: str | Path | bytes) -> tuple[str | None, str | None, str | None]:
    """The patient id, the study's UID and the side ("L", "R" or "B") of a DICOM file, without reading its pixels.

    Args:
        source: as of `read_identity`.

    Raises:
        Refusal: as `read_identity`.
    """
    dataset = _parse_header(source, ["PatientID", "StudyInstanceUID", "ImageLaterality", "Laterality"])
    if not dataset:
        return None, None, None
    return read_text(dataset, "PatientID"), read_text(dataset, "StudyInstanceUID"), _laterality(dataset)


def count_pixels(source: str | Path | bytes) -> int:
    """How many pixels a DICOM file says that it has, without reading them; 0 where it does not say.

    Raises:
        Refusal: as `read_identity`, or one of its sides is not a number.
    """
    dataset = _parse_header(source, ["Rows", "Columns"])
    return (read_integer(dataset, "Rows") or 0) * (read_integer(dataset, "Columns") or 0) if dataset else 0


def _parse_header(source: str | Path | bytes, keywords: list[str]):
    """A few elements that come before the pixels, empty where a value is far too long; None for no DICOM file."""
    options = {"specific_tags": keywords, "stop_before_pixels": True}
    if isinstance(source, bytes):
        return _parse(source, **options) if is_dicom(source[:132]) else None
    with open(source, "rb") as file:
        if not is_dicom(head := file.read(_HEAD)):
            return None
        if _is_odd(head):
            return _parse(head + file.read(), **options)
    dataset = _parse(source, defer_size=1 << 16, **options)
    for keyword in keywords:
        element = dataset.get_item(keyword, keep_deferred=True)
        if element is not None and element.value is None:  # deferred, since it is long
            del dataset[keyword]
    return dataset


def _is_odd(head: bytes) -> bool:
    """Whether a file that begins so is deflated or lies of its meta information, which pydicom would believe."""
    return DEFLATED.encode() in head or _set_group_length_right(head) != head


def _parse(source, **options):
    """The pydicom dataset of a path, an open file, or a file's bytes."""
    try:
        import pydicom
    except ImportError:
        raise Refusal(MISSING_EXTRA) from None
    if not isinstance(source, bytes):
        return pydicom.dcmread(source, **options)
    source = _set_group_length_right(source)
    if DEFLATED.encode() in source[:_HEAD]:
        _refuse_bomb(source)
    return pydicom.dcmread(io.BytesIO(source), **options)


def _end_of_meta(content: bytes) -> int:
    """Where the file meta information ends (PS3.10 7.1): elements of group 2 in explicit little endian."""
    place = 132
    while content[place : place + 2] == b"\x02\x00":
        long = content[place + 4 : place + 6] in (b"OB", b"OW", b"UN", b"UT", b"SQ")
        size = content[place + 8 : place + 12] if long else content[place + 6 : place + 8]
        place += (12 if long else 8) + int.from_bytes(size, "little")
    return place


def _set_group_length_right(content: bytes) -> bytes:
    """The file without the length of its meta information where that is empty or wrong: pydicom reads on by it."""
    if content[132:138] != b"\x02\x00\x00\x00UL":
        return content
    start = 140 + int.from_bytes(content[138:140], "little")
    if start == 144 and start + int.from_bytes(content[140:144], "little") == _end_of_meta(content):
        return content
    return content[:132] + content[start:]


def _refuse_bomb(content: bytes) -> None:
    """Inflates a deflated file in pieces up to a limit, which pydicom itself would not keep."""
    inflater, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(_end_of_meta(content), len(content), _PIECE):
        rest = content[start : start + _PIECE]
        while rest and not inflater.eof:
            size += len(inflater.decompress(rest, _PIECE))
            rest = inflater.unconsumed_tail
            if size > _MOST_INFLATED:
                raise Refusal(f"inflates to more than {_MOST_INFLATED:,} bytes: no radiograph is so large.")


def _to_gray(dataset, cells: np.ndarray, pixels: PixelFormat) -> Image.Image:
    if pixels.samples > 1:
        if cells.dtype != np.uint8 or pixels.bits_stored != 8:
            raise Refusal(f"is a colour DICOM file of {pixels.bits_stored} bits a sample: those of 8 are read here.")
        return to_gray(Image.fromarray(cells))
    # Every step is a function of the cell's value, so a table of all of them serves at any size of the X-ray.
    first, counts = count_values(cells)
    values = np.arange(first, first + counts.size)
    if pixels.photometric == "PALETTE COLOR":
        colours = palette_colours(dataset, pixels, values)
        table = np.asarray(to_gray(Image.fromarray(colours[np.newaxis])))[0]
    else:
        table = gray_levels(dataset, pixels, values, counts)
    return Image.fromarray(look_up(cells, first, table))


def _laterality(dataset) -> str | None:
    """ImageLaterality, else Laterality (of the series); "U", unpaired, tells nothing."""
    for name in ("ImageLaterality", "Laterality"):
        value = read_code(dataset, name)
        if value in ("L", "R", "B"):
            return value
    return None


def _spacing(dataset) -> tuple[float, float] | None:
    """Millimetres from row to row and from column to column; None where no element gives two that can be."""
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        try:
            rows, columns = read_number(dataset, name), read_number(dataset, name, 1)
        except Refusal:  # a spacing that is none leaves the X-ray as good as it is
            continue
        if rows is not None and columns is not None and 0 < rows < 100 and 0 < columns < 100:
            return rows, columns
    return None
