"""The gray scale of a DICOM image, as PS3.3 has it: from stored values to gray levels as they are meant to be seen.

Modality LUT or rescale (C.11.1), VOI LUT or window (C.11.2), presentation LUT and photometric interpretation (C.11.6,
C.7.6.3.1.2). Where the standard leaves a choice, or files do not keep to it, the choice is that of dcmtk's `dcm2pnm`.
"""

from dataclasses import dataclass

import numpy as np

from dataset_script.dicom_decoding import PixelFormat
from dataset_script.dicom_elements import read_code, read_item, read_number, read_text, read_type, read_words
from dataset_script.pixels import Refusal, window_table

# X-ray angiographic, radiofluoroscopic and biplane images: theirs leads back to the beam, and is not for viewing.
_NO_MODALITY_LUT = tuple(f"1.2.840.10008.5.1.4.1.1.12.{kind}" for kind in "123")
_MOST_ENTRIES = 1 << 16
_LARGEST = 1e30


@dataclass(frozen=True)
class _Table:
    """A lookup table: `entries` (N,) from the value `first` on, of `bits` bits."""

    first: int
    entries: np.ndarray
    bits: int

    def look_up(self, values: np.ndarray) -> np.ndarray:
        """The entries of some values, those of the ends for values outside; (M,) float64."""
        places = (np.trunc(values) - self.first).clip(0, self.entries.size - 1)
        return self.entries[places.astype(np.int64)].astype(np.float64)


def gray_levels(dataset, pixels: PixelFormat, cells: np.ndarray, counts: np.ndarray) -> np.ndarray:
    """The gray level of every cell of a monochrome image, padding black.

    Args:
        cells: (N,) values of the pixel cells, each once.
        counts: (N,) how many pixels have each.

    Returns:
        (N,) uint8.

    Raises:
        Refusal: an attribute that cannot be, or a gray scale that leaves nothing to see.
    """
    stored = pixels.stored(cells)
    padding = _padding(dataset, pixels, stored, cells)
    shown = counts * ~padding
    table, values, (low, high) = _apply_modality(dataset, pixels, stored)
    gray = _apply_voi(dataset, values, signed=low < 0)
    if gray is not None:
        seen = np.rint(gray[shown > 0])
        if seen.size > 1 and seen.min() == seen.max():
            raise Refusal("has a VOI window or LUT that leaves one gray value of the whole X-ray.")
    elif (table.bits if table else pixels.bits_stored) <= 8:
        gray = (values - low) * (255 / (high - low))  # a picture, as other files of 8 bits and less are
    else:
        gray = window_table(values, shown).astype(np.float64)
    levels = np.rint(_present(dataset, pixels, gray)).astype(np.uint8)
    levels[padding] = 0
    return levels


def palette_colours(dataset, pixels: PixelFormat, cells: np.ndarray) -> np.ndarray:
    """The colours that the palette gives to cells (PS3.3 C.7.9); (N, 3) uint8."""
    signed = pixels.stored_range[0] < 0
    tables = [_read_table(dataset, signed, f"{name}PaletteColorLookupTable") for name in ("Red", "Green", "Blue")]
    if None in tables:
        raise Refusal("has a palette without all of its red, green and blue tables; segmented ones are not read here.")
    full = (1 << max(table.bits for table in tables)) - 1
    stored = pixels.stored(cells)
    return np.stack([np.rint(table.look_up(stored) * (255 / full)) for table in tables], axis=1).astype(np.uint8)


def _read_table(dataset, signed: bool, prefix: str = "LUT") -> _Table | None:
    """The lookup table of an item; None where its descriptor or its data are absent or empty.

    Entries of 8 bits may be stored one a byte. How many bits an entry has is taken from the largest of them, at least
    8, and not from the descriptor, which often tells the size of the cell: so do `dcm2pnm +Mv` and other viewers.
    """
    descriptor = read_words(dataset, f"{prefix}Descriptor", 3)
    entries = read_words(dataset, f"{prefix}Data", _MOST_ENTRIES)
    if descriptor.size == 0 or entries.size == 0:
        return None
    kind = read_type(dataset, f"{prefix}Descriptor")
    if descriptor.size < 3 or kind not in ("US", "SS"):
        raise Refusal(f"has a {prefix}Descriptor that is not three whole numbers.")
    count, first = int(descriptor[0]) or _MOST_ENTRIES, int(descriptor[1])
    if entries.size != count and entries.size == (count + 1) // 2:
        entries = np.frombuffer(entries.astype("<u2").tobytes(), np.uint8)[:count]
    if (signed or kind == "SS") and first >= 1 << 15:
        first -= 1 << 16
    return _Table(first, entries, max(8, int(entries.max()).bit_length()))


def _padding(dataset, pixels: PixelFormat, stored: np.ndarray, cells: np.ndarray) -> np.ndarray:
    """Which of the values mean "no X-ray here" (PS3.3 C.7.5.1.1.2); (N,) bool."""
    value = read_number(dataset, "PixelPaddingValue")
    if value is None:
        return np.zeros(stored.shape, bool)
    limit = read_number(dataset, "PixelPaddingRangeLimit")
    # Written as signed where the pixels are not, or the other way round, it means the same bits.
    half = 1 << (pixels.bits_allocated - 1)
    smallest = -half if pixels.signed else 0
    low, high = sorted(
        (number - smallest) % (2 * half) + smallest for number in (value, value if limit is None else limit)
    )
    if low < pixels.stored_range[0] or high > pixels.stored_range[1]:  # it uses bits that no pixel stores
        stored = (cells.astype(np.int64) - smallest) % (2 * half) + smallest
    return (stored >= low) & (stored <= high)


def _apply_modality(dataset, pixels: PixelFormat, stored: np.ndarray) -> tuple:
    """The modality LUT, where there is one; the values after it or after the rescale; and the range they may have."""
    low, high = pixels.stored_range
    if read_text(dataset, "SOPClassUID") in _NO_MODALITY_LUT:
        return None, stored.astype(np.float64), (low, high)
    item = read_item(dataset, "ModalityLUTSequence")
    table = _read_table(item, pixels.signed) if item is not None else None
    if table is not None:
        return table, table.look_up(stored), (0, (1 << table.bits) - 1)
    slope, intercept = read_number(dataset, "RescaleSlope"), read_number(dataset, "RescaleIntercept")
    if not slope or intercept is None:  # one says nothing without the other, and a slope of 0 is none
        slope, intercept = 1.0, 0.0
    if max(abs(slope), abs(intercept)) > _LARGEST:
        raise Refusal(f"has a rescale slope of {slope:g} and intercept of {intercept:g}, which cannot be.")
    return None, stored * slope + intercept, tuple(sorted((low * slope + intercept, high * slope + intercept)))


def _apply_voi(dataset, values: np.ndarray, signed: bool) -> np.ndarray | None:
    """Maps modality values to 0..255 by the first VOI LUT, or else the first window (PS3.3 C.11.2.1.2).

    Returns:
        (N,) float64; None where the file has neither.
    """
    item = read_item(dataset, "VOILUTSequence")
    table = _read_table(item, signed) if item is not None else None
    if table is not None:
        return table.look_up(values) * (255 / ((1 << table.bits) - 1))
    centre, width = read_number(dataset, "WindowCenter"), read_number(dataset, "WindowWidth")
    if centre is None or width is None:
        return None
    function = read_code(dataset, "VOILUTFunction") or "LINEAR"
    if width < (1 if function == "LINEAR" else 1e-9) or max(abs(centre), width) > _LARGEST:
        raise Refusal(f"has a window of centre {centre:g} and width {width:g}, which is none.")
    if function == "SIGMOID":
        share = 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-500, 500)))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif function == "LINEAR":  # a width of 1 is a threshold
        share = (values - (centre - 0.5)) / (width - 1) + 0.5 if width > 1 else (values > centre - 0.5) * 1.0
    else:
        raise Refusal(f"has the VOI LUT function {function}, which is unknown here.")
    return share.clip(0, 1) * 255


def _present(dataset, pixels: PixelFormat, gray: np.ndarray) -> np.ndarray:
    """Gray values as they are meant to be seen: by presentation LUT, or its shape, or photometric interpretation.

    A shape goes before the photometric interpretation, which it contradicts in some files, as it does in dcmtk.
    """
    item = read_item(dataset, "PresentationLUTSequence")
    table = _read_table(item, signed=False) if item is not None else None
    if table is not None:
        return table.look_up(np.rint(gray * ((table.entries.size - 1) / 255))) * (255 / ((1 << table.bits) - 1))
    shape = read_code(dataset, "PresentationLUTShape")
    inverse = shape == "INVERSE" or shape != "IDENTITY" and pixels.photometric == "MONOCHROME1"
    return 255 - np.rint(gray) if inverse else gray
