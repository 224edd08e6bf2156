"""In which ways an X-ray was taken or stored otherwise than those of training."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image, ImageFilter, ImageOps

from dataset_script.synthetic import draw_knee
from modeling_clip_koa import WAYS, Grade
from modeling_clip_koa.appearance_clip_koa import measure_appearance, otherwise
from studies.other_images import OTHER_IMAGES
from studies.xray_changes import XRAY_CHANGES

calibration = pytest.importorskip("clip_koa.calibration.typicality", reason="scikit-learn is missing")

KNEES = [Image.open(file).convert("L") for file in sorted(Path("examples").absolute().glob("*.png"))]


@pytest.fixture(scope="module")
def bounds():
    return calibration.fit_bounds(KNEES).tolist()


def _ways(picture, bounds):
    return otherwise(measure_appearance(picture), bounds)


def _gray(change):
    return lambda picture: picture.point([min(255, max(0, round(change(value)))) for value in range(256)])


CHANGES = {
    "contrast": _gray(lambda value: 128 + 0.3 * (value - 128)),
    "brightness": _gray(lambda value: 0.3 * value),
    "sharpness": lambda picture: picture.filter(ImageFilter.GaussianBlur(4)),
    "resolution": lambda picture: picture.resize((120, 120)),
    "frame": lambda picture: ImageOps.expand(picture, 20, 255),
    "metal": lambda picture: OTHER_IMAGES["with a painted implant"]([picture], np.random.default_rng(0))[0],
}


@pytest.mark.parametrize("way", WAYS)
def test_each_way_is_told_of_an_xray_changed_so(way, bounds):
    """And an X-ray as it is has none."""
    assert list(CHANGES) == list(WAYS)
    assert not any(_ways(knee, bounds) for knee in KNEES)
    told = [way in _ways(CHANGES[way](knee), bounds) for knee in KNEES]
    assert sum(told) >= 9


@pytest.mark.parametrize("size", [(224, 224), (225, 301), (640, 480), (97, 131)])
def test_the_mirror_image_has_the_same_measures_to_the_bit(size):
    noise = np.random.default_rng(3).integers(0, 256, (64, 48)).astype(np.uint8)
    pictures = [draw_knee(3, "L", 1).resize(size), Image.fromarray(noise).resize(size), Image.new("L", size, 7)]
    pictures.append(ImageOps.expand(pictures[0], (9, 4, 21, 13), 90))
    pictures.append(CHANGES["metal"](pictures[0].resize((224, 224))))
    for picture in pictures:
        measures = measure_appearance(picture)
        assert measures == measure_appearance(ImageOps.mirror(picture))
        assert all(np.isfinite(value) for value in measures.values())


@pytest.mark.parametrize(
    "change", ["letters", "collimated", "white frame of 8 %", "1.5 times the contrast", "brighter by .15"]
)
def test_what_is_white_and_no_metal(change, bounds):
    told = ["metal" in _ways(XRAY_CHANGES[change](knee), bounds) for knee in KNEES]
    assert not any(told)


def test_more_pixels_than_the_training_xrays_have_are_no_way():
    bounds = calibration.fit_bounds([knee.resize((150, 150)) for knee in KNEES]).tolist()
    assert "resolution" not in _ways(KNEES[0].resize((900, 900)), bounds)
    assert "resolution" not in _ways(KNEES[0].resize((150, 150)), bounds)
    assert "resolution" in _ways(KNEES[0].resize((100, 100)), bounds)


def _grade(**changes):
    return Grade(2, "KL2 mild", "", (0.0, 0.0, 1.0, 0.0, 0.0), (1.0,), (1.0,), **changes)


def test_what_a_grade_says_of_them():
    assert not _grade(atypicality=0.98).refusal and not _grade(atypicality=0.98).warning
    assert _grade(atypicality=0.99).refusal.startswith("This is no frontal knee X-ray")
    metal = _grade(atypicality=0.2, ways=("metal",))
    assert metal.refusal == "This knee has metal in it, such as an implant: it has no KL grade."
    warned = _grade(atypicality=0.2, ways=("contrast", "frame"))
    assert not warned.refusal and "(contrast, a frame around the knee)" in warned.warning
    cut = _grade(outside=0.4, ways=("sharpness",)).warning
    assert "border of the image cuts this knee off" in cut and "(sharpness)" in cut
    # A checkpoint of an earlier version cannot tell another machine's knee from a hand: it only warns.
    earlier = _grade(atypicality=1.0, tells_knees=False)
    assert not earlier.refusal and earlier.warning.startswith("Unlike the knee X-rays")
