"""From a DICOM file's transfer syntax and Image Pixel module (PS3.3 C.7.6.3) to the values of its first frame."""

import re
import struct
import zlib
from dataclasses import dataclass, replace

import numpy as np

from dataset_script.dicom_elements import need_integer, read_code, read_integer, read_type
from dataset_script.pixels import MAX_DEEP_PIXELS, MAX_PIXELS, Refusal, check_size

MISSING_EXTRA = "is DICOM, which needs the extra `dicom`: pip install 'clip-koa[dicom]'."
DEFLATED = "1.2.840.10008.1.2.1.99"
_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG = "1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2"
_NATIVE = (_IMPLICIT_LITTLE, _EXPLICIT_LITTLE, _EXPLICIT_BIG, DEFLATED)
_ENCAPSULATED_UNCOMPRESSED, _DEFLATED_FRAMES = "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.8.1"
_RLE = "1.2.840.10008.1.2.5"
_JPEG = "1.2.840.10008.1.2.4."
# Of the retired JPEG processes those that libjpeg reads are read as JPEG Extended: its marker tells what it is.
_RETIRED_JPEG = tuple(f"{_JPEG}{process}" for process in (52, 53, 54, 55, 56))
_JPEG_FAMILY = tuple(f"{_JPEG}{process}" for process in (50, 51, 57, 70, 80, 81, 90, 91, 201, 202, 203))
# All that are read.
SYNTAXES = (*_NATIVE, _ENCAPSULATED_UNCOMPRESSED, _DEFLATED_FRAMES, _RLE, *_JPEG_FAMILY, *_RETIRED_JPEG)
# Names that pydicom's dictionary lacks.
_NAMES = {
    _DEFLATED_FRAMES: "Deflated Image Frame Compression",
    _JPEG + "110": "JPEG XL Lossless",
    _JPEG + "111": "JPEG XL JPEG Recompression",
    _JPEG + "112": "JPEG XL",
    "1.2.840.113619.5.2": "GE private Implicit VR Big Endian",
}
_WHAT_TO_DO = (
    "convert it to Explicit VR Little Endian first, with the viewer or archive it is from, or with `gdcmconv --raw` "
    "or dcmtk's `dcmdjpeg` where they know this syntax."
)
_SAMPLES = {"MONOCHROME1": 1, "MONOCHROME2": 1, "PALETTE COLOR": 1, "RGB": 3} | dict.fromkeys(
    ("YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT"), 3
)
# Start-of-frame markers of JPEG and JPEG-LS; C4, C8 and CC are other markers.
_START_OF_FRAME = {*range(0xC0, 0xD0), 0xF7} - {0xC4, 0xC8, 0xCC}
_JPEG_2000 = b"\xff\x4f\xff\x51"  # SOC, SIZ
_ITEM = b"\xfe\xff\x00\xe0"


@dataclass(frozen=True)
class PixelFormat:
    """What the Image Pixel module says of the stored values; `photometric` in capitals, bits counted from 0."""

    rows: int
    columns: int
    frames: int
    samples: int
    photometric: str
    bits_allocated: int
    bits_stored: int
    high_bit: int
    signed: bool
    planar: int

    @property
    def stored_range(self) -> tuple[int, int]:
        """The smallest and the largest value that the stored bits can hold."""
        half = 1 << (self.bits_stored - 1)
        return (-half, half - 1) if self.signed else (0, 2 * half - 1)

    def stored(self, cells: np.ndarray) -> np.ndarray:
        """The stored values of cells of `bits_allocated`: shifted, masked, sign extended; int64."""
        values = (cells.astype(np.int64) >> (self.high_bit + 1 - self.bits_stored)) & ((1 << self.bits_stored) - 1)
        sign = int(self.signed) << (self.bits_stored - 1)
        return (values ^ sign) - sign


def read_pixel_format(dataset) -> PixelFormat:
    """Reads and checks the Image Pixel module.

    Raises:
        Refusal: an attribute is missing, impossible, or contradicts another; an absurd size.
    """
    photometric = read_code(dataset, "PhotometricInterpretation")
    if photometric is None:
        raise Refusal("is a DICOM file without PhotometricInterpretation, which every DICOM image has to give.")
    if photometric not in _SAMPLES:
        raise Refusal(f"has the photometric interpretation {photometric}, which is unknown here.")
    rows, columns = need_integer(dataset, "Rows"), need_integer(dataset, "Columns")
    check_size(columns, rows, MAX_PIXELS if _SAMPLES[photometric] == 1 else MAX_DEEP_PIXELS)
    allocated, bits = need_integer(dataset, "BitsAllocated"), need_integer(dataset, "BitsStored")
    if allocated not in (1, 8, 16):
        raise Refusal(f"stores {allocated} bits a pixel: radiographs have 8 to 16.")
    high = read_integer(dataset, "HighBit")
    if not high:  # 0 is what some write for "unknown", as dcmtk takes it
        high = bits - 1
    if not 1 <= bits <= high + 1 <= allocated:
        raise Refusal(f"has {bits} bits stored of {allocated} allocated, the highest at {high}, which cannot be.")
    representation = need_integer(dataset, "PixelRepresentation")
    if representation not in (0, 1):
        raise Refusal(f"has a PixelRepresentation of {representation}, which is neither 0 nor 1.")
    samples = read_integer(dataset, "SamplesPerPixel") or _SAMPLES[photometric]
    if samples != _SAMPLES[photometric]:
        raise Refusal(f"has {samples} samples a pixel, which the photometric interpretation {photometric} has not.")
    planar = read_integer(dataset, "PlanarConfiguration") or 0
    if planar not in (0, 1):
        raise Refusal(f"has a PlanarConfiguration of {planar}, which is neither 0 nor 1.")
    frames = read_integer(dataset, "NumberOfFrames") or 1
    return PixelFormat(rows, columns, frames, samples, photometric, allocated, bits, high, representation == 1, planar)


def decode_frame(dataset, pixels: PixelFormat) -> tuple[np.ndarray, PixelFormat]:
    """Decodes the first frame.

    Returns:
        Its cells, (rows, columns) unsigned, or (rows, columns, 3) in RGB; and the format of these: a compressed frame
        may hold fewer bits than the header says.

    Raises:
        Refusal: a transfer syntax that is not read here, pixels of another one, another size, or damage.
    """
    syntax = _transfer_syntax(dataset)
    value = dataset.get_item("PixelData").value
    if syntax in _NATIVE:
        if value[:4] == _ITEM and dataset.get_item("PixelData").length == 0xFFFFFFFF:
            raise Refusal(f"names the transfer syntax {_name(syntax)}, but its pixels are compressed by another.")
        _check_length(value, pixels)
        return _run_decoder(syntax, value, pixels, read_type(dataset, "PixelData")), pixels
    if syntax not in SYNTAXES:
        raise Refusal(f"has the transfer syntax {_name(syntax)}, which is not read here: {_WHAT_TO_DO}")
    frame = _first_frame(value, pixels, syntax)
    pixels = replace(pixels, frames=1)
    if syntax in (_ENCAPSULATED_UNCOMPRESSED, _DEFLATED_FRAMES):
        size = pixels.rows * pixels.columns * pixels.samples * max(1, pixels.bits_allocated // 8)
        if syntax == _DEFLATED_FRAMES:
            frame = zlib.decompressobj(-zlib.MAX_WBITS).decompress(frame, size + 1)
        _check_length(frame, pixels)
        return _run_decoder(_EXPLICIT_LITTLE, frame[: size + size % 2], pixels, "OB"), pixels
    if syntax != _RLE:
        if frame[4:8] == b"jP  ":  # a JP2 file, which DICOM does not want around its codestream
            frame = frame[max(0, frame.find(_JPEG_2000)) :]
        precision = _check_codestream(frame, pixels.columns, pixels.rows)
        # The decoders return one or two bytes a sample by the codestream, whatever the header says. As in dcmtk the
        # stored bits end where the codestream's do.
        pixels = replace(
            pixels,
            bits_allocated=8 if precision <= 8 else 16,
            bits_stored=min(pixels.bits_stored, precision),
            high_bit=min(pixels.high_bit, precision - 1),
        )
    from pydicom.encaps import encapsulate

    syntax = _JPEG + "51" if syntax in _RETIRED_JPEG else syntax
    return _run_decoder(syntax, encapsulate([frame], has_bot=False), pixels, "OB"), pixels


def _transfer_syntax(dataset) -> str:
    """The UID of the transfer syntax; where the file names none, that which pydicom found the dataset written in."""
    try:
        named = dataset.file_meta.get("TransferSyntaxUID")
    except Exception:
        named = None
    if isinstance(named, str) and named.strip(" \0"):
        return named.strip(" \0")
    if dataset.get_item("PixelData").length == 0xFFFFFFFF:
        raise Refusal("does not name the transfer syntax of its compressed pixels: set TransferSyntaxUID.")
    implicit, little = dataset.original_encoding
    return _IMPLICIT_LITTLE if implicit else _EXPLICIT_LITTLE if little else _EXPLICIT_BIG


def _name(syntax: str) -> str:
    from pydicom.uid import UID_dictionary

    name = _NAMES.get(syntax) or UID_dictionary.get(syntax, ("of unknown name",))[0]
    return f"{name} ({syntax})"


def _first_frame(value: bytes, pixels: PixelFormat, syntax: str) -> bytes:
    """The bytes of the first frame of encapsulated pixels (PS3.5 A.4)."""
    from pydicom.encaps import generate_frames

    if value[:4] != _ITEM:
        raise Refusal(f"names the transfer syntax {_name(syntax)}, but its pixels are not encapsulated as by it.")
    try:
        return next(generate_frames(value, number_of_frames=pixels.frames))
    except Exception as error:
        raise Refusal(f"is damaged: its encapsulated pixels end in: {_one_line(error)}") from error


def _check_length(value: bytes, pixels: PixelFormat) -> None:
    samples = (
        2 if pixels.photometric == "YBR_FULL_422" else pixels.samples
    )  # whose two colours share every other pixel
    needed = -(-pixels.rows * pixels.columns * samples * pixels.bits_allocated // 8) * pixels.frames
    if len(value) < needed:
        raise Refusal(
            f"is damaged or has a wrong header: {pixels.columns}x{pixels.rows} pixels of {pixels.bits_allocated} bits "
            f"need {needed:,} bytes, and it holds {len(value):,}."
        )


def _run_decoder(syntax: str, value: bytes, pixels: PixelFormat, vr: str) -> np.ndarray:
    """pydicom's decoder on the pixels' value; unsigned cells, colours as RGB."""
    from pydicom.pixels import get_decoder

    decoder = get_decoder(syntax)
    plugin = ""
    if syntax not in _NATIVE:
        # Named, since pydicom would try all that are installed, and some end the process on damaged data.
        plugin = "pydicom" if syntax == _RLE else "pylibjpeg"
        if plugin not in decoder.available_plugins:
            raise Refusal(f"has the transfer syntax {_name(syntax)}, which needs all of the extra `dicom`: "
                          "pip install 'clip-koa[dicom]'.")  # fmt: skip
    try:
        cells, _ = decoder.as_array(
            value,
            index=0,
            decoding_plugin=plugin,
            rows=pixels.rows,
            columns=pixels.columns,
            number_of_frames=pixels.frames,
            samples_per_pixel=pixels.samples,
            photometric_interpretation=pixels.photometric,
            planar_configuration=pixels.planar,
            bits_allocated=pixels.bits_allocated,
            bits_stored=pixels.bits_stored,
            pixel_representation=int(pixels.signed),
            pixel_keyword="PixelData",
            pixel_vr=vr,
            allow_excess_frames=False,
            # `PixelFormat.stored` does both, from any high bit.
            correct_unused_bits=False,
            apply_j2k_sign_correction=False,
            apply_jls_sign_correction=False,
            **({"view_only": True} if syntax in _NATIVE else {}),
        )
    except Exception as error:
        raise Refusal(f"cannot be decoded as {_name(syntax)}: {_one_line(error)}") from error
    cells = cells if cells.dtype.isnative else cells.astype(cells.dtype.newbyteorder("="))
    return cells.view(f"u{cells.dtype.itemsize}")


def _one_line(error: Exception) -> str:
    """The last of the reasons that a decoder gives, in one line, without the name of the plugin."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return re.sub(r"^(pylibjpeg|pydicom): ", "", lines[-1])[:300] if lines else type(error).__name__


def _check_codestream(frame: bytes, width: int, height: int) -> int:
    """The bits a sample of a compressed frame.

    Raises:
        Refusal: its own size is not the header's: decoders believe it and fill the memory.
    """
    found, precision = None, 0
    if frame[:4] == _JPEG_2000 and len(frame) > 42:
        x1, y1, x0, y0 = struct.unpack(">4I", frame[8:24])
        found, precision = (x1 - x0, y1 - y0), (frame[42] & 0x7F) + 1
    elif frame[:2] == b"\xff\xd8":
        place = 2
        while place + 9 <= len(frame) and frame[place] == 0xFF:
            marker, length = frame[place + 1], struct.unpack(">H", frame[place + 2 : place + 4])[0]
            if marker in _START_OF_FRAME:
                found, precision = struct.unpack(">HH", frame[place + 5 : place + 9])[::-1], frame[place + 4]
                break
            place += 1 if marker == 0xFF else 2 + length
    if found is None:
        raise Refusal("is damaged: its compressed pixels are not JPEG, JPEG-LS or JPEG 2000, as its header says.")
    if found != (width, height):
        raise Refusal(f"is damaged: its header says {width}x{height} pixels, its compressed pixels say {found}.")
    if not 1 <= precision <= 16:
        raise Refusal(f"holds compressed pixels of {precision} bits: radiographs have 8 to 16.")
    return precision
