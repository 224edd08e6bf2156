"""Both knees of a person: their bond against a sum written out, counted, weighed, and measured on people left out."""

import json
import shutil
from collections import defaultdict

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from hypothesis import given, settings
from hypothesis import strategies as st

from clip_koa.calibration.pairs import count_joint, fit_pair_prior
from clip_koa.commands import main
from clip_koa.evaluation.pairs import combine_pairs, find_pairs
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.layouts import find_files
from dataset_script.synthetic import write_corpus
from modeling_clip_koa import CalibrationError
from modeling_clip_koa.calibration_clip_koa import PairPrior, pair_prior, read_calibration

GRADES = 5


def _rows(count: int, seed: int) -> torch.Tensor:
    values = torch.rand(count, GRADES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    return values / values.sum(-1, keepdim=True)


def _joint(seed: int) -> torch.Tensor:
    values = _rows(GRADES, seed)
    return (values + values.T) / (values + values.T).sum()


@given(seed=st.integers(0, 2**20), weight=st.floats(0, 2))
@settings(max_examples=50)
def test_as_the_sum_written_out(seed, weight):
    joint, one, other = _joint(seed), _rows(1, seed + 1)[0], _rows(1, seed + 2)[0]
    first, second = PairPrior(joint, weight).combine(one, other)
    share, both = joint.sum(0), {}
    for a in range(GRADES):
        for b in range(GRADES):
            both[a, b] = one[a] * other[b] * (joint[a, b] / (share[a] * share[b])) ** weight
    total = sum(both.values())
    for grade in range(GRADES):
        assert first[grade] == pytest.approx(float(sum(both[grade, b] for b in range(GRADES)) / total), abs=1e-12)
        assert second[grade] == pytest.approx(float(sum(both[a, grade] for a in range(GRADES)) / total), abs=1e-12)


def test_which_knee_comes_first_makes_no_difference():
    prior, one, other = PairPrior(_joint(1), 0.7), _rows(8, 2), _rows(8, 3)
    first, second = prior.combine(one, other)
    swapped = prior.combine(other, one)
    assert torch.equal(first, swapped[1]) and torch.equal(second, swapped[0])


def test_without_weight_or_bond_each_knee_stands_alone():
    one, other = _rows(8, 2), _rows(8, 3)
    share = _rows(1, 4)[0]
    for prior in (PairPrior(_joint(1), 0.0), PairPrior(share[:, None] * share, 1.0)):
        for alone, together in zip((one, other), prior.combine(one, other), strict=True):
            torch.testing.assert_close(together, alone)


def test_a_sure_knee_pulls_the_other_to_its_grades():
    joint = torch.full((GRADES, GRADES), 0.01) + 0.15 * torch.eye(GRADES)
    prior = PairPrior(joint / joint.sum(), 1.0)
    sure = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    unsure = torch.full((GRADES,), 1 / GRADES)
    together, stays = prior.combine(unsure, sure)
    assert together.argmax() == 3 and stays.argmax() == 3


@pytest.mark.parametrize(
    "joint, weight, told",
    [
        (torch.ones(2, 3) / 6, 1.0, "joint is of shape"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0, "each share above 0"),
        (torch.tensor([[0.2, 0.5], [0.1, 0.2]]), 1.0, "symmetric"),
        (torch.ones(2, 2), 1.0, "add up to 1"),
        (torch.ones(2, 2) / 4, -0.1, "weight=-0.1"),
        (torch.ones(2, 2) / 4, float("nan"), "weight=nan"),
    ],
)
def test_what_is_no_prior(joint, weight, told):
    with pytest.raises(ValueError, match=told):
        PairPrior(joint, weight)


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


def test_one_pair_is_too_few_to_fit_on_some_and_measure_on_others():
    """Where its own tenth was left out, the weight of no pair at all was given as fitted."""
    probabilities, labels, people = _people(20, 1, 0.5)
    people[2:] = [f"{number} alone" for number in range(38)]
    with pytest.raises(CalibrationError, match="Too few people of the split have two X-rays"):
        fit_pair_prior(probabilities, labels, people, torch.full((5, 5), 0.04))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """People of two knees in a train and a validation split; one of the latter has one X-ray only."""
    folder = tmp_path_factory.mktemp("knees")
    for split, people in (("train", 10), ("validation", 14)):
        write_corpus(folder / "drawn", people, 3, 32, 0.3, split)
        (folder / "drawn" / split).rename(folder / split)
        (folder / "drawn").rmdir()
    next((folder / "validation").glob("*/*R.png")).unlink()
    return folder


@pytest.fixture(scope="module")
def calibrated(corpus, tiny_start, tmp_path_factory):
    """A model folder, and what `clip-koa calibrate` printed of it."""
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(["calibrate", "--model", folder, "--data_dir", corpus, "--typical_xrays", "0"]) == 0
    return folder


def test_calibrate_keeps_the_bond(calibrated, corpus):
    text = (calibrated / "calibration.json").read_text()
    kept = json.loads(text)["pairs"]
    xrays = find_files(corpus)
    people = defaultdict(list)
    for xray in xrays["train"]:
        people[xray.person_id].append(xray.grade)
    counts = np.full((5, 5), 0.5)
    for one, other in people.values():
        counts[one, other] += 0.5
        counts[other, one] += 0.5
    np.testing.assert_allclose(kept["joint"], counts / counts.sum())
    assert kept["num_training_pairs"] == 10 and kept["cross_fitted"]["num_pairs"] == 13
    assert len(kept["least_probabilities"]) == 50 and 0 <= kept["weight"] <= 2
    assert "mcnemar_p" in kept["cross_fitted"] and kept["cross_fitted"]["num_people"] == 14
    assert not any(xray.person_id in text for split in xrays.values() for xray in split)
    prior = pair_prior(read_calibration(str(calibrated)))
    assert prior.weight == kept["weight"] and prior.joint.tolist() == kept["joint"]


def test_evaluate_measures_it(calibrated, corpus, tmp_path, capsys):
    AcceleratorState._reset_state(reset_partial_state=True)
    command = ["evaluate", "--data_dir", corpus, "--pairs", "--no_thumbnails"]
    assert main([*command, "--model", calibrated, "--output", tmp_path / "out"]) == 0
    printed = capsys.readouterr().out
    assert "both of 13 people together (second)" in printed and "McNemar's exact test p = " in printed
    found = json.loads((tmp_path / "out" / "metrics.json").read_text())
    first, second = (found["pairs"][name] for name in ("first", "second"))
    assert first["accuracy"] == found["text_flip_averaged"]["accuracy"]
    assert found["pairs"]["difference"]["log_loss"] == pytest.approx(second["log_loss"] - first["log_loss"])
    assert found["pairs"]["intervals"]["log_loss"] and found["pairs"]["num_people"] == 14
    assert "Both knees of a person together" in (tmp_path / "out" / "index.html").read_text()

    without = shutil.copytree(calibrated, tmp_path / "without")
    kept = json.loads((without / "calibration.json").read_text())
    del kept["pairs"]  # as a calibration of before
    (without / "calibration.json").write_text(json.dumps(kept))
    assert read_calibration(str(without)) == kept
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main([*command, "--model", without, "--output", tmp_path / "no"]) == 2
    assert (
        capsys.readouterr().err.splitlines()[-1].startswith("clip-koa evaluate: This checkpoint keeps no pair prior")
    )


def test_a_split_without_pairs_is_told(calibrated, corpus, tmp_path, capsys):
    for file in [*(corpus / "train").glob("*/*.png"), *(corpus / "validation").glob("*/*L.png")]:
        split = "train" if "train" in file.parts else "validation"
        (tmp_path / "data" / split / file.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(file, tmp_path / "data" / split / file.parent.name)
    AcceleratorState._reset_state(reset_partial_state=True)
    options = ["--model", calibrated, "--data_dir", tmp_path / "data"]
    assert main(["evaluate", *options, "--pairs", "--output", tmp_path / "no"]) == 2
    assert "nobody in the split has just two X-rays" in capsys.readouterr().err
    calibrate = ["calibrate", *options, "--typical_xrays", "0", "--output", tmp_path / "model"]
    assert main(calibrate) == 0
    assert "will not be graded together (--pairs): No person of the split" in capsys.readouterr().out
    assert "pairs" not in json.loads((tmp_path / "model" / "calibration.json").read_text())
    other = next((corpus / "validation").glob("*/*R.png"))  # a single pair
    (tmp_path / "data" / "validation" / other.parent.name).mkdir(exist_ok=True)
    shutil.copy(other, tmp_path / "data" / "validation" / other.parent.name)
    AcceleratorState._reset_state(reset_partial_state=True)
    assert main(calibrate) == 0
    assert "will not be graded together (--pairs): Too few people of the split" in capsys.readouterr().out
    assert "pairs" not in json.loads((tmp_path / "model" / "calibration.json").read_text())
