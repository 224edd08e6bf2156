"""Transfer syntaxes of DICOM: each is read, or refused by its name with what could be done."""

import shutil
import subprocess
import tracemalloc
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_script.radiograph import RadiographError, read_radiograph

pytest.importorskip("pydicom")
pytest.importorskip("pylibjpeg")

import pydicom  # noqa: E402
from dicom_files import SIDE, write_dicom  # noqa: E402
from pydicom.encaps import generate_frames  # noqa: E402
from pydicom.uid import UID_dictionary  # noqa: E402

FILES = Path(__file__).parents[1] / "data" / "dicom"
CELLS = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 4
SCALE = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096}
JPEG = "1.2.840.10008.1.2.4."
NATIVE = ("1.2.840.10008.1.2", "1.2.840.10008.1.2.1", "1.2.840.10008.1.2.2")
# The files that hold a frame of each syntax, and by how much a frame may differ.
FRAMES = {
    JPEG + "57": ("jpeg_lossless", 0), JPEG + "70": ("jpeg_lossless_sv1", 0), JPEG + "80": ("jpeg_ls", 0),
    JPEG + "81": ("jpeg_ls_near", 2), JPEG + "90": ("jpeg_2000", 0), JPEG + "91": ("jpeg_2000", 0),
    JPEG + "201": ("htj2k", 0), JPEG + "202": ("htj2k", 0), JPEG + "203": ("htj2k", 0),
    "1.2.840.10008.1.2.5": ("rle", 0),
}  # fmt: skip
# Read too, and tested in other ways below or in test_dicom.py.
ALSO_READ = {
    *NATIVE, "1.2.840.10008.1.2.1.98", "1.2.840.10008.1.2.1.99", "1.2.840.10008.1.2.8.1",
    *(JPEG + process for process in ("50", "51", "52", "53", "54", "55", "56")),
}  # fmt: skip
UNKNOWN_TO_PYDICOM = {
    JPEG + "110": "JPEG XL Lossless",
    JPEG + "111": "JPEG XL JPEG Recompression",
    JPEG + "112": "JPEG XL",
    "1.2.840.113619.5.2": "GE private Implicit VR Big Endian",
    "1.2.3.4": "of unknown name",
}


def _image(content) -> np.ndarray:
    return np.asarray(read_radiograph(content).image, int)


def _frame_of(name: str) -> bytes:
    return next(generate_frames(pydicom.dcmread(FILES / f"{name}.dcm").PixelData, number_of_frames=1))


@pytest.mark.parametrize("syntax", sorted(FRAMES))
def test_compressed_frames_are_read(syntax):
    name, tolerance = FRAMES[syntax]
    content = write_dicom(
        np.zeros((48, 48), np.uint16), syntax, _frame_of(name), BitsStored=12, WindowCenter=1500, WindowWidth=2000
    )
    assert np.abs(_image(content) - _image(FILES / "window.dcm")).max() <= tolerance


NAMES = {uid: entry[0] for uid, entry in UID_dictionary.items() if entry[1] == "Transfer Syntax"} | UNKNOWN_TO_PYDICOM


@pytest.mark.parametrize("syntax", sorted(set(NAMES) - set(FRAMES) - ALSO_READ))
def test_every_other_syntax_is_refused_by_name(syntax):
    with pytest.raises(RadiographError) as refused:
        read_radiograph(write_dicom(CELLS, syntax, b"a frame of it", **SCALE))
    message = str(refused.value)
    assert f"has the transfer syntax {NAMES[syntax]} ({syntax}), which is not read here: convert it" in message
    assert "damaged" not in message and "\n" not in message


def _deflated(cells: np.ndarray) -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    return deflater.compress(cells.tobytes()) + deflater.flush()


@pytest.mark.parametrize("syntax, encode", [("1.2.840.10008.1.2.8.1", _deflated), ("1.2.840.10008.1.2.1.98", bytes)])
@pytest.mark.parametrize("bits", [8, 16])
def test_frames_deflated_or_in_parcels_only(syntax, encode, bits):
    cells = (CELLS >> 4).astype(np.uint8) if bits == 8 else CELLS
    scale = SCALE if bits == 16 else {}
    assert np.array_equal(
        _image(write_dicom(cells, syntax, encode(cells), **scale)), _image(write_dicom(cells, **scale))
    )


def test_a_deflated_frame_that_inflates_without_end_is_cut():
    content = write_dicom(CELLS, "1.2.840.10008.1.2.8.1", _deflated(np.zeros(64 << 20, np.uint8)), **SCALE)
    tracemalloc.start()
    image = _image(content)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert not image.any() and peak < 16 << 20


@pytest.mark.parametrize("syntax", NATIVE)
def test_a_missing_transfer_syntax_is_found_out(syntax):
    content = write_dicom(CELLS, syntax, **SCALE)
    start = content.index(b"\x02\x00\x10\x00UI")
    length = int.from_bytes(content[start + 6 : start + 8], "little")
    without = content[:start] + content[start + 8 + length :]
    assert np.array_equal(_image(without), _image(content))


@pytest.mark.parametrize("name", ["jpeg_baseline", "jpeg_extended"])
def test_a_decoder_gives_its_reason_in_one_line(name):
    content = bytearray((FILES / f"{name}.dcm").read_bytes())
    scan = content.rindex(b"\xff\xda")
    content[scan + 5 + 2 * content[scan + 4] + 1] = 40  # the end of the spectral selection, 63 in a sequential JPEG
    with pytest.raises(RadiographError) as refused:
        read_radiograph(bytes(content))
    message = str(refused.value)
    assert "cannot be decoded as JPEG" in message and "scan stop must be 63" in message
    assert "plugins" not in message and "\n" not in message and "damaged" not in message


def test_a_syntax_that_is_not_that_of_the_pixels_is_told():
    content = (FILES / "jpeg_lossless.dcm").read_bytes()
    native = content.replace(JPEG.encode() + b"57", b"1.2.840.10008.1.2.1\0\0\0")
    with pytest.raises(
        RadiographError, match="names the transfer syntax Explicit VR Little Endian .* compressed by an"
    ):
        read_radiograph(native)
    content = write_dicom(CELLS, "1.2.840.10008.1.2.1", **SCALE)
    start = content.index(b"\x02\x00\x10\x00UI")
    claimed = JPEG.encode() + b"50"
    end = start + 8 + int.from_bytes(content[start + 6 : start + 8], "little")
    element = content[start : start + 6] + len(claimed).to_bytes(2, "little") + claimed
    with pytest.raises(RadiographError, match="names the transfer syntax JPEG Baseline .* not encapsulated"):
        read_radiograph(content[:132] + content[144:start] + element + content[end:])


@pytest.mark.skipif(not shutil.which("dcmcjpeg"), reason="needs dcmtk's dcmcjpeg: apt-get install dcmtk")
@pytest.mark.parametrize("option", ["+el", "+e1"])
@pytest.mark.parametrize("bits, high, signed", [(12, 15, 0), (12, 11, 1), (10, 13, 1), (16, 15, 0)])
def test_high_bits_and_signs_go_through_lossless_jpeg(option, bits, high, signed, tmp_path):
    """Against dcmtk's own way back."""
    noise = np.random.default_rng(bits + high)
    cells = noise.integers(0, 1 << bits, (SIDE, SIDE)).astype(np.uint16) << (high + 1 - bits)
    plain, packed = tmp_path / "plain.dcm", tmp_path / "packed.dcm"
    low = -(1 << (bits - 1)) if signed else 0
    scale = {"WindowCenter": low + (1 << (bits - 1)), "WindowWidth": 1 << bits}
    plain.write_bytes(write_dicom(cells, BitsStored=bits, HighBit=high, PixelRepresentation=signed, **scale))
    subprocess.run(["dcmcjpeg", option, plain, packed], check=True, capture_output=True)
    rendered = subprocess.run(
        ["dcmj2pnm", "+op", "+Wi", "1", packed, tmp_path / "x.pgm"], check=True, capture_output=True
    )
    assert rendered.returncode == 0
    assert np.abs(_image(packed) - np.asarray(Image.open(tmp_path / "x.pgm"), int)).max() <= 1


def test_a_jp2_file_around_the_codestream_does_not_hinder():
    box = bytes.fromhex("0000000c6a5020200d0a870a") + (8).to_bytes(4, "big") + b"jp2c"
    frame = box + _frame_of("jpeg_2000")
    scale = {"BitsStored": 12, "WindowCenter": 1500, "WindowWidth": 2000}
    content = write_dicom(np.zeros((48, 48), np.uint16), JPEG + "90", frame, **scale)
    assert np.array_equal(_image(content), _image(FILES / "window.dcm"))


@pytest.mark.skipif(
    not shutil.which("cjpeg"), reason="needs libjpeg-turbo's cjpeg: apt-get install libjpeg-turbo-progs"
)
@pytest.mark.parametrize("process, options", [("52", ["-arithmetic"]), ("56", ["-arithmetic", "-progressive"])])
def test_arithmetic_coding_is_read(process, options, tmp_path):
    cells = (CELLS >> 4).astype(np.uint8)
    Image.fromarray(cells).save(tmp_path / "x.pgm")
    frame = subprocess.run(
        ["cjpeg", "-quality", "95", *options, tmp_path / "x.pgm"], check=True, capture_output=True
    ).stdout
    assert np.abs(_image(write_dicom(cells, JPEG + process, frame)) - cells).max() <= 8


def test_without_the_decoders_the_extra_is_named(monkeypatch):
    from pydicom.pixels import get_decoder

    monkeypatch.setattr(get_decoder(JPEG + "57"), "_available", {})
    with pytest.raises(RadiographError, match=r"JPEG Lossless.* needs all of the extra `dicom`: pip install"):
        read_radiograph(FILES / "jpeg_lossless.dcm")
