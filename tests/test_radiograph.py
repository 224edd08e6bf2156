"""The one reader of X-ray files: right pixels, or one clear error."""

import io
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dataset_script.radiograph import RadiographError, parse_name, read_radiograph
from dataset_script.synthetic import draw_knee

KNEE = draw_knee(3, "L", 0, image_size=64)


def _encoded(image, format="PNG", **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "LA", "P"])
def test_modes_of_eight_bits(mode):
    image = read_radiograph(_encoded(KNEE.convert(mode))).image
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


def test_exif_orientation_is_applied():
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by 90 degrees
    wide = KNEE.resize((80, 64))
    assert read_radiograph(_encoded(wide, "JPEG", exif=exif)).image.size == (64, 80)


def test_name_tells_person_and_side(tmp_path):
    path = tmp_path / "9001695L.png"
    KNEE.save(path)
    radiograph = read_radiograph(path)
    assert (radiograph.person_id, radiograph.laterality, radiograph.source) == ("9001695", "L", str(path))
    assert parse_name("9001695_1.png") == ("9001695", None)
    assert parse_name("knee.png") == (None, None)


@pytest.mark.parametrize(
    "content, reason",
    [
        (b"", "is empty"),
        (b"a text file", "not a PNG"),
        (_encoded(KNEE)[:500], "damaged"),
        (_encoded(Image.new("L", (20, 300))), "at least 32"),
        (_encoded(Image.new("1", (9000, 9000))), "pixels"),
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


@settings(max_examples=150, deadline=None)
@given(seed=st.integers(0, 10**9), format=st.sampled_from(["PNG", "JPEG", "WEBP"]))
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
