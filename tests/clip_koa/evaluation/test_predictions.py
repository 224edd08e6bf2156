"""Prediction files, and the comparison and average of several."""

import json
import re

import numpy as np
import pytest
import torch
from datasets import Dataset

from clip_koa.evaluation.comparison import compare_files, describe_comparison
from clip_koa.evaluation.error_groups import measure_groups
from clip_koa.evaluation.heads import Predictions, evaluate, measure_heads
from clip_koa.evaluation.predictions import (
    GradedSplit,
    PredictionsError,
    pseudonyms,
    read_predictions,
    write_predictions,
)
from clip_koa.evaluation.seeds import average_files, describe_average


def _graded(seed=0, size=12):
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(size) % 5
    logits = [torch.eye(5)[labels] + torch.randn(size, 5, generator=generator) for _ in range(4)]
    files = [f"val/{label}/90000{index // 2:02d}{'LR'[index % 2]}.png" for index, label in enumerate(labels)]
    people = pseudonyms(files, [file.split("/")[-1][:7] for file in files])
    return GradedSplit(Predictions(torch.arange(size), labels, *logits), files, people)


def _shuffled(graded, order):
    predictions = graded.predictions
    parts = {name: values[order] for name, values in vars(predictions).items()}
    return GradedSplit(
        Predictions(**parts), [graded.files[index] for index in order], [graded.people[index] for index in order]
    )


def test_what_is_written_is_read_to_the_bit(tmp_path):
    graded = _graded()
    write_predictions(tmp_path / "new" / "p.jsonl", graded)
    read = read_predictions(tmp_path / "new" / "p.jsonl")
    assert (read.files, read.people) == (graded.files, graded.people)
    for name, values in vars(graded.predictions).items():
        assert getattr(read.predictions, name).equal(values), name
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["p.jsonl"]


def test_pseudonyms():
    names = pseudonyms(["a.png", "b.png", "c.png", "d.png"], ["9000001", "9000001", "", ""])
    assert names[0] == names[1] == pseudonyms(["other.png"], ["9000001"])[0] == "5df1f8f70c69"
    assert len(set(names)) == 3  # an X-ray of nobody known is a person of its own
    for nobody in (None, " ", float("nan")):
        assert pseudonyms(["a.png", "b.png"], [nobody, nobody]) == pseudonyms(["a.png", "b.png"], ["", ""])


@pytest.mark.parametrize("nobody", ['""', "null", '" "', "NaN"])
def test_a_file_that_names_nobody_is_read_as_of_a_person_for_each_xray(tmp_path, nobody):
    """In every place where people are grouped: heads, groups of errors, averages of seeds, comparisons."""
    paths = [tmp_path / "one.jsonl", tmp_path / "other.jsonl"]
    for path, seed in zip(paths, (0, 1), strict=True):
        write_predictions(path, _graded(seed))
        path.write_text(re.sub('"person": "[^"]*"', f'"person": {nobody}', path.read_text()))
    read = read_predictions(paths[0])
    assert read.people == pseudonyms(read.files, [""] * 12)
    groups = {"all": np.ones(12, dtype=bool)}
    [figures] = measure_groups(read, groups, "text").values()
    assert figures["interval"] is not None
    assert average_files(paths)["num_people"] == 12
    compared = compare_files(*paths, "text")
    assert compared["num_people"] == 12 and compared["intervals"]["accuracy"] is not None


def test_predictions_of_a_split_are_of_each_xray_once():
    split = Dataset.from_dict({"file": ["a.png", "b.png"], "person_id": ["9000001", ""]})
    predictions = _graded(size=2).predictions
    graded = GradedSplit.of_split(predictions, split)
    assert graded.files == ["a.png", "b.png"] and graded.people == pseudonyms(graded.files, ["9000001", ""])
    predictions.index[1] = 0
    with pytest.raises(PredictionsError, match="2 predictions for 2 X-rays: there must be one for each"):
        GradedSplit.of_split(predictions, split)


@pytest.mark.parametrize(
    "line, reason",
    [
        ("{oops", r"p\.jsonl, line 3 is no prediction \(JSONDecodeError"),
        ('{"file": "a.png", "person": "p", "label": 1}', r"line 3 .*KeyError: 'logits'"),
        ("7", "line 3 .*TypeError"),
        ("[" * 100_000, "line 3 .*RecursionError"),
        (json.dumps(dict.fromkeys(("file", "person", "label"), 1) | {"logits": [10**400]}), "line 3 .*OverflowError"),
    ],
)
def test_a_broken_line_is_named(tmp_path, line, reason):
    path = tmp_path / "p.jsonl"
    write_predictions(path, _graded(size=2))
    path.write_text(path.read_text() + line + "\n")
    with pytest.raises(PredictionsError, match=reason):
        read_predictions(path)


def test_files_that_are_none(tmp_path):
    with pytest.raises(PredictionsError, match="there is no such file"):
        read_predictions(tmp_path / "p.jsonl")
    (tmp_path / "p.jsonl").write_text("")
    with pytest.raises(PredictionsError, match="is empty"):
        read_predictions(tmp_path / "p.jsonl")
    write_predictions(tmp_path / "p.jsonl", _graded(size=2))
    with open(tmp_path / "p.jsonl", "ab") as file:
        file.write(b"PAR1\x15\x04\xff\xfe\x00")  # no UTF-8, as another kind of file
    with pytest.raises(PredictionsError, match="line 3 is no prediction .UnicodeDecodeError"):
        read_predictions(tmp_path / "p.jsonl")


@pytest.mark.parametrize("label", [7, -1, 2.7, True, "2", None, [2], float("nan"), 10**30])
def test_a_label_that_is_no_grade_is_named(tmp_path, label):
    """2.7 was read as 2."""
    path = _with_changed_line(tmp_path, label=label)
    with pytest.raises(PredictionsError, match=r"p\.jsonl, line 2: label .* is no grade; give 0 to 4"):
        compare_files(path, path, "text")


def test_a_whole_grade_may_be_written_with_a_point(tmp_path):
    assert read_predictions(_with_changed_line(tmp_path, label=3.0)).predictions.labels.tolist() == [0, 3]


@pytest.mark.parametrize("logits", [[1.0] * 4, [1.0] * 6, 1.0, [[1.0] * 5], [1.0] * 4 + [float("nan")], [1e39] * 5])
def test_logits_that_are_not_one_for_each_grade_are_named(tmp_path, logits):
    path = _with_changed_line(tmp_path, flipped_logits=logits)
    with pytest.raises(PredictionsError, match=r"p\.jsonl, line 2: flipped_logits must be 5 finite numbers"):
        average_files([path, path])


def _with_changed_line(folder, **values):
    path = folder / "p.jsonl"
    write_predictions(path, _graded(size=2))
    first, second = path.read_text().splitlines()
    path.write_text(f"{first}\n{json.dumps({**json.loads(second), **values})}\n")
    return path


def test_intervals_come_with_people_only(make_model):
    graded = _graded()
    plain = evaluate(graded.predictions, make_model().config)
    assert "intervals" not in plain["text"] and {"auroc_osteoarthritis", "log_loss"} <= set(plain["text"])
    with_people = evaluate(graded.predictions, make_model().config, graded.people)
    assert with_people["text"]["num_people"] == 6
    assert {name: with_people["text"][name] for name in plain["text"]} == plain["text"]
    assert {head: with_people[head] for head in ("text", "linear")}.items() <= measure_heads(
        graded.predictions, graded.people
    ).items()


def test_logits_that_are_not_finite_are_named():
    graded = _graded()
    graded.predictions.classifier_logits[3, 2] = float("nan")
    with pytest.raises(FloatingPointError, match="linear head's logits of X-ray 3 are not finite"):
        measure_heads(graded.predictions)


@pytest.fixture
def files(tmp_path):
    write_predictions(tmp_path / "first.jsonl", _graded(0))
    write_predictions(tmp_path / "second.jsonl", _shuffled(_graded(1), torch.randperm(12).tolist()))
    return tmp_path / "first.jsonl", tmp_path / "second.jsonl"


def test_a_comparison_is_by_file_not_by_line(files):
    first, second = _graded(0), _graded(1)
    results = compare_files(*files, "text")
    right = [graded.predictions.logits.argmax(-1) == graded.predictions.labels for graded in (first, second)]
    assert results["only_first_right"] == (right[0] & ~right[1]).sum()
    assert results["only_second_right"] == (right[1] & ~right[0]).sum()
    difference = (right[1].float().mean() - right[0].float().mean()).item()
    assert results["difference"]["accuracy"] == pytest.approx(difference)
    assert results["num_people"] == 6
    text = describe_comparison(results)
    assert "12 X-rays of 6 people" in text and f"{difference:+.4f}" in text and "McNemar" in text


def test_two_heads_of_one_file(files):
    results = compare_files(files[0], files[0], "text", "linear")
    measured = measure_heads(_graded(0).predictions)
    assert results["first"]["log_loss"] == pytest.approx(measured["text"]["log_loss"])
    assert results["second"]["log_loss"] == pytest.approx(measured["linear"]["log_loss"])


def test_an_average_is_of_the_figures_of_each_file(files):
    average = average_files(files)
    measured = [measure_heads(_graded(seed).predictions) for seed in (0, 1)]
    for head in measured[0]:
        for name in ("quadratic_weighted_kappa", "expected_calibration_error", "recall_per_grade"):
            values = np.array([one[head][name] for one in measured])
            assert average[head][name]["mean"] == pytest.approx(values.mean(0).tolist())
            # With two files the standard deviation is their distance over the root of 2.
            distance = np.abs(values[1] - values[0]) / 2**0.5
            assert average[head][name]["standard_deviation"] == pytest.approx(distance.tolist())
    text = describe_average(average)
    assert "2 files, 12 X-rays of 6 people" in text and "| recall_per_grade KL4 |" in text
    figure = average["text"]["mae"]
    assert f"| mae | {figure['mean']:.3f} ± {figure['standard_deviation']:.3f} ({figure['interval'][0]:.3f} to" in text


def test_the_average_of_one_file_in_two_orders_is_the_file(tmp_path):
    """The interval too: the same people are drawn for all files."""
    paths = [tmp_path / "plain.jsonl", tmp_path / "shuffled.jsonl"]
    graded = _graded(0)
    write_predictions(paths[0], graded)
    write_predictions(paths[1], _shuffled(graded, torch.randperm(12).tolist()))
    average = average_files(paths)["text"]
    measured = measure_heads(graded.predictions, graded.people)["text"]
    for name in ("accuracy", "auroc_osteoarthritis", "flip_divergence"):
        assert average[name]["mean"] == pytest.approx(measured[name])
        assert average[name]["standard_deviation"] == pytest.approx(0, abs=1e-12)
        assert average[name]["interval"] == pytest.approx(measured["intervals"][name])


def test_a_figure_without_a_value_is_said_to_be_none(tmp_path):
    graded = _graded(0, size=4)  # no X-ray of KL4
    write_predictions(tmp_path / "p.jsonl", graded)
    average = average_files([tmp_path / "p.jsonl"] * 2)
    assert average["text"]["recall_per_grade"]["mean"][4] is None
    assert "| recall_per_grade KL4 | none | none | none |" in describe_average(average)


def test_files_of_other_xrays_are_refused(files):
    first, second = files
    write_predictions(second, _graded(1, size=11))
    with pytest.raises(PredictionsError, match=r"second\.jsonl lacks val/1/9000005R\.png of .*first"):
        compare_files(first, second, "text")
    with pytest.raises(PredictionsError, match=r"second\.jsonl lacks val/1/9000005R\.png of .*first"):
        compare_files(second, first, "text")
    with pytest.raises(PredictionsError, match=r"second\.jsonl lacks val/1/9000005R\.png of .*first"):
        average_files([first, first, second])
    relabelled = _graded(1)
    relabelled.predictions.labels[2] = 4
    write_predictions(second, relabelled)
    with pytest.raises(PredictionsError, match=r"val/2/9000001L\.png is grade 2 of person .* but grade 4"):
        compare_files(first, second, "text")
    doubled = _graded(1)
    doubled.files[1] = doubled.files[0]
    write_predictions(second, doubled)
    with pytest.raises(PredictionsError, match="more than once"):
        compare_files(first, second, "text")
