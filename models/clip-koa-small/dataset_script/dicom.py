"""Reading one DICOM radiograph: its pixels as they are meant to be seen, and the few attributes that grading needs.

The gray scale follows PS3.3: modality LUT (C.11.1), VOI LUT or window (C.11.2), then the photometric interpretation.
Needs the extra `dicom` (pydicom with its decoders). Nothing but what `DicomRadiograph` holds leaves this file.
"""

import io
import struct
import zlib
from dataclasses import dataclass

import numpy as np
from PIL import Image

from dataset_script.pixels import MAX_PIXELS, Refusal, check_size, count_values, look_up, to_gray, window_table

# What a radiograph may be called: computed, digital, film, fluoroscopic, or a picture taken over from elsewhere.
MODALITIES = ("CR", "DX", "DR", "RG", "XR", "RF", "OT", "SC", "")
MISSING_EXTRA = "is DICOM, which needs the extra `dicom`: pip install 'clip-koa[dicom]'."
_DEFLATED = "1.2.840.10008.1.2.1.99"
_RLE = "1.2.840.10008.1.2.5"
# Start-of-frame markers of JPEG and JPEG-LS; C4, C8 and CC are other markers.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}


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


def read_dicom(content: bytes, first_frame: bool = False) -> DicomRadiograph:
    """Decodes a DICOM file.

    Args:
        content: the whole file.
        first_frame: take the first frame of a multi-frame file, which is refused otherwise.

    Raises:
        Refusal: no pydicom, no pixel data, another modality, several frames, an absurd size, or a gray scale that
            leaves nothing to see. Damage raises whatever pydicom raises.
    """
    dataset = _parse(content)
    modality = str(dataset.get("Modality") or "").strip().upper()
    if modality not in MODALITIES:
        raise Refusal(f"is a DICOM file of modality {modality}, not a radiograph.")
    if "PixelData" not in dataset or not dataset.PixelData:
        raise Refusal("is a DICOM file without pixel data.")
    frames = int(dataset.get("NumberOfFrames") or 1)
    if frames != 1 and not (first_frame and frames > 1):
        raise Refusal(
            f"holds {frames} frames: a radiograph has one; read_radiograph(first_frame=True) takes the first."
        )
    check_size(int(dataset.Columns), int(dataset.Rows))
    values = _decode(dataset)
    colour = int(dataset.get("SamplesPerPixel") or 1) > 1 or dataset.PhotometricInterpretation == "PALETTE COLOR"
    gray = _colour_to_gray(dataset, values) if colour else _to_gray(dataset, values)
    return DicomRadiograph(
        gray, _laterality(dataset), _text(dataset, "ViewPosition"), _spacing(dataset), _person(dataset)
    )


def read_person_id(path) -> str | None:
    """The patient id of a DICOM file, without reading its pixels.

    Raises:
        Refusal: no pydicom, or the file inflates without end. Damage raises whatever pydicom raises.
    """
    with open(path, "rb") as file:
        if not is_dicom(head := file.read(1024)):
            return None
        content = head + file.read() if _DEFLATED.encode() in head else b""
    return _person(_parse(content or path, stop_before_pixels=True, specific_tags=["PatientID"]))


def _parse(source, **options):
    """The pydicom dataset of a path, or of a file's bytes."""
    try:
        import pydicom
    except ImportError:
        raise Refusal(MISSING_EXTRA) from None
    if not isinstance(source, bytes):
        return pydicom.dcmread(source, **options)
    if _DEFLATED.encode() in source[:1024]:
        _refuse_bomb(source)
    return pydicom.dcmread(io.BytesIO(source), **options)


def _refuse_bomb(content: bytes) -> None:
    """Inflates a deflated file up to a limit, which pydicom itself would not keep."""
    start = 144 + struct.unpack("<I", content[140:144])[0]  # after the group of file meta information
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflater.decompress(content[start:], 4 * MAX_PIXELS)
    if inflater.unconsumed_tail:
        raise Refusal(f"inflates to more than {4 * MAX_PIXELS:,} bytes: no radiograph is so large.")


def _decode(dataset) -> np.ndarray:
    """Stored values of the first frame, (rows, columns) or (rows, columns, samples)."""
    from pydicom.encaps import generate_frames
    from pydicom.pixels import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    plugin = ""
    if syntax.is_compressed and syntax != _DEFLATED:
        frame = next(generate_frames(dataset.PixelData, number_of_frames=int(dataset.get("NumberOfFrames") or 1)))
        if syntax != _RLE:
            _check_codestream(frame, int(dataset.Columns), int(dataset.Rows))
        # Named, since pydicom would try all that are installed, and some end the process on damaged data.
        plugin = "pydicom" if syntax == _RLE else "pylibjpeg"
    return pixel_array(dataset, index=0, decoding_plugin=plugin)


def _check_codestream(frame: bytes, width: int, height: int) -> None:
    """Refuses a compressed frame whose own size is not the header's: decoders believe it and fill the memory."""
    found = None
    if frame[:4] == b"\xff\x4f\xff\x51":  # JPEG 2000: SOC, SIZ
        x1, y1, x0, y0 = struct.unpack(">4I", frame[8:24])
        found = (x1 - x0, y1 - y0)
    elif frame[:2] == b"\xff\xd8":
        place = 2
        while place + 9 <= len(frame) and frame[place] == 0xFF:
            marker, length = frame[place + 1], struct.unpack(">H", frame[place + 2 : place + 4])[0]
            if marker in _START_OF_FRAME:
                found = struct.unpack(">HH", frame[place + 5 : place + 9])[::-1]
                break
            place += 1 if marker == 0xFF else 2 + length
    if found != (width, height):
        raise Refusal(f"is damaged: its header says {width}x{height} pixels, its compressed pixels say {found}.")


def _to_gray(dataset, values: np.ndarray) -> Image.Image:
    from pydicom.pixels import apply_modality_lut

    if values.dtype.itemsize > 2 or values.dtype.kind not in "iu":
        raise Refusal(f"stores {dataset.BitsAllocated} bits a pixel: radiographs have 8 to 16.")
    # Every step is a function of the stored value, so a table of all of them serves at any size of the X-ray.
    first, counts = count_values(values)
    stored = np.arange(first, first + counts.size)
    padding = _padding(dataset, stored)
    shown = counts * ~padding
    output = np.asarray(apply_modality_lut(stored.astype(values.dtype), dataset), np.float64)
    if dataset.get("VOILUTSequence") or dataset.get("WindowWidth") is not None:
        table = _apply_voi(dataset, output)
        seen = table[shown > 0]
        if seen.size > 1 and seen.min() == seen.max():
            raise Refusal("has a VOI window or LUT that leaves one gray value of the whole X-ray.")
    elif int(dataset.BitsStored) <= 8 and output.min() >= 0 and output.max() <= 255:
        table = np.rint(output).astype(np.uint8)  # a picture, as other 8-bit files are
    else:
        table = window_table(output, shown)
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        table = 255 - table
    elif dataset.PhotometricInterpretation != "MONOCHROME2":
        raise Refusal(
            f"has the photometric interpretation {dataset.PhotometricInterpretation}, which is unknown here."
        )
    table[padding] = 0
    return Image.fromarray(look_up(values, first, table))


def _padding(dataset, stored: np.ndarray) -> np.ndarray:
    """Which of the stored values mean "no X-ray here" (PS3.3 C.7.5.1.1.2)."""
    if dataset.get("PixelPaddingValue") is None:
        return np.zeros(stored.shape, bool)
    limits = sorted(
        (int(dataset.PixelPaddingValue), int(dataset.get("PixelPaddingRangeLimit", dataset.PixelPaddingValue)))
    )
    return (stored >= limits[0]) & (stored <= limits[1])


def _apply_voi(dataset, values: np.ndarray) -> np.ndarray:
    """Maps modality values to 0..255 by the VOI LUT, or else the first window (PS3.3 C.11.2.1.2); (N,) uint8."""
    if dataset.get("VOILUTSequence"):
        from pydicom.pixels import apply_voi

        bits = int(dataset.VOILUTSequence[0].LUTDescriptor[2])
        mapped = apply_voi(np.rint(values).astype(np.int64), dataset, index=0) * (255 / (2**bits - 1))
        return np.rint(mapped.clip(0, 255)).astype(np.uint8)
    centre, width = _first(dataset.WindowCenter), _first(dataset.WindowWidth)
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if not np.isfinite([centre, width]).all() or width < (1 if function == "LINEAR" else 1e-9):
        raise Refusal(f"has a window of centre {centre} and width {width}, which is none.")
    if function == "SIGMOID":
        share = 1 / (1 + np.exp((-4 * (values - centre) / width).clip(-500, 500)))
    elif function == "LINEAR_EXACT":
        share = (values - centre) / width + 0.5
    elif function == "LINEAR":  # a width of 1 is a threshold
        share = (values - (centre - 0.5)) / (width - 1) + 0.5 if width > 1 else (values > centre - 0.5) * 1.0
    else:
        raise Refusal(f"has the VOI LUT function {function}, which is unknown here.")
    return np.rint(share.clip(0, 1) * 255).astype(np.uint8)


def _first(value) -> float:
    return float(value[0] if hasattr(value, "__getitem__") and not isinstance(value, str) else value)


def _colour_to_gray(dataset, values: np.ndarray) -> Image.Image:
    if dataset.PhotometricInterpretation == "PALETTE COLOR":
        from pydicom.pixels import apply_color_lut

        deep = int(dataset.RedPaletteColorLookupTableDescriptor[2]) > 8
        values = apply_color_lut(values, dataset)
        values = (values >> 8).astype(np.uint8) if deep and values.dtype.itemsize > 1 else values
    if values.dtype != np.uint8 or values.ndim != 3 or values.shape[2] != 3:
        raise Refusal("is a colour DICOM file of more than 8 bits or other than 3 samples, which is unknown here.")
    return to_gray(Image.fromarray(values))


def _text(dataset, name: str) -> str | None:
    return str(dataset.get(name) or "").strip() or None


def _person(dataset) -> str | None:
    return _text(dataset, "PatientID")


def _laterality(dataset) -> str | None:
    """ImageLaterality, else Laterality (of the series); "U", unpaired, tells nothing."""
    for name in ("ImageLaterality", "Laterality"):
        value = (_text(dataset, name) or "").upper()
        if value in ("L", "R", "B"):
            return value
    return None


def _spacing(dataset) -> tuple[float, float] | None:
    for name in ("PixelSpacing", "ImagerPixelSpacing"):
        value = dataset.get(name)
        if value is not None and len(value) == 2:
            rows, columns = float(value[0]), float(value[1])
            if 0 < rows < 100 and 0 < columns < 100:
                return rows, columns
    return None
