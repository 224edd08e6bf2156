"""Writes small DICOM files with pydicom, for tests: any attribute, any type, any transfer syntax."""

import io
import random
import struct
from typing import NamedTuple

import numpy as np
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.sequence import Sequence
from pydicom.tag import BaseTag, Tag
from pydicom.uid import UID, ExplicitVRLittleEndian

SIDE = 32


class Raw(NamedTuple):
    """An element as its bytes, which pydicom would not write so."""

    vr: str
    value: bytes


def write_dicom(cells: np.ndarray, syntax: str = ExplicitVRLittleEndian, frame: bytes | None = None, **attributes):
    """A DICOM file as bytes.

    Args:
        cells: (rows, columns) pixel cells, uint8 or uint16; all bits are written as they are.
        frame: the compressed frame to write in their place.
        attributes: keyword -> value, (type, value) or Raw; None leaves one out.
    """
    bits = cells.dtype.itemsize * 8
    given = {
        "SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.1",
        "SOPInstanceUID": "1.2.826.0.1.3680043.10.543.1",
        "Modality": "DX",
        "PatientID": "GENERATED-7",
        "SamplesPerPixel": 1,
        "PhotometricInterpretation": "MONOCHROME2",
        "Rows": cells.shape[0],
        "Columns": cells.shape[1],
        "BitsAllocated": bits,
        "BitsStored": bits,
        "PixelRepresentation": 0,
    } | attributes
    given.setdefault("HighBit", given["BitsStored"] - 1 if isinstance(given["BitsStored"], int) else None)
    little = UID(syntax) != "1.2.840.10008.1.2.2"
    dataset = Dataset()
    dataset.add_new("PixelData", "OW", cells.astype(cells.dtype.newbyteorder("<" if little else ">")).tobytes())
    if frame is not None:
        dataset.add_new("PixelData", "OB", encapsulate([frame]))
        dataset["PixelData"].is_undefined_length = True
    for keyword, value in given.items():
        if isinstance(value, Raw):
            dataset.add_new(keyword, "OB", value.value + bytes(len(value.value) % 2))
        elif isinstance(value, tuple):
            dataset.add_new(keyword, *value)
        elif value is not None:
            setattr(dataset, keyword, value)
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = UID(syntax)
    dataset.preamble = bytes(128)
    buffer = io.BytesIO()
    implicit = UID(syntax) == "1.2.840.10008.1.2"
    dataset.save_as(buffer, implicit_vr=implicit, little_endian=little, force_encoding=True)
    content = buffer.getvalue()
    for keyword, value in given.items():
        if isinstance(value, Raw):
            content = _retype(content, Tag(keyword), value.vr, len(value.value) + len(value.value) % 2)
    return content


def _retype(content: bytes, tag: BaseTag, vr: str, size: int) -> bytes:
    """Gives an element of type OB another one, whatever its bytes (PS3.5 7.1.2)."""
    start = struct.pack("<2H", tag.group, tag.element)
    is_long = vr in ("OB", "OW", "UN", "UT")
    header = start + vr.encode() + (struct.pack("<2xI", size) if is_long else struct.pack("<H", size))
    return content.replace(start + b"OB" + struct.pack("<2xI", size), header, 1)


def table_of(entries, first: int, bits: int, signed: bool = False, bytes_each: int = 2) -> Sequence:
    """A sequence of one lookup table, its entries as words, or one byte each."""
    item = Dataset()
    entries = [int(entry) for entry in entries]
    count = len(entries) % (1 << 16)
    item.add_new("LUTDescriptor", "SS" if signed else "US", [count, first if signed else first % (1 << 16), bits])
    if bytes_each == 2:
        item.add_new("LUTData", "US", entries)
    else:
        item.add_new("LUTData", "OW", bytes(entries) + bytes(len(entries) % 2))
    return Sequence([item])


def _ramp(bits: int, shift: int = 0, above: int = 0) -> np.ndarray:
    """All values of some bits, at a place in the cells of 16; `above`, what the bits over them hold."""
    values = np.linspace(0, (1 << bits) - 1, SIDE * SIDE).round().astype(np.uint16).reshape(SIDE, SIDE)
    return values << shift | np.uint16(above << (bits + shift) & 0xFFFF)


_WINDOW = {"WindowCenter": 1800, "WindowWidth": 3000}
_CURVE = np.sqrt(np.linspace(0, 1, 256))
# Files whose gray scale is easily got wrong, and the options with which dcm2pnm shows what they mean.
CASES = {
    "voi_lut_of_12_bits_declared_16": (
        write_dicom(_ramp(12), BitsStored=12, VOILUTSequence=table_of(_CURVE * 4095, 1000, 16)),
        ["+Wl", 1, "+Mv"],
    ),
    "voi_lut_of_8_bits_in_bytes": (
        write_dicom(_ramp(8), BitsStored=8, VOILUTSequence=table_of(_CURVE[:255] * 255, 0, 8, bytes_each=1)),
        ["+Wl", 1],
    ),
    "voi_lut_from_a_negative_value": (
        write_dicom(
            _ramp(12),
            BitsStored=12,
            PixelRepresentation=1,
            VOILUTSequence=table_of(_CURVE * 1023, -200, 10, signed=True),
        ),
        ["+Wl", 1],
    ),
    "modality_lut_of_12_bits": (
        write_dicom(_ramp(12), BitsStored=12, ModalityLUTSequence=table_of(_CURVE * 4095, 500, 12), **_WINDOW),
        ["+Wi", 1],
    ),
    "modality_lut_of_8_bits_in_bytes": (
        write_dicom(_ramp(8), BitsStored=8, ModalityLUTSequence=table_of(_CURVE * 255, 0, 8, bytes_each=1)),
        ["+Ww", 128, 256],
    ),
    "monochrome2_inverse": (
        write_dicom(_ramp(12), BitsStored=12, PresentationLUTShape="INVERSE", **_WINDOW),
        ["+Wi", 1],
    ),
    "monochrome1_identity": (
        write_dicom(
            _ramp(12),
            BitsStored=12,
            PhotometricInterpretation="MONOCHROME1",
            PresentationLUTShape="IDENTITY",
            **_WINDOW,
        ),
        ["+Wi", 1],
    ),
    "monochrome1_inverse": (
        write_dicom(
            _ramp(12),
            BitsStored=12,
            PhotometricInterpretation="MONOCHROME1",
            PresentationLUTShape="INVERSE",
            **_WINDOW,
        ),
        ["+Wi", 1],
    ),
    "six_bits": (write_dicom(_ramp(6), BitsStored=6), ["+Ww", 32, 64]),
    "high_bit_15_of_12": (write_dicom(_ramp(12, 4), BitsStored=12, HighBit=15, **_WINDOW), ["+Wi", 1]),
    "signed_high_bit_13_of_10": (
        write_dicom(
            _ramp(10, 4, above=2),
            BitsStored=10,
            HighBit=13,
            PixelRepresentation=1,
            WindowCenter=0,
            WindowWidth=900,
        ),
        ["+Wi", 1],
    ),
    "overlay_in_the_high_bits": (write_dicom(_ramp(12, 0, above=9), BitsStored=12, **_WINDOW), ["+Wi", 1]),
    "angiography_modality_lut_is_not_for_viewing": (
        write_dicom(
            _ramp(12),
            BitsStored=12,
            SOPClassUID="1.2.840.10008.5.1.4.1.1.12.2",
            Modality="RF",
            ModalityLUTSequence=table_of(_CURVE[::-1] * 4095, 0, 12),
            **_WINDOW,
        ),
        ["+Wi", 1],
    ),
}


def random_file(seed: int) -> tuple[bytes, list]:
    """A file of random pixels and a random gray scale, and the options with which dcm2pnm shows what it means."""
    draw, noise = random.Random(seed), np.random.default_rng(seed)
    allocated = draw.choice([8, 16, 16])
    bits = draw.randint(3, allocated)
    signed = draw.random() < 0.4
    low, high = (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if signed else (0, (1 << bits) - 1)
    attributes = {
        "BitsStored": bits,
        "HighBit": draw.choice([bits - 1, draw.randint(bits - 1, allocated - 1)]),
        "PixelRepresentation": int(signed),
        "PhotometricInterpretation": draw.choice(["MONOCHROME1", "MONOCHROME2"]),
        "PresentationLUTShape": draw.choice([None, "IDENTITY", "INVERSE"]),
    }
    depth = bits
    modality = draw.choice(["none", "rescale", "table"])
    if modality == "rescale":
        slope, intercept = draw.choice([1, 2, -1, -2, 4]), draw.choice([0, -1000, 17])
        attributes |= {"RescaleSlope": slope, "RescaleIntercept": intercept}
        low, high = sorted((low * slope + intercept, high * slope + intercept))
    elif modality == "table":
        attributes["ModalityLUTSequence"], depth = _random_table(draw, noise, low, high)
        low, high = 0, (1 << depth) - 1
    voi = draw.choice(["window", "SIGMOID", "table", "none"])
    options = ["+Ww", (low + high + 1) / 2, high - low + 1]  # the full range, as of a picture
    if voi == "table":
        attributes["VOILUTSequence"], _ = _random_table(draw, noise, max(low, -(1 << 15)), min(high, (1 << 16) - 1))
        options = ["+Wl", 1]
    elif voi != "none" or depth > 8:
        width = draw.choice([1, 2, max(1, (high - low) // 2), high - low + 1])
        several = draw.random() < 0.5
        centre = draw.randint(low, high)
        attributes |= {
            "WindowCenter": [centre, 7] if several else centre,
            "WindowWidth": [width, 9] if several else width,
            "VOILUTFunction": "SIGMOID" if voi == "SIGMOID" else None,
        }
        options = ["+Wi", 1]
    cells = noise.integers(0, 1 << allocated, (SIDE, SIDE)).astype(f"u{allocated // 8}")
    return write_dicom(cells, **attributes), [*options, "+Mv", "+Mm"]


def _random_table(draw: random.Random, noise, low: int, high: int) -> tuple[Sequence, int]:
    bits, count = draw.choice([8, 10, 12, 16]), draw.choice([2, 16, 255, 256, 1000])
    first = draw.randint(low, max(low, high - count))
    first = max(-(1 << 15), min((1 << 15) - 1 if low < 0 else (1 << 16) - 1, first))
    entries = np.sort(noise.integers(0, 1 << bits, count))
    entries[-1] = (1 << bits) - 1
    bytes_each = draw.choice([1, 2]) if bits == 8 else 2
    declared = bits if bytes_each == 1 else draw.choice([bits, 16])
    return table_of(entries[:: draw.choice([1, -1])], first, declared, low < 0, bytes_each), bits
