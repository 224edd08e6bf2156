"""Calibration: temperatures that make probabilities true, in the weights, and sets that hold what they promise."""

import json

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import AutoModelForImageClassification

from clip_koa.calibration.temperatures import (
    conformal_scores,
    conformal_threshold,
    cross_fitted,
    fit_temperature,
    fold_temperatures,
)
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import write_corpus
from modeling_clip_koa import CalibrationError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import confidence_sets, grown_intervals, read_calibration


def _drawn(count: int, seed: int, sharpness: float = 1.0) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (N, 5) and labels drawn from their own probabilities; the logits are then made too sharp."""
    draws = torch.Generator().manual_seed(seed)
    logits = 2 * torch.randn(count, 5, generator=draws)
    labels = torch.multinomial(logits.softmax(-1), 1, generator=draws)[:, 0]
    return logits * sharpness, labels


def test_the_temperature_undoes_what_made_logits_too_sharp():
    assert fit_temperature(*_drawn(20_000, 0)) == pytest.approx(1.0, abs=0.03)
    assert fit_temperature(*_drawn(20_000, 0, sharpness=3.0)) == pytest.approx(3.0, abs=0.1)


def test_calibration_is_measured_on_people_it_was_not_fitted_on():
    logits, labels = _drawn(2000, 1, sharpness=3.0)
    people = [str(index // 2) for index in range(2000)]
    fitted = cross_fitted(logits, labels, people, level=0.9)
    before, after = (fitted[side]["expected_calibration_error"]["value"] for side in ("before", "after"))
    assert after < 0.05 < before
    assert fitted["coverage"] == pytest.approx(0.9, abs=0.025)
    assert 1 < fitted["mean_set_size"] < 5
    # Were it fitted on all people, one outlier's own label would show in its own probabilities.
    changed = labels.clone()
    changed[:2] = (labels[:2] + 2) % 5
    again = cross_fitted(logits, changed, people, level=0.9)
    np.testing.assert_array_equal(again["probabilities"][:2], fitted["probabilities"][:2])
    with pytest.raises(CalibrationError, match="4 people are too few"):
        cross_fitted(logits[:8], labels[:8], people[:8], 0.9)


def test_unknown_people_are_drawn_into_folds_one_by_one():
    logits, labels = _drawn(60, 2, sharpness=2.0)
    known = [f"z{index // 2}" for index in range(30)]
    expected = cross_fitted(logits, labels, known + [f"X-ray {index}" for index in range(30, 60)], 0.9)
    for nobody in (None, "", " ", float("nan")):
        fitted = cross_fitted(logits, labels, known + [nobody] * 30, 0.9)
        np.testing.assert_array_equal(fitted.pop("probabilities"), expected["probabilities"])
        assert fitted == {name: value for name, value in expected.items() if name != "probabilities"}
    with pytest.raises(CalibrationError, match="9 people are too few"):
        cross_fitted(logits[:10], labels[:10], ["a", "a"] + [None] * 8, 0.9)


_PROBABILITIES = arrays(np.float64, (7, 5), elements=st.floats(0.001, 1)).map(lambda a: a / a.sum(1, keepdims=True))


@given(_PROBABILITIES, st.floats(0.0, 1.1))
def test_sets_are_neighbours_that_hold_the_likeliest_grade(probabilities, threshold):
    order, mass = (part.numpy() for part in grown_intervals(torch.from_numpy(probabilities)))
    assert (np.sort(order, axis=1) == np.arange(5)).all()
    np.testing.assert_allclose(mass[:, -1], 1)
    for row, found in zip(probabilities, confidence_sets(torch.from_numpy(probabilities), threshold), strict=True):
        assert list(found) == list(range(found[0], found[-1] + 1))
        assert row.argmax() in found
        assert len(found) == 1 or row[list(found)].sum() <= threshold + 1e-6


@given(_PROBABILITIES, st.lists(st.integers(0, 4), min_size=7, max_size=7))
def test_a_threshold_at_an_xrays_score_lets_its_grade_in(probabilities, labels):
    scores = conformal_scores(probabilities, np.array(labels))
    for row, label, score in zip(probabilities, labels, scores, strict=True):
        assert label in confidence_sets(torch.from_numpy(row[None]), score)[0]


def test_sets_cover_as_often_as_promised_on_new_xrays():
    shares = []
    for seed in range(40):
        logits, labels = _drawn(400, seed)
        probabilities = (logits * 0.5).softmax(-1).numpy()  # a wrong model's sets must hold all the same
        threshold = conformal_threshold(conformal_scores(probabilities[:200], labels[:200].numpy()), 0.8)
        sets = confidence_sets(torch.from_numpy(probabilities[200:]), threshold)
        shares.append(np.mean([label in found for label, found in zip(labels[200:].tolist(), sets, strict=True)]))
    assert 0.8 - 0.015 < np.mean(shares) < 0.87
    assert conformal_threshold(np.linspace(0, 1, 5), 0.9) > 1  # five X-rays cannot promise 90 %
    assert conformal_threshold(np.linspace(0.1, 0.9, 9), 0.9) == pytest.approx(0.9)


def test_temperatures_go_into_the_weights_of_both_heads(make_model, pixel_values, tokenizer, tmp_path):
    model = make_model().eval()
    with torch.no_grad():
        before = model(pixel_values)
        fold_temperatures(model, 2.0, 4.0)
        after = model(pixel_values)
    torch.testing.assert_close(after.logits, before.logits / 2)
    torch.testing.assert_close(after.classifier_logits, before.classifier_logits / 4)
    fold_temperatures(model, 1.5, 0.5)
    model.save_pretrained(tmp_path)
    loaded = CLIPKOAForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.calibration == {"text_temperature": 3.0, "linear_temperature": 2.0}
    with pytest.raises(CalibrationError, match="CLIP's bound is 100"):
        fold_temperatures(model, 1e-3, 1.0)


@pytest.fixture(scope="module")
def knees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knees")
    write_corpus(folder / "validation", 12, 3, 32, 0.3, "validation")
    (folder / "validation" / "validation").rename(folder / "moved")
    (folder / "validation").rmdir()
    (folder / "moved").rename(folder / "validation")
    return folder


def test_calibrate_and_predict_as_a_user_does(make_model, tiny_start, tokenizer, knees, run_python, tmp_path):
    folder = tmp_path / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    xray = next((knees / "validation").glob("*/*.png"))
    uncalibrated = run_python("predict.py", "--model", folder, xray)
    assert "the model is not calibrated" in uncalibrated.stdout

    before = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    printed = run_python("-m", "clip_koa", "calibrate", "--model", folder, "--data_dir", knees).stdout
    assert "text    temperature" in printed and "sets at 90%" in printed
    report = json.loads((folder / "calibration.json").read_text())
    assert report["num_xrays"] == 24 and report["num_people"] == 12 and len(report["thresholds"]) == 50
    assert str(knees) not in (folder / "calibration.json").read_text() and xray.name not in printed
    after = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    size = after.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = before(pixels).logits / report["heads"]["text"]["temperature"]
        torch.testing.assert_close(after(pixels).logits, expected, rtol=1e-4, atol=1e-5)

    graded = run_python("predict.py", "--model", folder, "--level", "0.6", xray).stdout
    assert "set 60%" in graded and "not calibrated" not in graded
    refused = run_python("predict.py", "--model", folder, "--level", "0.3", xray, expect=2)
    assert "level 0.3: use one of 0.50" in refused.stderr
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(CalibrationError, match="is damaged"):
        read_calibration(str(folder))
