"""A bias for each grade: what it gives is told by people that it was not fitted on."""

import numpy as np
import pytest
import torch

from clip_koa.evaluation.heads import Predictions
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from studies.grade_bias import cross_fit, fit_bias, main, measure


def _graded(bias, count=400) -> GradedSplit:
    """X-rays of `count / 2` people, whose logits lack `bias` (5,) and are twice too small."""
    draws = torch.Generator().manual_seed(0)
    scores = 2 * torch.randn(count, 5, generator=draws)
    labels = torch.multinomial((scores + torch.tensor(bias)).softmax(-1), 1, generator=draws).flatten()
    files, people = [f"{number}.png" for number in range(count)], [f"p{number // 2}" for number in range(count)]
    logits = scores / 2
    return GradedSplit(Predictions(torch.arange(count), labels, logits, logits, logits, logits), files, people)


def test_the_fit_finds_temperature_and_biases():
    bias = np.array([1.0, -1.0, 0.5, 0.0, -0.5])
    graded = _graded(bias.tolist(), 20_000)
    logits, labels = graded.predictions.logits.double().numpy(), graded.predictions.labels.numpy()
    factor, found = fit_bias(logits, labels, 0.0)
    assert factor == pytest.approx(2, abs=0.1)
    np.testing.assert_allclose(found, bias, atol=0.1)
    _, held = fit_bias(logits, labels, 100.0)
    np.testing.assert_allclose(held, 0, atol=0.01)


def test_biases_help_where_grades_are_biased():
    compared = measure(_graded([1.5, -1.5, 0.0, 0.0, 0.0]), (0.0, 1000.0))
    assert compared[0.0]["intervals"]["log_loss"][1] < 0
    assert compared[1000.0]["difference"]["log_loss"] == pytest.approx(0, abs=0.002)


def test_nobody_is_graded_by_a_fit_on_himself():
    graded = _graded([0.0] * 5)
    before = cross_fit(graded, 0.0)
    person = torch.tensor([name == graded.people[0] for name in graded.people])
    graded.predictions.labels[person] = (graded.predictions.labels[person] + 1) % 5
    after = cross_fit(graded, 0.0)
    np.testing.assert_array_equal(before[person.numpy()], after[person.numpy()])
    assert (before != after).any()


def test_it_prints_figures_and_differences(tmp_path, capsys):
    write_predictions(tmp_path / "predictions.jsonl", _graded([1.5, -1.5, 0.0, 0.0, 0.0]))
    assert main([str(tmp_path / "predictions.jsonl")]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split("|")[1].strip() for line in lines[2:]] == [
        "temperature alone", "with biases, penalty 0", "with biases, penalty 0.01", "with biases, penalty 0.1",
        "difference, penalty 0", "difference, penalty 0.01", "difference, penalty 0.1",
    ]  # fmt: skip
    # The same out of a file of studies.readings, by the X-rays as they are.
    graded = _graded([1.5, -1.5, 0.0, 0.0, 0.0])
    logits = np.stack([graded.predictions.logits.numpy()] * 2, 1)[:, None]
    kept = {"labels": graded.predictions.labels.numpy(), "people": np.array(graded.people)}
    np.savez(tmp_path / "readings.npz", logits=np.concatenate([logits, 0 * logits], 1), **kept)
    assert main([str(tmp_path / "readings.npz")]) == 0
    assert capsys.readouterr().out.splitlines() == lines
    (tmp_path / "damaged.npz").write_bytes(b"no file of ours")
    assert main([str(tmp_path / "damaged.npz")]) == 2
    assert "damaged.npz is no file that studies.readings wrote" in capsys.readouterr().err
    assert main([str(tmp_path / "none.jsonl")]) == 2
    assert "there is no such file" in capsys.readouterr().err
