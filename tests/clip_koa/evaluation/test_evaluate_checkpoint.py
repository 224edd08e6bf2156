"""clip-koa evaluate as a user runs it: the trainer's numbers, on any number of processes, and the rest of it."""

import csv
import json
import os
import re
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from conftest import ROOT

from clip_koa.commands import main
from clip_koa.evaluation.heads import HEADS, predict
from clip_koa.evaluation.predictions import LOGITS, read_predictions
from clip_koa.grading.grader import Grader
from dataset_script.synthetic import write_corpus

PERTURBATIONS = ("rotate_left", "mirror", "sixteen_bit")


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """A folder with a train and a validation split; the latter has 13 X-rays, which no even number shares."""
    folder = tmp_path_factory.mktemp("knees")
    for split, people in (("train", 12), ("validation", 7)):
        write_corpus(folder / split / "drawn", people, 3, 96, 0.3, split)
        (folder / split / "drawn" / split).rename(folder / f"{split}.moved")
        (folder / split / "drawn").rmdir()
        (folder / split).rmdir()
        (folder / f"{split}.moved").rename(folder / split)
    next((folder / "validation").glob("*/*R.png")).unlink()
    return folder


@pytest.fixture(scope="module")
def trained(corpus, tmp_path_factory):
    """A short run in bf16, whose best checkpoint is evaluated in fp32 all the same."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = (
        "train.py", "--data.corpus", corpus, "--model.start", "tiny", "--optimisation.epochs", 6,
        "--optimisation.batch_size", 8, "--optimisation.new_learning_rate", "1e-3", "--losses.consistency_weight", 1,
        "--losses.consistency", "js", "--compute.mixed_precision", "bf16", "--run.output_dir", folder,
    )  # fmt: skip
    result = subprocess.run([sys.executable, *map(str, command)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return folder


def _evaluate(*arguments) -> int:
    # Other tests leave accelerators of other precisions behind.
    AcceleratorState._reset_state(reset_partial_state=True)
    return main(["evaluate", *arguments])


@pytest.fixture(scope="module")
def evaluated(trained, corpus, tmp_path_factory):
    """The evaluation of its best checkpoint, stock and perturbed, with a batch size that leaves a rest."""
    folder = tmp_path_factory.mktemp("evaluation")
    status = _evaluate(
        "--model", trained / "best", "--data_dir", corpus, "--split", "val", "--output", folder, "--batch_size", 5,
        "--stock", "--perturb", ",".join(PERTURBATIONS),
    )  # fmt: skip
    assert status == 0
    return folder


def _metrics(folder) -> dict:
    return json.loads((folder / "metrics.json").read_text())


def _same_predictions(one, other) -> None:
    assert (one.files, one.people) == (other.files, other.people)
    assert one.predictions.labels.equal(other.predictions.labels)
    for name in LOGITS:
        difference = (getattr(one.predictions, name) - getattr(other.predictions, name)).abs().max()
        assert difference < 1e-4, (name, difference)


def _same_figures(one, other) -> None:
    for head in HEADS:
        for name in ("accuracy", "quadratic_weighted_kappa", "mae", "log_loss", "flip_agreement", "confusion_matrix"):
            difference = np.abs(np.array(one[head][name]) - np.array(other[head][name])).max()
            assert difference < 1e-4, (head, name)
        assert one[head]["intervals"]["accuracy"] == pytest.approx(other[head]["intervals"]["accuracy"])


def test_the_trainers_own_numbers(trained, evaluated):
    theirs = read_predictions(trained / "report" / "predictions_validation.jsonl")
    ours = read_predictions(evaluated / "predictions_validation.jsonl")
    assert len(ours.files) == 13
    _same_predictions(theirs, ours)
    report = json.loads((trained / "report" / "metrics.json").read_text())["validation"]
    _same_figures(report, _metrics(evaluated))
    assert _metrics(evaluated)["loss"] == pytest.approx(report["loss"], abs=1e-4)


def test_two_processes_give_the_same(trained, corpus, evaluated, run_python, tmp_path):
    torchrun = ("-m", "torch.distributed.run", "--nproc_per_node", 2, "--master_port", 29200 + os.getpid() % 300)
    result = run_python(
        *torchrun, "-m", "clip_koa", "evaluate", "--model", trained / "best", "--data_dir", corpus,
        "--output", tmp_path, "--batch_size", 3, "--stock", ACCELERATE_USE_CPU="true",
    )  # fmt: skip
    assert result.stdout.count("Report: ") == 1
    two, one = (read_predictions(folder / "predictions_validation.jsonl") for folder in (tmp_path, evaluated))
    _same_predictions(two, one)
    _same_figures(_metrics(tmp_path), _metrics(evaluated))
    for head in ("text", "linear"):
        expected = _metrics(evaluated)["stock"][head]["log_loss"]
        assert _metrics(tmp_path)["stock"][head]["log_loss"] == pytest.approx(expected, abs=1e-5)


def test_stock_pipelines_grade_as_our_code_does(evaluated):
    """The prompts are the standard ones, so zero-shot classification is the text head."""
    results = _metrics(evaluated)
    for head in ("text", "linear"):
        assert results["stock"]["agreement"][head]["same_grade"] == 1.0
        assert results["stock"]["agreement"][head]["largest_difference"] < 1e-5
        assert results["stock"][head]["log_loss"] == pytest.approx(results[head]["log_loss"], abs=1e-5)
        assert results["stock"][head]["intervals"]["log_loss"]


def test_what_is_written(evaluated):
    names = {path.name for path in evaluated.iterdir()}
    assert names == {
        "predictions_validation.jsonl", "metrics.json", "index.html", "perturbed", "robustness.md", "robustness.csv",
        "robustness.png", "grade_changes.csv", *(f"{name}_validation.png" for name in (
            "confusion_matrix", "recall_per_grade", "reliability", "roc", "flip_scatter")),
    }  # fmt: skip
    page = (evaluated / "index.html").read_text()
    assert page.count("<img") == 6 + 12 and "Research only" in page
    assert not re.search(r"https?://|url\(|<script|<link", page)
    assert "7 people" in page and "Stock pipelines" in page and "stored with 16 bits" in page


def test_robustness_follows_from_the_predictions(evaluated):
    plain = read_predictions(evaluated / "predictions_validation.jsonl").predictions
    robustness = _metrics(evaluated)["robustness"]
    assert set(robustness) == set(PERTURBATIONS)
    rows = list(csv.DictReader((evaluated / "grade_changes.csv").read_text().splitlines()))
    for name in PERTURBATIONS:
        path = evaluated / "perturbed" / f"predictions_validation_{name}.jsonl"
        perturbed = read_predictions(path).predictions
        for head in HEADS:
            before, after = plain.of_head(head)[0].argmax(-1), perturbed.of_head(head)[0].argmax(-1)
            assert robustness[name][head]["grade_changed"] == pytest.approx((before != after).float().mean().item())
            assert robustness[name][head]["mean_change"] == pytest.approx((after - before).float().mean().item())
            accuracy = [(grades == plain.labels).float().mean().item() for grades in (before, after)]
            assert robustness[name][head]["change"]["accuracy"] == pytest.approx(accuracy[1] - accuracy[0])
        after = perturbed.of_head("text_flip_averaged")[0].argmax(-1)
        assert [int(row[name]) for row in rows] == after.tolist()
    table = list(csv.DictReader((evaluated / "robustness.csv").read_text().splitlines()))
    row = next(r for r in table if (r["perturbation"], r["head"], r["metric"]) == ("mirror", "linear", "log_loss"))
    assert float(row["change"]) == pytest.approx(robustness["mirror"]["linear"]["change"]["log_loss"])
    lines = (evaluated / "robustness.md").read_text().splitlines()
    assert len(lines) == 2 + len(PERTURBATIONS) and len({line.count("|") for line in lines}) == 1


def test_mirroring_swaps_the_views(evaluated):
    plain = read_predictions(evaluated / "predictions_validation.jsonl").predictions
    mirrored = read_predictions(evaluated / "perturbed" / "predictions_validation_mirror.jsonl").predictions
    assert torch.allclose(mirrored.logits, plain.flipped_logits, atol=1e-3)
    assert torch.allclose(mirrored.flipped_classifier_logits, plain.classifier_logits, atol=1e-3)
    assert _metrics(evaluated)["robustness"]["mirror"]["text_flip_averaged"]["grade_changed"] == 0
    rotated = read_predictions(evaluated / "perturbed" / "predictions_validation_rotate_left.jsonl").predictions
    assert not torch.allclose(rotated.logits, plain.logits, atol=1e-3)


def test_comparing(evaluated, tmp_path, capsys):
    first = evaluated / "predictions_validation.jsonl"
    second = evaluated / "perturbed" / "predictions_validation_rotate_left.jsonl"
    assert _evaluate("--compare", first, second, "--head", "linear", "--output", tmp_path / "new") == 0
    printed = capsys.readouterr().out
    comparison = json.loads((tmp_path / "new" / "comparison.json").read_text())
    assert f"p = {comparison['mcnemar_p']:.3g}" in printed and "13 X-rays of 7 people" in printed
    change = _metrics(evaluated)["robustness"]["rotate_left"]["linear"]
    assert comparison["difference"]["accuracy"] == change["change"]["accuracy"]
    assert comparison["intervals"]["log_loss"] == pytest.approx(change["intervals"]["log_loss"])


def test_averaging_seeds(evaluated, tmp_path, capsys):
    files = [evaluated / "predictions_validation.jsonl"]
    files.append(evaluated / "perturbed" / "predictions_validation_rotate_left.jsonl")
    assert _evaluate("--average_seeds", *files, "--output", tmp_path / "new") == 0
    average = json.loads((tmp_path / "new" / "seeds.json").read_text())
    change = _metrics(evaluated)["robustness"]["rotate_left"]["linear"]["change"]["mae"]
    assert average["linear"]["mae"]["mean"] == pytest.approx(_metrics(evaluated)["linear"]["mae"] + change / 2)
    assert "2 files, 13 X-rays of 7 people" in capsys.readouterr().out
    assert _evaluate("--average_seeds", files[0]) == 2
    assert "two prediction files or more" in capsys.readouterr().err


def test_readings_are_those_of_grade(trained, corpus, tmp_path, capsys):
    given = ["--model", str(trained / "best"), "--data_dir", str(corpus), "--output", str(tmp_path / "three")]
    assert _evaluate(*given, "--no_thumbnails", "--readings", "3") == 0
    graded = read_predictions(tmp_path / "three" / "predictions_validation.jsonl")
    grader = Grader(str(trained / "best"), readings=3)
    files = [str(corpus / file) for file in graded.files]
    for xray, logits in zip(grader.grade(files), graded.predictions.logits, strict=True):
        assert xray.grade.image_probabilities == pytest.approx(logits.softmax(-1).tolist(), abs=1e-4)
    assert "3, averaged" in (tmp_path / "three" / "index.html").read_text()
    assert _evaluate(*given, "--readings", "2") == 2
    assert "--readings 2: use one of 1, 3." in capsys.readouterr().err
    with pytest.raises(ValueError, match="readings=2: use one of 1, 3"):
        predict(grader.model, [], Accelerator(cpu=True), readings=2)


def test_a_page_without_pictures_of_xrays(trained, corpus, tmp_path):
    _evaluate("--model", trained / "best", "--data_dir", corpus, "--output", tmp_path, "--no_thumbnails")
    page = (tmp_path / "index.html").read_text()
    assert "image/jpeg" not in page and "The hardest X-rays" in page


def test_wrong_use_is_a_line_or_two(corpus, tmp_path, capsys):
    assert _evaluate("--model", tmp_path / "missing", "--data_dir", corpus, "--output", tmp_path / "new") == 2
    *_, told = capsys.readouterr().err.splitlines()
    assert re.match(r"clip-koa evaluate: .*missing cannot be loaded: give a model folder", told)
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((), "name one of --model, --compare and --average_seeds"),
        (("--model", "m", "--compare", "a", "b"), "name one of"),
        (("--model", "m"), "--model needs --output"),
        (("--model", "m", "--output", "o", "--perturb", "noise", "blur"), "blur: prediction files are for --compare"),
        (("--compare", "a"), "--compare needs two prediction files, not 1"),
        (("--model", "m", "--output", "o", "--batch_size", "0"), "batch_size"),
        (
            ("--model", "m", "--output", "o", "--stock", "--readings", "3"),
            "--readings 3 --stock: stock pipelines read",
        ),
        (("--model", "m", "--output", "o", "--head", "text"), "--head is for --compare alone: leave it out"),
        (("--model", "m", "--output", "o", "--second-head", "text"), "--second_head is for --compare alone"),
        (("--average_seeds", "a", "b", "--head", "linear"), "--head is for --compare alone"),
        *(
            (("--compare", "a", "b", *option), f"{option[0]} is for --model alone: leave it out")
            for option in (
                ("--readings", "3"),
                ("--pairs",),
                ("--stock",),
                ("--perturb", "blur"),
                ("--split", "validation"),
            )
        ),
        (("--average_seeds", "a", "b", "--pairs"), "--pairs is for --model alone"),
    ],
)
def test_what_does_not_go_together_is_told(arguments, reason, capsys):
    assert _evaluate(*arguments) == 2
    assert reason in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--split", "test"), "--split test: .* has train, validation"),
        (("--data_dir", "/nowhere"), "/nowhere: there is no such folder"),
        (("--perturb", "sepia"), "--perturb sepia"),
    ],
)
def test_errors_name_what_is_wrong(trained, corpus, tmp_path, arguments, reason, capsys):
    status = _evaluate("--model", trained / "best", "--data_dir", corpus, "--output", tmp_path, *arguments)
    assert status == 2 and re.search(reason, capsys.readouterr().err)
    assert not list(tmp_path.iterdir())
