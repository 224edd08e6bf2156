"""The page's arithmetic against Pillow's and against the modules of Python that it follows: equal to the bit."""

import io

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee
from modeling_clip_koa.appearance_clip_koa import measure_appearance
from modeling_clip_koa.frames_clip_koa import inside_of_frames, shrink
from modeling_clip_koa.localisation_clip_koa import Knee, Pyramid, cut_knee
from modeling_clip_koa.preprocessing_clip_koa import is_inverted


def _noise(size, seed=0) -> Image.Image:
    """Blurred a little, so that filters differ at edges and inside."""
    values = np.random.default_rng(seed).integers(0, 256, size[::-1], np.uint8)
    return Image.fromarray(values).filter(ImageFilter.BoxBlur(1))


def _framed(picture, border, gray) -> Image.Image:
    return ImageOps.expand(picture, border, gray)


@pytest.mark.parametrize(
    "size, wanted, box, gap",
    [
        ((97, 61), (32, 48), None, 0),
        ((61, 97), (200, 150), None, 0),
        ((300, 211), (64, 64), (44.5, 0, 255.5, 211), 0),
        ((511, 402), (57, 33), None, 2),
        ((640, 480), (32, 32), (80.25, 1.5, 560.75, 478), 2),
    ],
)
@pytest.mark.parametrize("name", ["bicubic", "box"])
def test_resizing_is_pillows(modules, size, wanted, box, gap, name):
    picture = _noise(size, 1)
    filters = {"bicubic": Image.Resampling.BICUBIC, "box": Image.Resampling.BOX}
    expected = picture.resize(wanted, filters[name], box, reducing_gap=gap or None)
    code = (
        "const { FILTERS } = await m('gray'); return picture.resize(wanted, FILTERS[name], box ?? picture.whole, gap);"
    )
    found = modules.call(code, picture=picture, wanted=wanted, name=name, box=box, gap=gap)
    assert np.array_equal(found, np.asarray(expected))


@pytest.mark.parametrize("factor", [(2, 2), (3, 3), (5, 4), (1, 7), (13, 11)])
def test_reducing_is_pillows(modules, factor):
    picture = _noise((131, 90), 2)
    found = modules.call("return picture.reduce(...factor);", picture=picture, factor=factor)
    assert np.array_equal(found, np.asarray(picture.reduce(factor)))


def test_crops_and_extremes_are_pillows(modules):
    picture = _noise((50, 40), 3)
    box = (-7, 5, 30, 66)
    assert np.array_equal(modules.call("return p.crop(box);", p=picture, box=box), np.asarray(picture.crop(box)))
    for most, kind in ((False, ImageFilter.MinFilter), (True, ImageFilter.MaxFilter)):
        found = modules.call("return p.extreme(5, most);", p=picture, most=most)
        assert np.array_equal(found, np.asarray(picture.filter(kind(5))))


def test_windows_of_a_film_are_cut_alike(modules):
    """What the locator is given: the whole film first, where nothing else is known of it."""
    picture = _noise((320, 257), 4)
    code = """const { findKnees } = await m("locate");
        const seen = [];
        const locate = (windows) => { seen.push(...windows); return windows.map(() => [0, 0, 0, 0, 0, 9]); };
        await findKnees(picture, locate, 56);
        return seen[0];"""
    whole = Pyramid(picture).window((0, 257 / 2), 257, 56)
    assert np.array_equal(modules.call(code, picture=picture), np.asarray(whole))


@pytest.mark.parametrize("angle, side", [(9.0, 48), (11.5, 160), (-23.0, 390), (0.0, 200)])
def test_a_knee_is_cut_out_and_set_upright_alike(modules, angle, side):
    picture = _noise((320, 257), 4)
    knee = Knee((100, 40, 100 + side, 40 + side), angle=angle)
    code = 'const { cutKnee } = await m("locate"); return cutKnee(picture, { box, angle, framed: false });'
    found = modules.call(code, picture=picture, box=list(knee.box), angle=angle)
    assert np.array_equal(found, np.asarray(cut_knee(picture, knee)))


@pytest.mark.parametrize("size", [(400, 300), (129, 640), (100, 90)])
@pytest.mark.parametrize("border, gray", [((0, 0), 0), ((20, 4), 255), ((3, 37, 11, 0), 128)])
def test_frames_appearance_and_polarity_are_judged_alike(modules, size, border, gray):
    inner = draw_knee(2, "L", 5, 300).resize(size)
    for picture in (_framed(inner, border, gray), ImageOps.invert(_framed(inner, border, gray))):
        code = """const { insideOfFrames, shrink } = await m("frames"), { measureAppearance } = await m("appearance");
            const { isInverted } = await m("polarity");
            return [insideOfFrames(p), measureAppearance(p), isInverted(p), Array.from(shrink(p, [77, 50]).data)];"""
        inside, measures, inverted, small = modules.call(code, p=picture)
        assert tuple(inside) == inside_of_frames(picture)
        assert measures == pytest.approx(measure_appearance(picture), abs=1e-12)
        assert inverted == is_inverted(picture)
        assert small == np.asarray(shrink(picture, (77, 50))).ravel().tolist()


def test_metal_is_measured_alike(modules):
    picture = draw_knee(3, "R", 7, 224)
    picture.paste(255, (80, 90, 140, 130))
    measures = modules.call('return (await m("appearance")).measureAppearance(p);', p=picture)
    assert measures == pytest.approx(measure_appearance(picture), abs=1e-12)
    assert measures["metal"] > 0.01


def test_crops_that_show_bone_dark_are_told(modules):
    told = [
        modules.call('return (await m("polarity")).isInverted(p);', p=picture)
        for seed in range(4)
        for knee in [draw_knee(seed % 5, "LR"[seed % 2], seed, 150)]
        for picture in (knee, ImageOps.invert(knee))
    ]
    expected = [
        is_inverted(picture)
        for seed in range(4)
        for knee in [draw_knee(seed % 5, "LR"[seed % 2], seed, 150)]
        for picture in (knee, ImageOps.invert(knee))
    ]
    assert told == expected and True in expected and False in expected


def _file(picture: Image.Image, kind: str, **options) -> bytes:
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


_READ = 'const r = await m("images"); return r.readImage(bytes, r.kindOf(bytes));'


def _deep() -> Image.Image:
    values = np.asarray(draw_knee(1, "L", 9, 120), np.uint16)
    return Image.fromarray((values * 201 + 900).astype(np.uint16))


_GRAY = draw_knee(1, "L", 8, 120)
_COLOUR = Image.merge("RGB", [_GRAY, _noise((120, 120), 5), ImageOps.invert(_GRAY)])
_CLEAR = _COLOUR.copy()
_CLEAR.putalpha(_GRAY.point(lambda value: 255 if value > 90 else 0))


@pytest.mark.parametrize(
    "content, most",
    [
        (_file(_GRAY, "PNG"), 0),
        (_file(_GRAY.crop((0, 0, 101, 77)), "PNG", optimize=True), 0),
        (_file(_deep(), "PNG"), 0),
        (_file(_COLOUR, "PNG"), 0),
        (_file(_CLEAR, "PNG"), 0),
        (_file(_GRAY.convert("P"), "PNG"), 0),
        (_file(_GRAY.point(lambda value: 255 * (value > 99)).convert("1"), "PNG"), 0),
        (_file(_GRAY, "JPEG", quality=90), 1),
        (_file(_GRAY, "JPEG", quality=60, progressive=True), 1),
        (_file(_GRAY.convert("RGB"), "JPEG", quality=85), 1),
        (_file(_GRAY.convert("RGB"), "WEBP", lossless=True), 0),
        (_file(_GRAY.convert("RGB"), "WEBP", quality=80), 2),
    ],
)
def test_image_files_are_read_as_in_python(modules, content, most):
    expected = np.asarray(read_radiograph(content, keep_polarity=True).image, np.int16)
    assert np.abs(modules.call(_READ, bytes=content).astype(np.int16) - expected).max() <= most


def test_orientation_is_applied(modules):
    exif = Image.Exif()
    exif[0x0112] = 6
    content = _file(_GRAY.crop((0, 0, 120, 90)), "JPEG", quality=95, exif=exif)
    expected = np.asarray(read_radiograph(content, keep_polarity=True).image, np.int16)
    found = modules.call(_READ, bytes=content)
    assert found.shape == expected.shape == (120, 90) and np.abs(found - expected).max() <= 1


_CODE = """const r = await m("reader");
    try { await r.readXray(bytes, "knee"); } catch (error) { return [error.code, error.values]; }
    return null;"""


@pytest.mark.parametrize(
    "content, code",
    [
        (b"", "refused_empty"),
        (b"GIF89a" + bytes(200), "refused_format"),
        (_file(_GRAY, "PNG")[:2000], "refused_damaged"),
        (_file(_GRAY, "JPEG")[:40], "refused_damaged"),
        (_file(_GRAY.resize((20, 40)), "PNG"), "refused_small"),
        (_file(_GRAY.convert("CMYK"), "JPEG"), "refused_cmyk"),
        (_file(_GRAY, "PNG", save_all=True, append_images=[_noise((120, 120))]), "refused_frames"),
    ],
)
def test_what_cannot_be_read_is_refused(modules, content, code):
    assert modules.call(_CODE, bytes=content)[0] == code


def test_a_size_too_large_is_refused_before_it_is_decoded(modules):
    header = _file(_GRAY, "PNG")
    large = header[:16] + (9000).to_bytes(4, "big") * 2 + header[24:]
    code, values = modules.call(_CODE, bytes=large)
    assert code == "refused_large" and values == {"width": 9000, "height": 9000, "megapixels": 50}
