"""Single values out of a DICOM dataset, from its bytes: an empty element is an absent one.

pydicom converts a whole element when it is asked for one: that raises errors of many kinds, and costs time and memory
without bound where an element that should hold one number holds millions. Here the first value is read, or refused.
"""

import math
import struct

import numpy as np

from dataset_script.pixels import Refusal

_BINARY = {"US": "H", "SS": "h", "UL": "I", "SL": "i", "UV": "Q", "SV": "q", "FL": "f", "FD": "d"}
_TEXT = ("DS", "IS", "CS", "LO", "LT", "SH", "ST", "UC", "UT")
_LONGEST = 64


def read_number(dataset, keyword: str, place: int = 0) -> float | None:
    """The value of a numeric element at a place, the first by default; None where it is absent or empty.

    Raises:
        Refusal: it is not a finite number.
    """
    vr, value, order = _raw(dataset, keyword)
    if not value:
        return None
    if vr in _BINARY:
        code = order + _BINARY[vr]
        size = struct.calcsize(code)
        if len(value) < size:
            raise Refusal(f"has a {keyword} of {len(value)} bytes, too few for a number.")
        text = str(struct.unpack_from(code, value, place * size)[0]) if len(value) >= (place + 1) * size else ""
    elif vr in _TEXT:
        parts = value[: (_LONGEST + 1) * (place + 1)].split(b"\\")
        text = parts[place].decode("latin-1").strip(" \0") if place < len(parts) else ""
    else:
        raise Refusal(f"has a {keyword} of the type {vr}, which is not a number.")
    if not text:
        return None
    try:
        number = float(text) if len(text) <= _LONGEST and "_" not in text else math.nan
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise Refusal(f"has a {keyword} of {text[:20]!r}, which is not a finite number.")
    return number


def read_integer(dataset, keyword: str) -> int | None:
    """As `read_number`, and refused where it is not a whole number."""
    number = read_number(dataset, keyword)
    if number is not None and not (number.is_integer() and abs(number) < 1 << 32):
        raise Refusal(f"has a {keyword} of {number:g}, which is not a whole number of 32 bits.")
    return None if number is None else int(number)


def need_integer(dataset, keyword: str) -> int:
    """As `read_integer`, and refused where it is absent or empty."""
    number = read_integer(dataset, keyword)
    if number is None:
        raise Refusal(f"is a DICOM file without {keyword}, which every DICOM image has to give.")
    return number


def read_text(dataset, keyword: str) -> str | None:
    """The text of an element, several values joined by backslashes; None where it is absent, empty or unreadable."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom raises many kinds on damaged text
        return None
    if value is None or isinstance(value, bytes):
        return None
    text = str(value) if isinstance(value, str) or not hasattr(value, "__iter__") else "\\".join(map(str, value))
    return text.strip(" \0") or None


def read_code(dataset, keyword: str) -> str | None:
    """The first value of a coded string, in capitals; None where it is absent, empty or unreadable."""
    code = (read_text(dataset, keyword) or "").split("\\")[0]
    return "".join(letter for letter in code if letter.isprintable()).strip().upper()[:_LONGEST] or None


def read_item(dataset, keyword: str):
    """The first item of a sequence, a dataset; None where it is absent or empty.

    Raises:
        Refusal: it is no sequence, or a damaged one.
    """
    try:
        value = dataset.get(keyword)
        item = value[0] if value else None
    except Exception:  # pydicom raises many kinds on damaged items
        item = b""
    if item is not None and not hasattr(item, "get_item"):
        raise Refusal(f"has a {keyword} that is not a sequence of items.")
    return item


def read_words(dataset, keyword: str, most: int) -> np.ndarray:
    """The bytes of an element as unsigned 16-bit words, whatever its type is called.

    Args:
        most: how many words to read at most.

    Returns:
        (N,) uint16; N is 0 where the element is absent or empty.
    """
    _, value, order = _raw(dataset, keyword)
    return np.frombuffer(value[: min(len(value) // 2, most) * 2], order + "u2").astype(np.uint16)


def read_type(dataset, keyword: str) -> str:
    """The value representation of an element, as US; "" where it is absent."""
    return _raw(dataset, keyword)[0]


def _raw(dataset, keyword: str) -> tuple[str, bytes, str]:
    """Value representation, bytes, and byte order ("<" or ">") of an element; no bytes where it is absent."""
    from pydicom.datadict import dictionary_VR
    from pydicom.dataelem import RawDataElement

    element = dataset.get_item(keyword)
    if element is None:
        return "", b"", "<"
    if not isinstance(element, RawDataElement):  # a sequence, or converted: pydicom does so for its own needs
        value = element.value
        return ("DS", str(value).encode(), "<") if isinstance(value, (int, float)) else (element.VR, b"", "<")
    vr = element.VR if element.VR not in (None, "UN") else dictionary_VR(keyword).split()[0]
    return vr, element.value or b"", "<" if element.is_little_endian else ">"
