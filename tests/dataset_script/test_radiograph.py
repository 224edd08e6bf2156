"""The one reader of X-ray files: right pixels, or one clear error."""

import io
import random
import struct
import zlib
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from dicom_files import write_dicom
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from dataset_script.radiograph import RadiographError, parse_name, read_radiograph
from dataset_script.synthetic import draw_knee

KNEE = draw_knee(3, "L", 0, image_size=64)


def _encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize(
    "mode, format",
    [*((mode, "PNG") for mode in ("L", "RGB", "RGBA", "LA", "P"))]
    + [*((mode, "TIFF") for mode in ("L", "RGB", "RGBA", "P", "CMYK"))]
    + [*((mode, "BMP") for mode in ("L", "RGB", "P"))],
)
def test_modes_of_eight_bits(mode, format):
    image = read_radiograph(_encoded(KNEE.convert(mode), format)).image
    assert image.mode == "L"
    difference = np.abs(np.asarray(image, int) - np.asarray(KNEE, int))
    assert difference.max() <= (0 if mode != "P" else 4)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
def test_lossy_formats(format):
    image = read_radiograph(_encoded(KNEE, format, quality=95)).image
    assert np.abs(np.asarray(image, float) - np.asarray(KNEE, float)).mean() < 4


def test_sixteen_bits_are_windowed_not_clipped():
    """The stock image processor turns such a file white."""
    deep = (np.asarray(KNEE, np.uint32) * 40 + 3000).astype(np.uint16)
    image = np.asarray(read_radiograph(_encoded(Image.fromarray(deep))).image, float)
    assert image.min() == 0 and image.max() == 255 and 40 < image.mean() < 215
    assert np.corrcoef(image.ravel(), np.asarray(KNEE, float).ravel())[0, 1] > 0.99


def test_constant_sixteen_bits():
    constant = Image.fromarray(np.full((64, 64), 5000, np.uint16))
    assert not np.asarray(read_radiograph(_encoded(constant)).image).any()


def _correlation(image, other) -> float:
    return np.corrcoef(np.asarray(image, float).ravel(), np.asarray(other, float).ravel())[0, 1]


@pytest.mark.parametrize(
    "dtype, offset", [(np.uint16, 3000), (np.int16, -5000), (np.int32, 70000), (np.float32, -0.5)]
)
def test_deep_tiff_of_every_kind_is_windowed(dtype, offset):
    deep = (np.asarray(KNEE, np.float64) * 40 + offset).astype(dtype)
    if dtype is np.int16:
        buffer = io.BytesIO()  # Pillow writes no signed 16 bits: its unsigned ones, with the tag that says so
        Image.fromarray(deep.view(np.uint16)).save(buffer, "TIFF", tiffinfo={339: 2})
        content = buffer.getvalue()
    else:
        content = _encoded(Image.fromarray(deep), "TIFF")
    image = read_radiograph(content).image
    assert image.getextrema() == (0, 255) and _correlation(image, KNEE) > 0.99


def test_the_window_is_robust():
    """A bright marker and dead pixels do not darken the knee."""
    deep = np.asarray(KNEE, np.uint16) * 8 + 1000
    plain = read_radiograph(_encoded(Image.fromarray(deep))).image
    deep[:2, :3], deep[40, 40] = 65535, 0
    marked = read_radiograph(_encoded(Image.fromarray(deep))).image
    assert np.abs(np.asarray(plain, int) - np.asarray(marked, int))[3:].mean() < 4


def test_white_is_zero_in_tiff():
    """Photometric interpretation 0: Pillow inverts those of 8 bits, in writing and in reading, and no others."""
    wide = KNEE.resize((100, 64))  # too wide for the check of inverted crops, which would set it right by itself
    assert read_radiograph(_encoded(wide, "TIFF", tiffinfo={262: 0})).image.tobytes() == wide.tobytes()
    values = np.asarray(wide, np.uint16) * 200
    content = _encoded(Image.fromarray(values.max() - values), "TIFF", tiffinfo={262: 0})
    radiograph = read_radiograph(content)
    assert _correlation(radiograph.image, wide) > 0.99 and not radiograph.inverted


def test_floats_that_are_no_numbers_are_refused():
    values = np.asarray(KNEE, np.float32).copy()
    values[5, 5] = np.nan
    with pytest.raises(RadiographError, match="not finite"):
        read_radiograph(_encoded(Image.fromarray(values), "TIFF"))


def _deep_colour_png(values: np.ndarray) -> bytes:
    """A 16-bit RGB PNG, which Pillow cannot write; `values` (H, W)."""
    rows = np.repeat(values[:, :, None], 3, axis=2).astype(">u2")
    data = b"".join(b"\0" + row.tobytes() for row in rows)

    def chunk(kind, content):
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, 2, 0, 0, 0)
    parts = (chunk(b"IHDR", header), chunk(b"IDAT", zlib.compress(data)), chunk(b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


def test_deep_colour_is_windowed_or_refused():
    """Pillow reads the high bytes: enough of a full range, too little of 12 bits in 16."""
    full = read_radiograph(_deep_colour_png(np.asarray(KNEE, np.uint16) * 200)).image
    assert _correlation(full, KNEE) > 0.99 and full.getextrema() == (0, 255)
    with pytest.raises(RadiographError, match="16-bit colour image with .* gray levels left"):
        read_radiograph(_deep_colour_png(np.asarray(KNEE, np.uint16) * 16))


def test_transparency_is_on_black():
    image = KNEE.convert("RGBA")
    image.putalpha(Image.new("L", KNEE.size, 0))
    assert read_radiograph(_encoded(image)).image.getextrema() == (0, 0)
    black = Image.alpha_composite(Image.new("RGBA", KNEE.size, "black"), KNEE.convert("RGBA")).convert("L")
    assert read_radiograph(_encoded(KNEE.convert("RGBA"))).image.tobytes() == black.tobytes()


@pytest.mark.parametrize("format", ["JPEG", "PNG", "WEBP", "TIFF"])
def test_exif_orientation_is_applied(format):
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    wide = KNEE.resize((80, 64))
    image = read_radiograph(_encoded(wide, format, exif=exif)).image
    assert image.size == (64, 80)
    assert _correlation(image, wide.transpose(Image.Transpose.ROTATE_270)) > 0.97


def test_nothing_but_pixels_is_kept():
    exif = Image.Exif()
    exif[0x010E] = "GENERATED^NAME"
    image = read_radiograph(_encoded(KNEE, exif=exif, dpi=(300, 300), icc_profile=b"profile")).image
    assert image.info == {} and not image.getexif()


@pytest.mark.parametrize("format", ["TIFF", "WEBP", "PNG"])
def test_several_frames_are_refused_or_the_first_taken(format):
    other = KNEE.transpose(Image.Transpose.FLIP_TOP_BOTTOM)
    content = _encoded(
        KNEE, format, save_all=True, append_images=[other], **({"lossless": True} if format == "WEBP" else {})
    )
    with pytest.raises(RadiographError, match="holds several frames"):
        read_radiograph(content)
    assert _correlation(read_radiograph(content, first_frame=True).image, KNEE) > 0.99


@pytest.mark.parametrize("size", [48, 96, 224, 500])
@pytest.mark.parametrize("grade", range(5))
def test_inverted_knees_are_set_right(size, grade):
    for seed in range(3):
        knee = draw_knee(grade, "LR"[seed % 2], seed, image_size=size)
        right, inverted = read_radiograph(_encoded(knee)), read_radiograph(_encoded(ImageOps.invert(knee)))
        assert not right.inverted and right.image.tobytes() == knee.tobytes()
        assert inverted.inverted and inverted.image.tobytes() == knee.tobytes()


def test_other_pictures_are_not_taken_for_inverted_knees():
    rng = np.random.default_rng(0)
    pictures = [Image.new("L", (64, 64), value) for value in (0, 128, 255)]
    pictures += [Image.fromarray(rng.integers(0, 256, (64, 64), np.uint8)) for _ in range(50)]
    legs = Image.new("L", (200, 100), 255)  # both legs: too wide for a crop of one joint
    for left in (0, 100):
        legs.paste(ImageOps.invert(KNEE.resize((100, 100))), (left, 0))
    for picture in [*pictures, legs]:
        assert not read_radiograph(_encoded(picture)).inverted


@pytest.mark.real
def test_inverted_xrays_of_the_real_corpus(knee_xray_dir):
    """The 70 of the train split, each seen to be inverted by eye on a sheet, and none besides."""
    files = [path for path in (knee_xray_dir / "train").rglob("*") if path.is_file()]
    with ThreadPoolExecutor(2) as pool:
        assert sum(radiograph.inverted for radiograph in pool.map(read_radiograph, files)) == 70


def test_name_tells_person_and_side(tmp_path):
    path = tmp_path / "9001695L.png"
    KNEE.save(path)
    radiograph = read_radiograph(path)
    assert (radiograph.person_id, radiograph.laterality, radiograph.source) == ("9001695", "L", str(path))
    assert parse_name("9001695_1.png") == ("9001695", None)
    assert parse_name("knee.png") == (None, None)


MEASURE = """
import sys
from dataset_script.radiograph import read_radiograph

def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM")) * 1024

read_radiograph(sys.argv[1])
for path in sys.argv[2:]:
    before, image = peak(), read_radiograph(path).image
    print(image.width, image.height, peak() - before)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="measures memory in Linux's /proc")
def test_a_film_of_100_megapixels_takes_three_bytes_a_pixel(tmp_path, run_python):
    """Of 16 bits its own two and the picture's one; of 8 bits no more."""
    side = 10_000
    deep = np.zeros((side, side), np.uint16)
    deep[:, 3000:7000] = np.linspace(0, 4000, 4000, dtype=np.uint16)
    small = deep[:64, 3000:3064]
    files = {"small.dcm": write_dicom(small), "film.dcm": write_dicom(deep, BitsStored=12)}
    files["film.tif"] = _encoded(Image.fromarray(deep), "TIFF")
    files["film.png"] = _encoded(Image.fromarray(deep), compress_level=1)
    files["film.jpg"] = _encoded(Image.fromarray((deep // 16).astype(np.uint8)), "JPEG")
    for name, content in files.items():
        (tmp_path / name).write_bytes(content)
    for name in list(files)[1:]:
        width, height, more = map(
            int, run_python("-c", MEASURE, tmp_path / "small.dcm", tmp_path / name).stdout.split()
        )
        assert (width, height) == (side, side) and more < 3.4 * side * side, (name, more / side**2)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"a text file", "not a PNG"),
        (_encoded(KNEE)[:500], "damaged"),
        (_encoded(Image.new("L", (20, 300))), "at least 32"),
        (_encoded(Image.new("1", (11_000, 11_000))), "11000x11000 pixels, more than 120,000,000"),
        (_encoded(Image.new("1", (8000, 8000)), transparency=0), "8000x8000 pixels, more than 50,000,000"),
        (_encoded(KNEE, "GIF"), "not a PNG"),
    ],
)
def test_refusals_name_file_and_reason(tmp_path, content, reason):
    path = tmp_path / "x ray é.png"
    path.write_bytes(content)
    with pytest.raises(RadiographError, match=reason) as refusal:
        read_radiograph(path)
    assert path.name in str(refusal.value)


def test_missing_file_and_folder(tmp_path):
    with pytest.raises(RadiographError, match="no such file"):
        read_radiograph(tmp_path / "missing.png")
    (tmp_path / "folder.png").mkdir()
    with pytest.raises(RadiographError, match=r"folder\.png"):
        read_radiograph(tmp_path / "folder.png")


@settings(max_examples=150)
@given(seed=st.integers(0, 10**9), format=st.sampled_from(["PNG", "JPEG", "WEBP", "TIFF", "BMP"]))
def test_damaged_files_are_read_or_refused(seed, format):
    """Flipped bytes and cuts: an 8-bit image or the one error, nothing else."""
    damage = random.Random(seed)
    content = bytearray(_encoded(KNEE, format))
    for _ in range(damage.randint(1, 8)):
        content[damage.randrange(len(content))] = damage.randrange(256)
    content = bytes(content[: damage.randint(1, len(content))])
    try:
        assert read_radiograph(content).image.mode == "L"
    except RadiographError as refusal:
        assert "<bytes>" in str(refusal)
