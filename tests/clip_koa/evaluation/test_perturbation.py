"""Perturbations do to an X-ray what their names say, and a perturbed split is a split like any other."""

import io
import sys

import numpy as np
import pytest
from conftest import ROOT
from datasets import Dataset, Features, Image, Value
from PIL import Image as PILImage

from clip_koa.evaluation.perturbation import (
    PERTURBATIONS,
    PerturbationError,
    check_perturbations,
    perturb,
    perturb_split,
)
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee

KNEE = draw_knee(2, "L", 1, 96)


def _perturbed(image, name, file="a.png") -> np.ndarray:
    return np.asarray(read_radiograph(perturb(image, name, file)).image, dtype=float)


def _dot(x, y, width=100, height=100):
    """A black X-ray with a bright blob at (x, y)."""
    rows, columns = np.mgrid[:height, :width]
    blob = 255 * np.exp(-((columns - x) ** 2 + (rows - y) ** 2) / 18)
    return PILImage.fromarray(blob.astype(np.uint8))


def _centre(values) -> tuple[float, float]:
    rows, columns = np.indices(values.shape)
    return (columns * values).sum() / values.sum(), (rows * values).sum() / values.sum()


# The centre of a picture of 100 pixels lies between its pixels 49 and 50.
_TURNED = 30 * np.cos(np.deg2rad(10)), 30 * np.sin(np.deg2rad(10))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("rotate_left", (49.5 + _TURNED[0], 49.5 - _TURNED[1])),  # what lies to the right goes up
        ("rotate_right", (49.5 + _TURNED[0], 49.5 + _TURNED[1])),
        ("shift_left", (74.5, 49.5)),
        ("shift_right", (84.5, 49.5)),
        ("shift_up", (79.5, 44.5)),
        ("shift_down", (79.5, 54.5)),
        ("smaller", (49.5 + 27, 49.5)),
        ("larger", (49.5 + 33, 49.5)),
        ("mirror", (19.5, 49.5)),
        ("blur", (79.5, 49.5)),
    ],
)
def test_where_a_point_goes(name, expected):
    assert _centre(_perturbed(_dot(79.5, 49.5), name)) == pytest.approx(expected, abs=0.3)


def test_shifts_are_shares_of_the_side():
    image = _dot(100, 30, width=200, height=60)
    assert _centre(_perturbed(image, "shift_right")) == pytest.approx((110, 30), abs=0.3)
    assert _centre(_perturbed(image, "shift_down")) == pytest.approx((100, 33), abs=0.3)


@pytest.mark.parametrize(
    "name, change",
    [
        ("darker", lambda v: v - 0.15),
        ("brighter", lambda v: v + 0.15),
        ("gamma_low", lambda v: v**0.7),
        ("gamma_high", lambda v: v**1.4),
        ("less_contrast", lambda v: 0.7 * v + 0.3 * v.mean()),
        ("more_contrast", lambda v: 1.3 * v - 0.3 * v.mean()),
        ("invert", lambda v: 1 - v),
        ("mirror", lambda v: v[:, ::-1]),
    ],
)
def test_gray_values_by_hand(name, change):
    expected = change(np.asarray(KNEE, dtype=float) / 255).clip(0, 1) * 255
    # As it is written: the reader would set the inverted one right.
    written = np.asarray(PILImage.open(io.BytesIO(perturb(KNEE, name))), dtype=float)
    assert np.abs(written - expected).max() <= 0.51


def test_the_reader_sets_an_inverted_xray_right():
    assert np.abs(_perturbed(KNEE, "invert") - np.asarray(KNEE, dtype=float)).max() <= 0.51


def test_noise_is_an_xrays_own():
    gray = PILImage.new("L", (96, 96), 128)
    noise = _perturbed(gray, "noise") - 128
    assert abs(noise.std() / 255 - 0.05) < 0.002 and abs(noise.mean()) < 0.5
    assert (_perturbed(gray, "noise") == _perturbed(gray, "noise")).all()
    assert (_perturbed(gray, "noise") != _perturbed(gray, "noise", "b.png")).mean() > 0.9


def test_files_are_what_they_say():
    jpeg = PILImage.open(io.BytesIO(perturb(KNEE, "jpeg")))
    assert jpeg.format == "JPEG" and 0 < np.abs(np.asarray(jpeg, dtype=float) - np.asarray(KNEE)).mean() < 15
    sixteen = PILImage.open(io.BytesIO(perturb(KNEE, "sixteen_bit")))
    assert sixteen.mode.startswith("I;16") and np.asarray(sixteen).max() > 255
    # What comes back is the X-ray in the reader's window, between its 0.5th and 99.5th percentile.
    values = np.asarray(KNEE, dtype=float)
    low, high = np.percentile(values, (0.5, 99.5))
    expected = ((values - low) / (high - low)).clip(0, 1) * 255
    assert np.abs(_perturbed(KNEE, "sixteen_bit") - expected).max() <= 0.51


def test_clahe_evens_out_local_contrast():
    values = np.asarray(KNEE, dtype=float)
    flat = PILImage.fromarray((100 + values / 10).astype(np.uint8))  # hardly any contrast
    assert _perturbed(flat, "clahe").std() > 2 * np.asarray(flat).std()


@pytest.mark.parametrize("name", PERTURBATIONS)
def test_size_and_mode_stay(name):
    image = read_radiograph(perturb(draw_knee(3, "R", 1, 96).resize((90, 64)), name)).image
    assert image.size == (90, 64) and image.mode == "L"


def test_a_perturbed_split_is_a_split(tmp_path):
    rows = [{"image": draw_knee(grade, "L", grade, 64), "label": grade, "file": f"{grade}.png"} for grade in range(3)]
    features = Features({"image": Image(), "label": Value("int64"), "file": Value("string")})
    split = Dataset.from_list(rows, features=features)
    perturbed = perturb_split(split, "mirror", tmp_path)
    assert perturbed["label"] == split["label"] and perturbed["file"] == split["file"]
    assert perturbed.features == split.features
    for before, after in zip(split["image"], perturbed["image"], strict=True):
        assert (np.asarray(before.convert("L"))[:, ::-1] == np.asarray(after.convert("L"))).all()
    # What the reader sets right is right in the split, as the builder would have it.
    for kind in ("invert", "sixteen_bit"):
        for before, after in zip(split["image"], perturb_split(split, kind, tmp_path)["image"], strict=True):
            assert np.corrcoef(np.asarray(before).ravel(), np.asarray(after.convert("L")).ravel())[0, 1] > 0.98


def test_names():
    assert check_perturbations(["blur", "all", "blur"])[0] == "blur"
    assert sorted(check_perturbations(["all"])) == sorted(PERTURBATIONS)
    assert check_perturbations([]) == []
    with pytest.raises(PerturbationError, match="--perturb sepia: use all, or any of rotate_left"):
        check_perturbations(["sepia"])


def test_without_scikit_image_the_message_names_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "skimage", None)
    with pytest.raises(PerturbationError, match=r"scikit-image.*clip-koa\[robustness\]"):
        check_perturbations(["all"])
    assert check_perturbations(["blur"]) == ["blur"]


def test_the_docs_name_every_perturbation():
    docs = (ROOT / "docs/robustness.md").read_text()
    assert not [name for name in PERTURBATIONS if f"`{name}`" not in docs]
