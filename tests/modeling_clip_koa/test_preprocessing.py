"""From any image to the picture that is graded and to pixel values: one door, frames, and mirroring."""

import io

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from transformers import CLIPImageProcessor

from clip_koa.grading.grader import Grader
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.pixels import XrayPreprocessor, is_inverted, read_picture, window
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee
from modeling_clip_koa.explanation_clip_koa import spread

KNEE = draw_knee(3, "L", 0, image_size=64)
WIDE = KNEE.resize((80, 64))
DEEP = {"I;16": np.uint16, "I;16B": ">u2", "I": np.int32, "F": np.float32}


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The image in any of Pillow's modes, of deep values with an offset that 8 bits cannot hold."""
    if mode in DEEP:
        return Image.fromarray((np.asarray(image, np.float64) * 40 + 3000).astype(DEEP[mode]))
    if mode in ("LAB", "La", "RGBa", "PA", "HSV"):
        return image.convert({"La": "LA", "RGBa": "RGBA", "PA": "P"}.get(mode, "RGB")).convert(mode)
    return image.convert(mode)


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def _correlation(image, other) -> float:
    return np.corrcoef(np.asarray(image, float).ravel(), np.asarray(other, float).ravel())[0, 1]


STORED = [
    *((mode, "PNG", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")),
    *((mode, "TIFF", {}) for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "LAB")),
    *((mode, "TIFF", {}) for mode in DEEP),
    *((mode, "TIFF", {"compression": "tiff_lzw"}) for mode in ("L", "RGB", "I;16")),
    *((mode, "TIFF", {"tiffinfo": {262: 0}}) for mode in ("L", "I;16")),
    *((mode, "JPEG", {"quality": 95}) for mode in ("L", "RGB", "CMYK", "YCbCr")),
    *((mode, "WEBP", {"lossless": True}) for mode in ("L", "RGB", "RGBA")),
    *((mode, "BMP", {}) for mode in ("1", "L", "P", "RGB")),
]


@pytest.mark.parametrize("mode, format, options", STORED)
@pytest.mark.parametrize("orientation", [1, 3, 6, 7])
def test_an_opened_image_gives_the_picture_of_its_file(mode, format, options, orientation, tmp_path):
    exif = Image.Exif()
    exif[0x0112] = orientation
    if "tiffinfo" in options:  # which Pillow writes instead
        options = {"tiffinfo": options["tiffinfo"] | dict(exif)}
    elif format != "BMP":
        options = options | {"exif": exif}
    path = tmp_path / "knee"
    path.write_bytes(_encoded(_in_mode(WIDE, mode), format, **options))
    picture = read_radiograph(path, keep_polarity=True).image
    with Image.open(path) as opened:
        assert read_picture(opened, keep_polarity=True)[0].tobytes() == picture.tobytes()  # decoded by the door itself
    loaded = Image.open(io.BytesIO(path.read_bytes()))
    loaded.load()
    assert read_picture(loaded, keep_polarity=True)[0].tobytes() == picture.tobytes()
    assert picture.mode == "L" and picture.info == {}
    turned = WIDE.copy()
    turned.getexif()[0x0112] = orientation if format != "BMP" else 1
    turned = ImageOps.exif_transpose(turned)
    if options.get("tiffinfo") and mode != "L":  # Pillow writes deep values as they are, whatever the tag says
        turned = ImageOps.invert(turned)
    assert picture.size == turned.size and _correlation(picture, turned) > (0.4 if mode == "1" else 0.97)


@pytest.mark.parametrize("mode", ["La", "RGBa", "PA", "HSV", "LAB", "YCbCr", "I;16L", "I;16B", "I", "F"])
def test_modes_that_files_seldom_have(mode):
    if mode == "I;16L":
        deep = _in_mode(KNEE, "I;16")
        image = Image.frombytes(mode, deep.size, np.asarray(deep, "<u2").tobytes())
    else:
        image = _in_mode(KNEE, mode)
    assert image.mode == mode
    picture, inverted = read_picture(image)
    assert picture.mode == "L" and not inverted and _correlation(picture, KNEE) > 0.97
    if mode not in ("I;16L", *DEEP):
        assert np.abs(np.asarray(picture, int) - np.asarray(KNEE, int)).mean() < 3


def test_transparency_lies_on_black_in_every_mode():
    half = Image.new("L", KNEE.size, 255)
    half.paste(0, (0, 0, 32, 64))
    for mode in ("LA", "RGBA"):
        image = KNEE.convert(mode)
        image.putalpha(half)
        for made in (image, image.convert({"LA": "La", "RGBA": "RGBa"}[mode])):
            picture = np.asarray(read_picture(made, keep_polarity=True)[0])
            assert not picture[:, :32].any() and (picture[:, 32:] == np.asarray(KNEE)[:, 32:]).all()
    gray = KNEE.convert("L")
    gray.info["transparency"] = 200  # as a PNG of one transparent gray has it
    picture = np.asarray(read_picture(gray, keep_polarity=True)[0])
    assert (picture == np.where(np.asarray(KNEE) == 200, 0, np.asarray(KNEE))).all()


def test_the_callers_image_stays_as_it_is():
    exif = Image.Exif()
    exif[0x0112] = 6
    knee = draw_knee(2, "L", 0, 96).resize((88, 96))
    lying = ImageOps.invert(knee).transpose(Image.Transpose.ROTATE_90)
    opened = Image.open(io.BytesIO(_encoded(lying, "PNG", exif=exif)))
    before = opened.tobytes()
    picture, inverted = read_picture(opened)
    assert inverted and picture.tobytes() == knee.tobytes()
    assert opened.size == (96, 88) and opened.tobytes() == before and opened.getexif()[0x0112] == 6
    assert read_picture(picture)[0].tobytes() == picture.tobytes()
    kept, inverted = read_picture(opened, keep_polarity=True)
    assert not inverted and kept.tobytes() == ImageOps.invert(picture).tobytes()


def _frames(format: str) -> Image.Image:
    return Image.open(io.BytesIO(_encoded(KNEE, format, save_all=True, append_images=[ImageOps.flip(KNEE)])))


@pytest.mark.parametrize(
    "image, reason",
    [
        (Image.new("L", (20, 300)), "The image has 20x300 pixels: .* at least 32"),
        (Image.new("L", (0, 0)), "The image has 0x0 pixels"),
        (Image.new("1", (11_000, 11_000)), "more than 120,000,000"),
        (
            Image.open(io.BytesIO(_encoded(Image.new("1", (8000, 8000)), "PNG", transparency=0))),
            "more than 50,000,000",
        ),
        (Image.fromarray(np.full((64, 64), np.nan, np.float32)), "not finite"),
        (_frames("TIFF"), "several frames.*image.copy"),
        (_frames("GIF"), "several frames"),
        (Image.open(io.BytesIO(_encoded(KNEE, "PNG")[:700])), "The image is damaged"),
        ("knee.png", "is of type str: give a PIL image"),
        (None, "is of type NoneType"),
    ],
)
def test_what_is_no_xray_is_refused_in_a_line(image, reason):
    with pytest.raises(ValueError, match=reason) as refusal:
        read_picture(image)
    assert "\n" not in str(refusal.value)


def test_one_frame_of_several_can_be_taken():
    for format in ("TIFF", "GIF"):
        several = _frames(format)
        several.seek(1)
        with pytest.raises(ValueError, match="several frames"):
            read_picture(several)
        assert several.tell() == 1
        assert _correlation(read_picture(several.copy())[0], ImageOps.flip(KNEE)) > 0.97


def _framed(image, sides, width, gray, noise, quality, seed) -> Image.Image:
    left, top, right, bottom = (round(width * image.width) if side in sides else 0 for side in "ltrb")
    framed = Image.new("L", (image.width + left + right, image.height + top + bottom), gray)
    framed.paste(image, (left, top))
    values = np.asarray(framed, float) + np.random.default_rng(seed).normal(0, noise, (framed.height, framed.width))
    framed = Image.fromarray(values.round().clip(0, 255).astype(np.uint8))
    return Image.open(io.BytesIO(_encoded(framed, "JPEG", quality=quality))).convert("L") if quality else framed


@settings(max_examples=150)
@given(
    grade=st.integers(0, 4),
    seed=st.integers(0, 10**6),
    sides=st.sampled_from(["ltrb", "lr", "tb", "l", "r", "t", "b", "lt", "ltr"]),
    width=st.floats(0.02, 0.4),
    gray=st.sampled_from([0, 60, 128, 200, 255]),
    noise=st.sampled_from([0, 3]),
    quality=st.sampled_from([0, 60]),
)
def test_a_frame_makes_no_negative_of_a_knee(grade, seed, sides, width, gray, noise, quality):
    """Its width in shares of the X-ray."""
    knee = draw_knee(grade, "LR"[seed % 2], seed, image_size=160)
    assert not is_inverted(_framed(knee, sides, width, gray, noise, quality, seed))


@pytest.mark.parametrize("gray", [0, 128, 255])
@pytest.mark.parametrize("sides", ["ltrb", "lr", "tb", "l"])
@pytest.mark.parametrize("width", [0.05, 0.1, 0.2])
def test_an_inverted_knee_is_found_in_its_frame(gray, sides, width):
    found = [
        is_inverted(_framed(ImageOps.invert(draw_knee(grade, "L", grade, 160)), sides, width, gray, 2, 80, 0))
        for grade in range(5)
    ]
    assert sum(found) >= 4


def _on_screen(image: Image.Image, share: float) -> Image.Image:
    """A screenshot: the X-ray in a light window, with a row of buttons above it that reach the left edge."""
    framed = _framed(image, "ltrb", share, 240, 0, 0, 0)
    height = round(share * image.height)
    for left in range(0, framed.width, 30):
        framed.paste(90, (left, 4, left + 20, height - 8))
    return framed


@pytest.mark.parametrize("share", [0.1, 0.15, 0.2])
def test_a_screenshot_makes_no_negative_of_a_knee(share):
    knees = [draw_knee(number % 5, "L", number, 224) for number in range(10)]
    assert not any(is_inverted(_on_screen(knee, share)) for knee in knees)
    assert sum(is_inverted(_on_screen(ImageOps.invert(knee), share)) for knee in knees) >= 8


def test_what_lies_in_a_frame_of_more_than_a_third_is_unclear():
    inverted = ImageOps.invert(draw_knee(3, "L", 0, 160))
    assert is_inverted(inverted)
    assert not is_inverted(_framed(inverted, "ltrb", 1.5, 255, 0, 0, 0))


@pytest.mark.real
def test_frames_round_real_knees(knee_xray_dir):
    """A white frame of a tenth, or a window with buttons, round the KL3 and KL4 of the validation split."""
    files = [file for grade in "34" for file in sorted((knee_xray_dir / "val" / grade).iterdir())]
    for file in files:
        knee = read_radiograph(file).image
        assert not is_inverted(_framed(knee, "ltrb", 0.1, 255, 0, 0, 0)), file.name
        assert not is_inverted(_on_screen(knee, 0.15)) and not is_inverted(_on_screen(knee, 0.2)), file.name


def _processor(name: str, side: int = 48) -> CLIPImageProcessor:
    settings = {
        "square": {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side}},
        "magnified": {"size": {"shortest_edge": side + 9}, "crop_size": {"height": side, "width": side}},
        "padded": {"size": {"shortest_edge": side - 9}, "crop_size": {"height": side, "width": side}},
        "oblong": {"size": {"shortest_edge": side}, "crop_size": {"height": side, "width": side - 15}},
        "whole": {"size": {"height": side, "width": side}, "do_center_crop": False},
        "unresized": {"do_resize": False, "crop_size": {"height": 32, "width": 31}},
        "uncropped": {"size": {"shortest_edge": side}, "do_center_crop": False},
    }
    return CLIPImageProcessor(**settings[name])


PROCESSORS = ("square", "magnified", "padded", "oblong", "whole", "unresized", "uncropped")


@settings(max_examples=250)
@given(
    width=st.integers(32, 200),
    height=st.integers(32, 200),
    mode=st.sampled_from(["L", "RGB", "RGBA", "P", "I;16", "I", "F", "CMYK"]),
    kind=st.sampled_from(PROCESSORS),
    seed=st.integers(0, 10**6),
)
def test_preparation_commutes_with_mirroring(width, height, mode, kind, seed):
    """Bit for bit, at every size, in every mode, under every setting of the image processor."""
    values = np.random.default_rng(seed).integers(0, 256, (height, width), np.uint8)
    image = _in_mode(Image.fromarray(values), mode)
    preprocess = XrayPreprocessor(_processor(kind))
    one, other = (preprocess([read_picture(view)[0]]) for view in (image, ImageOps.mirror(image)))
    assert torch.equal(one, other.flip(-1))


@pytest.mark.parametrize("kind", PROCESSORS)
@pytest.mark.parametrize("size", [(48, 48), (57, 57), (96, 96), (75, 48), (64, 100)])
def test_it_is_what_the_image_processor_makes(kind, size):
    """The same but for a place of a pixel; bit for bit where nothing is resized and the middle is a pixel's."""
    picture = draw_knee(2, "L", 1, 128).resize(size)
    processor = _processor(kind)
    ours = XrayPreprocessor(processor)([picture, picture])
    stock = processor([picture, picture], return_tensors="pt")["pixel_values"]
    assert ours.shape == stock.shape and ours.dtype == stock.dtype
    assert (ours - stock).abs().mean() < 0.12
    if (kind, size) == ("square", (48, 48)):
        assert torch.equal(ours, stock)


def test_deep_values_get_one_window_with_their_mirror_image():
    """A large X-ray's percentiles are those of some of its values, the same ones in the mirror image."""
    values = np.random.default_rng(0).normal(0, 1, (1501, 1999)).astype(np.float32)
    values[:, 1500:] *= 50
    assert (window(values)[:, ::-1] == window(np.ascontiguousarray(values[:, ::-1]))).all()


@pytest.fixture(scope="module")
def folder(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


@pytest.mark.parametrize("mode, format", [("I;16", "PNG"), ("I", "TIFF"), ("F", "TIFF"), ("P", "PNG"), ("L", "JPEG")])
def test_the_grader_of_images_gives_what_the_grader_of_files_gives(folder, tmp_path, mode, format):
    exif = Image.Exif()
    exif[0x0112] = 6
    path = tmp_path / "knee"
    path.write_bytes(_encoded(_in_mode(ImageOps.invert(draw_knee(4, "R", 0, 100)), mode), format, exif=exif))
    grader = Grader(str(folder))
    [of_file] = grader.grade([path])
    of_image = grader.model.grade(Image.open(path))
    assert of_image == of_file.grade and grader.model.grade([Image.open(path)]) == [of_image]
    assert grader.explain(of_file).image.tobytes() == grader.model.explain(Image.open(path)).image.tobytes()


def test_it_is_said_when_an_xray_was_inverted(folder, tmp_path):
    path = tmp_path / "knee.png"
    ImageOps.invert(draw_knee(3, "L", 0, 96)).save(path)
    [xray] = Grader(str(folder)).grade([path])
    assert xray.grade.inverted and "it was inverted before it was graded" in " ".join(xray.warnings)
    keeping = Grader(str(folder), keep_polarity=True)
    [kept] = keeping.grade([path])
    assert not kept.grade.inverted and not kept.warnings and kept.grade.probabilities != xray.grade.probabilities
    model = keeping.model
    assert model.grade(Image.open(path)).inverted and model.grade(Image.open(path), keep_polarity=True) == kept.grade
    assert keeping.explain(kept).image.tobytes() == Image.open(path).tobytes()


def test_images_of_a_list_are_named_in_refusals(folder):
    images = [KNEE] * 17 + [Image.new("L", (8, 8))]
    with pytest.raises(ValueError, match="Image 18 of 18 has 8x8 pixels"):
        Grader(str(folder)).model.grade(images)


@pytest.mark.parametrize("size", [(224, 178), (178, 224), (301, 300), (97, 96), (95, 33)])
def test_file_and_mirrored_file_get_one_grade_and_one_map(folder, size):
    model = Grader(str(folder)).model
    knee = draw_knee(3, "L", 0, 256).resize(size)
    one, other = model.grade(knee), model.grade(ImageOps.mirror(knee))
    assert one.probabilities == pytest.approx(other.probabilities, abs=1e-6)
    assert one.image_probabilities == pytest.approx(other.mirror_probabilities, abs=1e-6)
    maps = [model.explain(view, grade=2).heat_map for view in (knee, ImageOps.mirror(knee))]
    torch.testing.assert_close(maps[0], maps[1].flip(-1), rtol=1e-4, atol=1e-5)
    relevance = torch.rand(4, 4, generator=torch.Generator().manual_seed(0))
    box = model.beside.preprocess.cut(size)
    assert torch.equal(spread(relevance, size, box), spread(relevance.flip(-1), size, box).flip(-1))
