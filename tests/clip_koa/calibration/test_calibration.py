"""Calibration: temperatures that make probabilities true, in the weights, and sets that hold what they promise."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from transformers import AutoModelForImageClassification

from clip_koa.calibration.checkpoint import calibrate
from clip_koa.calibration.temperatures import (
    cross_fitted,
    fit_temperature,
    fold_temperatures,
    least_probabilities,
)
from clip_koa.evaluation.heads import Predictions
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import write_corpus
from modeling_clip_koa import CalibrationError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import LEVELS, grown_sets, likely_sets, read_calibration, set_rule


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


def _are_neighbours_with_the_likeliest(probabilities, sets):
    for row, found in zip(probabilities, sets, strict=True):
        assert list(found) == list(range(found[0], found[-1] + 1))
        assert row.argmax() in found


@given(_PROBABILITIES, st.lists(st.floats(0, 1.1), min_size=5, max_size=5))
def test_sets_are_neighbours_that_hold_every_likely_grade(probabilities, least):
    sets = likely_sets(torch.from_numpy(probabilities), least)
    _are_neighbours_with_the_likeliest(probabilities, sets)
    for row, found in zip(probabilities, sets, strict=True):
        likely = [grade for grade in range(5) if row[grade] >= least[grade] - 1e-5] + [int(row.argmax())]
        assert set(likely) <= set(found) and {min(likely), max(likely)} <= set(likely) & set(found)
        assert (found[0], found[-1]) == (min(likely), max(likely))


@given(_PROBABILITIES, st.floats(0.0, 1.1))
def test_sets_of_earlier_calibrations_grow_while_their_probability_is_small_enough(probabilities, threshold):
    sets = grown_sets(torch.from_numpy(probabilities), threshold)
    _are_neighbours_with_the_likeliest(probabilities, sets)
    for row, found in zip(probabilities, sets, strict=True):
        assert len(found) == 1 or row[list(found)].sum() <= threshold + 1e-6
        neighbours = [grade for grade in (found[0] - 1, found[-1] + 1) if 0 <= grade < 5]
        assert not neighbours or row[list(found)].sum() + max(row[neighbours]) > threshold - 1e-6


@given(_PROBABILITIES, st.lists(st.integers(0, 4), min_size=7, max_size=7), st.sampled_from(LEVELS))
def test_sets_hold_the_xrays_they_were_fitted_on_as_often_as_promised(probabilities, labels, level):
    labels = np.array(labels)
    sets = likely_sets(torch.from_numpy(probabilities), least_probabilities(probabilities, labels, level))
    held = np.array([label in found for label, found in zip(labels, sets, strict=True)])
    assert all(held[labels == grade].mean() >= level for grade in set(labels.tolist()))


def test_sets_cover_each_grade_as_often_as_promised_on_new_xrays():
    shares, own_shares = [], []
    for seed in range(40):
        logits, labels = _drawn(1000, seed)
        logits[:, 1] -= 2.0  # a wrong model that misses one grade often: its sets must hold all the same
        probabilities, labels = (logits * 0.5).softmax(-1), labels.numpy()
        least = least_probabilities(probabilities[:500].numpy(), labels[:500], 0.8)
        sets = likely_sets(probabilities[500:], least)
        held = np.array([label in found for label, found in zip(labels[500:].tolist(), sets, strict=True)])
        own_shares.append([held[labels[500:] == grade].mean() for grade in range(5)])
        shares.append(held.mean())
    assert 0.8 - 0.01 < np.mean(shares) < 0.87
    assert np.mean(own_shares, axis=0).min() > 0.8 - 0.015 and np.mean(own_shares, axis=0).max() < 0.87


def test_a_grade_of_too_few_xrays_gets_the_most_that_can_be_said():
    own = np.array([0.9] * 30 + [0.3] * 2 + [0.6] * 3)  # KL0, KL1 and KL2; none of KL3 and KL4
    labels = np.array([0] * 30 + [1] * 2 + [2] * 3)
    probabilities = np.full((35, 5), 0.01)
    probabilities[np.arange(35), labels] = own
    least = least_probabilities(probabilities, labels, 0.9)
    of_all = 0.6  # 33 of the 35 reach it
    assert least == [0.9, 0.3, of_all, of_all, of_all]
    assert least_probabilities(probabilities[:5], labels[:5], 0.9) == [0.0] * 5  # five X-rays cannot promise 90 %


def test_a_rule_is_kept_for_each_level():
    least = {"0.80": [0.5] * 5, "0.90": [0.3, 0.1, 0.2, 0.3, 0.3]}
    probabilities = torch.tensor([[0.15, 0.15, 0.25, 0.4, 0.05], [0.45, 0.05, 0.1, 0.1, 0.3]])
    assert set_rule({"least_probabilities": least}, 0.9)(probabilities) == [(1, 2, 3), (0, 1, 2, 3, 4)]
    assert set_rule({"least_probabilities": least}, 0.8)(probabilities) == [(3,), (0,)]
    assert set_rule({"thresholds": {"0.90": 0.66}}, 0.9)(probabilities) == [(2, 3), (0, 1, 2)]
    for level in (0.7, 0.85, 0.801):
        with pytest.raises(CalibrationError, match=f"level {level}: use one of 0.50"):
            set_rule({"least_probabilities": least}, level)


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


def test_a_head_that_would_need_more_than_the_bound_of_the_logit_scale_is_calibrated_up_to_it(make_model, capsys):
    """A model that is fine-tuned again and again starts nearer to the bound each time."""
    model, labels = make_model().eval(), torch.arange(5).repeat(4)
    with torch.no_grad():
        model.logit_scale.fill_(math.log(50))
    unsure = 0.5 * torch.nn.functional.one_hot(labels, 5).float()  # always right, and hardly ever sure
    predictions = Predictions(torch.arange(20), labels, unsure, unsure, unsure, unsure)
    report = calibrate(model, predictions, [f"person {number}" for number in range(20)], 0.9)
    text, linear = (report["heads"][name]["temperature"] for name in ("text", "linear"))
    assert text == pytest.approx(0.5, rel=1e-3) and linear < 0.1
    assert model.logit_scale.exp().item() == pytest.approx(100, rel=1e-3)
    assert "less sure than it is right" in capsys.readouterr().out
    after, before = (report["heads"]["text"][when]["log_loss"]["value"] for when in ("after", "before"))
    assert after < before


@pytest.fixture(scope="module")
def knees(tmp_path_factory):
    folder = tmp_path_factory.mktemp("knees")
    write_corpus(folder / "validation", 12, 3, 32, 0.3, "validation")
    (folder / "validation" / "validation").rename(folder / "moved")
    (folder / "validation").rmdir()
    (folder / "moved").rename(folder / "validation")
    return folder


def test_calibrate_and_predict_as_a_user_does(make_model, tiny_start, tokenizer, knees, run_command, tmp_path):
    folder = tmp_path / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    xray = next((knees / "validation").glob("*/*.png"))
    uncalibrated = run_command("grade", "--model", folder, xray)
    assert "the model is not calibrated" in uncalibrated.stdout

    before = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    printed = run_command("calibrate", "--model", folder, "--data_dir", knees).stdout
    assert "text    temperature" in printed and "sets at 90%" in printed
    report = json.loads((folder / "calibration.json").read_text())
    assert report["num_xrays"] == 24 and report["num_people"] == 12 and len(report["least_probabilities"]) == 50
    assert str(knees) not in (folder / "calibration.json").read_text() and xray.name not in printed
    after = AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)
    size = after.config.vision_config.image_size
    pixels = torch.randn(2, 3, size, size)
    with torch.no_grad():
        expected = before(pixels).logits / report["heads"]["text"]["temperature"]
        torch.testing.assert_close(after(pixels).logits, expected, rtol=1e-4, atol=1e-5)

    graded = run_command("grade", "--model", folder, "--level", "0.6", xray).stdout
    assert "set 60%" in graded and "not calibrated" not in graded
    refused = run_command("grade", "--model", folder, "--level", "0.3", xray, expect=2)
    assert "level 0.3: use one of 0.50" in refused.stderr
    (folder / "calibration.json").write_text("{}")
    with pytest.raises(CalibrationError, match="is damaged"):
        read_calibration(str(folder))
