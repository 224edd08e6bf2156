"""DICOM radiographs, made by dcmtk and gdcm (tests/data/make_dicom.py): the gray scale, the codecs, the refusals."""

import builtins
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from dataset_script.radiograph import RadiographError, read_radiograph

pytest.importorskip("pydicom")
pytest.importorskip("pylibjpeg")

FILES = Path(__file__).parents[1] / "data" / "dicom"


def _read(name, **options) -> np.ndarray:
    return np.asarray(read_radiograph(FILES / f"{name}.dcm", **options).image, int)


def _rendered(name) -> np.ndarray:
    """What dcmtk's own renderer makes of the file."""
    return np.asarray(Image.open(FILES / f"{name}.pgm").convert("L"), int)


@pytest.mark.parametrize("name", ["window", "monochrome1", "rescale", "voi_lut", "sigmoid"])
def test_the_gray_scale_is_that_of_dcmtk(name):
    difference = np.abs(_read(name) - _rendered(name))
    assert difference.max() <= 1 and _rendered(name).std() > 20


@pytest.mark.parametrize(
    "name, tolerance",
    [
        ("jpeg_lossless_sv1", 0),
        ("jpeg_lossless", 0),
        ("jpeg_ls", 0),
        ("jpeg_2000", 0),
        ("rle", 0),
        ("deflated", 0),
        ("big_endian", 0),
        ("implicit", 0),
        ("signed", 0),
        ("jpeg_ls_near", 2),
        ("jpeg_extended", 12),
        ("jpeg_spectral_selection", 12),
        ("jpeg_progressive", 12),
        ("htj2k", 0),
    ],
)
def test_every_transfer_syntax_gives_the_same_xray(name, tolerance):
    difference = np.abs(_read(name) - _read("window"))
    assert difference.max() <= tolerance


def test_monochrome1_is_inverted_after_the_window():
    assert np.abs(_read("monochrome1") - _read("window")).max() <= 1


def test_without_a_window_the_percentiles_open_one():
    image = _read("no_window")
    assert image.min() == 0 and image.max() == 255
    assert np.corrcoef(image.ravel(), _read("window").ravel())[0, 1] > 0.99


def test_eight_bits_without_a_window_are_as_they_are():
    from dataset_script.synthetic import draw_knee

    knee = np.asarray(draw_knee(3, "L", 0, image_size=48), int)
    assert np.array_equal(_read("secondary_capture"), knee)
    assert np.abs(_read("jpeg_baseline") - knee).max() < 16


@pytest.mark.parametrize("name, tolerance", [("rgb", 0), ("ybr_jpeg", 16), ("palette", 4)])
def test_colour_becomes_gray(name, tolerance):
    """Secondary captures of a grayscale screen."""
    assert np.abs(_read(name) - _read("secondary_capture")).max() <= tolerance


def test_padding_is_black_and_outside_the_window():
    image = _read("padding")
    assert not image[:, :6].any()
    # 4095 would push all else into the lower half.
    assert image[:, 6:].max() == 255


def test_what_the_file_tells():
    radiograph = read_radiograph(FILES / "window.dcm")
    assert (radiograph.laterality, radiograph.view, radiograph.person_id) == ("L", "PA", "GENERATED-7")
    assert radiograph.pixel_spacing == (0.2, 0.3)  # the patient's, not the detector's
    assert radiograph.image.info == {} and radiograph.image.mode == "L" and not radiograph.inverted


def test_the_suffix_does_not_matter(tmp_path):
    path = tmp_path / "9001695R.png"
    path.write_bytes((FILES / "window.dcm").read_bytes())
    radiograph = read_radiograph(path)
    assert (radiograph.person_id, radiograph.laterality) == ("GENERATED-7", "L")  # the header goes before the name


@pytest.mark.parametrize(
    "name, reason",
    [
        ("two_frames", r"two_frames\.dcm holds 2 frames"),
        ("no_pixels", "without pixel data"),
        ("magnetic_resonance", "modality MR"),
        ("window_beside_the_values", "one gray value"),
    ],
)
def test_refusals(name, reason):
    with pytest.raises(RadiographError, match=reason):
        _read(name)


def test_the_first_frame_by_choice():
    assert np.array_equal(_read("two_frames", first_frame=True), _read("window"))


def test_a_file_without_the_prefix_is_refused(tmp_path):
    path = tmp_path / "x.dcm"
    path.write_bytes((FILES / "window.dcm").read_bytes()[132:])
    with pytest.raises(RadiographError, match="lacks the DICM prefix"):
        read_radiograph(path)


def _altered(name, **attributes) -> bytes:
    import io

    import pydicom

    dataset = pydicom.dcmread(FILES / f"{name}.dcm")
    for attribute, value in attributes.items():
        setattr(dataset, attribute, value)
    buffer = io.BytesIO()
    dataset.save_as(buffer)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ({"WindowWidth": 0}, "which is none"),
        ({"VOILUTFunction": "CURVE"}, "VOI LUT function CURVE"),
        ({"PhotometricInterpretation": "MONOCHROME3"}, "MONOCHROME3"),
        ({"Rows": 20000, "Columns": 20000}, "20000x20000 pixels"),
        ({"Rows": 8}, "at least 32"),
    ],
)
def test_impossible_headers_are_refused(attributes, reason):
    with pytest.raises(RadiographError, match=reason):
        read_radiograph(_altered("window", **attributes))


def test_several_windows_give_the_first_and_linear_exact_differs():
    several = read_radiograph(_altered("window", WindowCenter=[1500, 9], WindowWidth=[2000, 9])).image
    assert np.array_equal(np.asarray(several, int), _read("window"))
    exact = np.asarray(read_radiograph(_altered("window", VOILUTFunction="LINEAR_EXACT", WindowWidth=400)).image, int)
    linear = np.asarray(read_radiograph(_altered("window", WindowWidth=400)).image, int)
    assert 0 < np.abs(exact - linear).max() <= 1


@pytest.mark.parametrize("name", ["jpeg_lossless", "jpeg_ls", "jpeg_2000"])
def test_a_codestream_larger_than_its_header_is_refused(name):
    """Decoders believe the codestream: 65,500 pixels squared would take 8 GB."""
    content = (FILES / f"{name}.dcm").read_bytes()
    side, bomb = (struct.pack(">2I", 48, 48), struct.pack(">2I", 65500, 65500))
    if name != "jpeg_2000":
        side, bomb = struct.pack(">2H", 48, 48), struct.pack(">2H", 65500, 65500)
    assert content.count(side)
    with pytest.raises(RadiographError, match=r"compressed pixels say \(65500, 65500\)"):
        read_radiograph(content.replace(side, bomb, 1))


def test_a_deflate_bomb_is_refused():
    content = (FILES / "deflated.dcm").read_bytes()
    start = 144 + struct.unpack("<I", content[140:144])[0]
    deflater = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    zeros = bytes(1 << 20)
    bomb = b"".join(deflater.compress(zeros) for _ in range(300)) + deflater.flush()
    with pytest.raises(RadiographError, match="inflates to more"):
        read_radiograph(content[:start] + bomb)


def test_without_pydicom_the_extra_is_named(monkeypatch):
    real_import = builtins.__import__

    def missing(name, *arguments, **keywords):
        if name.split(".")[0] == "pydicom":
            raise ImportError(name)
        return real_import(name, *arguments, **keywords)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(RadiographError, match=r"pip install 'clip-koa\[dicom\]'"):
        read_radiograph(FILES / "window.dcm")
