"""The gray scale of DICOM (PS3.3 C.7.6.3, C.11) against dcmtk's renderer and pydicom's own functions."""

import io
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_script.radiograph import RadiographError, read_radiograph

pytest.importorskip("pydicom")

import pydicom  # noqa: E402
from dicom_files import CASES, SIDE, Raw, random_file, table_of, write_dicom  # noqa: E402
from pydicom.pixels import apply_modality_lut, apply_presentation_lut, apply_voi_lut  # noqa: E402

GOLDEN = Path(__file__).parents[1] / "data" / "dicom" / "gray_scale"
needs_dcmtk = pytest.mark.skipif(not shutil.which("dcm2pnm"), reason="needs dcmtk's dcm2pnm: apt-get install dcmtk")


def _gray(content: bytes) -> np.ndarray:
    return np.asarray(read_radiograph(content).image, int)


def _render(content: bytes, options: list, folder: Path) -> np.ndarray:
    path = folder / "x.dcm"
    path.write_bytes(content)
    command = ["dcm2pnm", "+op", *map(str, options), str(path)]
    output = subprocess.run(command, check=True, capture_output=True).stdout
    return np.asarray(Image.open(io.BytesIO(output)).convert("L"), int)


@pytest.mark.parametrize("name", sorted(CASES))
def test_what_is_easily_got_wrong_is_as_dcmtk_shows_it(name):
    rendered = np.asarray(Image.open(GOLDEN / f"{name}.pgm"), int)
    assert np.abs(_gray(CASES[name][0]) - rendered).max() <= 1 and np.ptp(rendered) > 200


@needs_dcmtk
@pytest.mark.parametrize("start", range(0, 60, 10))
def test_any_gray_scale_is_as_dcmtk_shows_it(start, tmp_path):
    """Bits stored, high bits, signs, modality and VOI tables and windows, shapes: all combined."""
    for seed in range(start, start + 10):
        content, options = random_file(seed)
        rendered = _render(content, options, tmp_path)
        try:
            difference = np.abs(_gray(content) - rendered).max()
        except RadiographError as error:
            assert "one gray value" in str(error) and np.ptp(rendered) <= 1, seed
        else:
            assert difference <= 1, seed


@needs_dcmtk
@pytest.mark.parametrize(
    "attributes",
    [
        {"BitsStored": 12, "HighBit": 10},
        {"BitsStored": 17, "HighBit": 16},
        {"BitsStored": 0, "HighBit": 0},
        {"PixelRepresentation": None},
        {"BitsAllocated": None},
        {"Rows": None},
    ],
)
def test_what_dcmtk_refuses_is_refused(attributes, tmp_path):
    content = write_dicom(np.zeros((SIDE, SIDE), np.uint16), **attributes)
    with pytest.raises(subprocess.CalledProcessError):
        _render(content, [], tmp_path)
    with pytest.raises(RadiographError, match="cannot be|has to give"):
        read_radiograph(content)


@pytest.mark.parametrize("bits", range(1, 9))
@pytest.mark.parametrize("signed", [0, 1])
def test_up_to_eight_bits_fill_the_gray_scale(bits, signed):
    cells = (np.arange(SIDE * SIDE) % (1 << bits)).astype(np.uint8).reshape(SIDE, SIDE)
    image = _gray(write_dicom(cells, BitsStored=bits, PixelRepresentation=signed))
    assert (image.min(), image.max(), len(np.unique(image))) == (0, 255, 1 << bits)


def test_one_bit_a_pixel_is_black_and_white():
    white = np.add.outer(np.arange(SIDE), np.arange(SIDE)) % 3 == 0
    packed = np.packbits(white, bitorder="little").reshape(4, SIDE)
    image = _gray(write_dicom(packed, Rows=SIDE, Columns=SIDE, BitsAllocated=1, BitsStored=1))
    assert np.array_equal(image, white * 255)


@pytest.mark.parametrize("seed", range(12))
def test_windows_after_a_rescale_are_as_pydicom_has_them(seed):
    """Slopes that are fractions, LINEAR_EXACT: what dcmtk rounds or does not know."""
    noise = np.random.default_rng(seed)
    slope, intercept = float(noise.choice([0.1, 0.25, 1.7, -0.3])), float(noise.choice([0, -1024, 0.5]))
    content = write_dicom(
        noise.integers(0, 1 << 12, (SIDE, SIDE)).astype(np.uint16),
        BitsStored=12,
        RescaleSlope=slope,
        RescaleIntercept=intercept,
        WindowCenter=round(slope * int(noise.integers(1, 4095)) + intercept, 2),
        WindowWidth=float(noise.integers(2, 900)) + 0.5,
        VOILUTFunction=["LINEAR", "LINEAR_EXACT", "SIGMOID"][seed % 3],
    )
    dataset = pydicom.dcmread(io.BytesIO(content))
    values = apply_voi_lut(apply_modality_lut(dataset.pixel_array, dataset), dataset)
    first, last = intercept, slope * 4095 + intercept  # pydicom spreads a window over all that may come
    expected = (values - first) / (last - first) * 255
    assert np.abs(_gray(content) - expected).max() <= 1 and np.ptp(expected) > 20


def test_a_presentation_lut_is_applied():
    entries = (np.linspace(0, 1, 1024) ** 2 * 1023).astype(int)
    cells = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    # The window maps each value to itself, as pydicom wants it.
    content = write_dicom(
        cells, BitsStored=10, WindowCenter=512, WindowWidth=1024, PresentationLUTSequence=table_of(entries, 0, 10)
    )
    expected = apply_presentation_lut(cells, pydicom.dcmread(io.BytesIO(content))) * (255 / 1023)
    assert np.abs(_gray(content) - expected).max() <= 1


def _padded(stored: int, **attributes) -> np.ndarray:
    """Values around 2000 with a margin of `stored`, read; True where they came out black."""
    cells = np.arange(2000, 2000 + SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    cells[:, :4] = stored & 0xFFFF
    return _gray(write_dicom(cells, WindowCenter=2500, WindowWidth=12000, **attributes)) == 0


@pytest.mark.parametrize(
    "stored, attributes",
    [
        (4000, {"PixelPaddingValue": 4000}),
        (4000, {"PixelPaddingValue": 4000, "PixelPaddingRangeLimit": Raw("US", b"")}),
        (4000, {"PixelPaddingValue": 3900, "PixelPaddingRangeLimit": 4100}),
        (4000, {"PixelPaddingValue": 4100, "PixelPaddingRangeLimit": 3900}),
        (-2000, {"PixelRepresentation": 1, "PixelPaddingValue": ("SS", -2000)}),
        (-2000, {"PixelRepresentation": 1, "PixelPaddingValue": ("US", 63536)}),
        (0xFFFF, {"BitsStored": 12, "PixelPaddingValue": 0xFFFF}),  # in bits that no pixel stores
        (0xFFFF, {"BitsStored": 12, "PixelPaddingValue": 4095}),
    ],
)
def test_padding_is_black(stored, attributes):
    black = _padded(stored, **attributes)
    assert black[:, :4].all() and not black[:, 4:].any()


def test_without_a_padding_value_a_limit_says_nothing():
    assert not _padded(4000, PixelPaddingRangeLimit=4000).any()


@pytest.mark.parametrize("bits, bytes_each, declared", [(8, 1, 8), (8, 2, 16), (16, 2, 16)])
def test_a_palette_of_any_depth_gives_the_same_gray(bits, bytes_each, declared):
    levels = np.linspace(0, (1 << bits) - 1, 300).round().astype(int)
    data = levels.astype(f"<u{bytes_each}").tobytes()
    attributes = {}
    for colour in ("Red", "Green", "Blue"):
        attributes[f"{colour}PaletteColorLookupTableDescriptor"] = ("US", [300, 10, declared])
        attributes[f"{colour}PaletteColorLookupTableData"] = ("OW", data)
    cells = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE)
    image = _gray(write_dicom(cells, PhotometricInterpretation="PALETTE COLOR", **attributes))
    expected = np.rint(levels[(cells.astype(int) - 10).clip(0, 299)] * (255 / ((1 << bits) - 1)))
    assert np.abs(image - expected).max() <= 1
