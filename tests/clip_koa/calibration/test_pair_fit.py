"""The bond of two knees is counted on one lot of people, weighed on another, and measured on people left out."""

import numpy as np
import pytest
import torch

from clip_koa.calibration.pairs import combine_pairs, count_joint, find_pairs, fit_pair_prior
from modeling_clip_koa import CalibrationError


def test_pairs_are_people_of_two_xrays():
    people = ["a", "b", "a", "c", "c", "c", "d", "d"]
    assert find_pairs(people).tolist() == [[0, 2], [6, 7]]
    assert find_pairs(people, ["L", "L", "R", "L", "R", "L", "L", "L"]).tolist() == [[0, 2]]
    assert find_pairs(["a", "b"]).shape == (0, 2)


def test_the_bond_is_counted_both_ways():
    labels, pairs = np.array([0, 0, 1, 2, 0, 0]), np.array([[0, 1], [2, 3], [4, 5]])
    joint = count_joint(labels, pairs, 3)
    assert torch.equal(joint, joint.T) and joint.sum() == pytest.approx(1)
    counts = np.array([[2.5, 0.5, 0.5], [0.5, 0.5, 1.0], [0.5, 1.0, 0.5]])
    np.testing.assert_allclose(joint, counts / counts.sum())
    with pytest.raises(CalibrationError, match="No person of the train split"):
        count_joint(labels, np.zeros((0, 2), int), 3)


def _people(count: int, seed: int, bond: float):
    """Labels of both knees of each person, alike with chance `bond`, and what an unsure reader says of each."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 5, (count, 2))
    alike = rng.random(count) < bond
    labels[alike, 1] = labels[alike, 0]
    labels = labels.ravel()
    logits = rng.normal(0, 1, (2 * count, 5))
    logits[np.arange(2 * count), labels] += 1.0
    # The likelihoods of these draws, so that the probabilities are calibrated.
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, labels, [str(number // 2) for number in range(2 * count)]


@pytest.mark.parametrize("bond, helps", [(0.8, True), (0.0, False)])
def test_a_bond_helps_where_there_is_one(bond, helps):
    _, training, people = _people(1000, 0, bond)
    joint = count_joint(training, find_pairs(people), 5)
    probabilities, labels, people = _people(300, 1, bond)
    prior, report = fit_pair_prior(probabilities, labels, people, joint)
    gain = report["difference"]["accuracy"]
    if helps:
        assert 0.6 < prior.weight < 1.6 and gain > 0.05 and report["intervals"]["accuracy"][0] > 0
        assert report["difference"]["log_loss"] < 0
    else:
        assert abs(gain) < 0.02
    assert report["num_pairs"] == 300


def test_others_stay_as_they_are():
    probabilities, labels, people = _people(20, 1, 0.5)
    people[:2] = ["alone", "too"]
    prior, _ = fit_pair_prior(probabilities, labels, people, count_joint(labels, find_pairs(people), 5))
    combined = combine_pairs(probabilities, find_pairs(people), prior)
    np.testing.assert_array_equal(combined[:2], probabilities[:2])
    np.testing.assert_allclose(combined.sum(1), 1)


def test_it_takes_pairs():
    probabilities, labels, people = _people(20, 1, 0.5)
    with pytest.raises(CalibrationError, match="No person of the split has two X-rays"):
        fit_pair_prior(probabilities, labels, [str(number) for number in range(40)], torch.full((5, 5), 0.04))
