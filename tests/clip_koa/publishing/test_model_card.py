"""What a card tells besides a run's figures: a picture, who may use the model for what, what was measured apart."""

import json

import pytest
import torch
from conftest import ROOT
from PIL import Image

from clip_koa.evaluation import error_groups
from clip_koa.evaluation.heads import HEADS, Predictions
from clip_koa.evaluation.loading import weights_digest
from clip_koa.evaluation.predictions import GradedSplit, write_predictions
from clip_koa.publishing import measured_apart as records
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.measured_apart import RECORDS, MeasuredApart, TrainingCost, measured_apart
from clip_koa.publishing.release import build_release
from clip_koa.publishing.release_check import check_folder
from dataset_script.synthetic import draw_knee
from metrics.kl_grading.kl_grading import kl_grading_metrics

RELEASED = ROOT / "models" / "clip-koa-small"


def _card(folder) -> str:
    return (folder / "README.md").read_text(encoding="utf-8")


def test_a_card_begins_with_a_picture_of_what_its_model_says(checkpoint, tmp_path):
    folder = build_release(checkpoint, tmp_path / "release", "anna/knees").folder
    first = [line for line in _card(folder).split("---\n")[-1].splitlines() if line][:2]
    assert first[0] == "# knees" and first[1].startswith("![Ten X-rays") and "(figures/examples.png)" in first[1]
    check_folder(folder)
    with Image.open(folder / "figures" / "examples.png") as picture:
        assert picture.width > 800 and len(picture.convert("RGB").getcolors(10**6)) > 1000
    other = build_release(checkpoint, tmp_path / "other", "anna/knees").folder
    assert (folder / "figures/examples.png").read_bytes() == (other / "figures/examples.png").read_bytes()


def test_figures_of_the_test_split_are_told_of_the_weights_that_they_are_of_and_of_no_others(
    checkpoint, tmp_path, monkeypatch
):
    folder = build_release(checkpoint, tmp_path / "release", "anna/knees").folder
    card = _card(folder)
    command = "clip-koa evaluate --model anna/knees --data_dir FOLDER --split test --output evaluation"
    assert "828 people): not measured yet for these weights" in card and command in card
    assert "Not recorded for these weights" in card and "kWh" not in card

    [third] = [record for record in json.loads(RECORDS.read_text()).values() if record["test"]]
    monkeypatch.setattr(records, "RECORDS", tmp_path / "records.json")
    (tmp_path / "records.json").write_text(json.dumps({weights_digest(str(folder)): third}))
    known = _card(build_release(checkpoint, tmp_path / "measured", "anna/knees").folder)
    assert "| text head | 0.682 | 0.839 | 0.364 | 0.694 | 0.331 |" in known
    assert "| linear head | 0.691 | 0.839 | 0.359 | 0.698 | 0.314 |" in known
    assert command in known and "not measured yet" not in known and "0.23 kWh" in known
    (tmp_path / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:-1] + b"\1")
    assert measured_apart(tmp_path) == MeasuredApart()  # one byte is another model


def test_the_released_card_tells_what_is_known_of_its_weights():
    known, card = measured_apart(RELEASED), _card(RELEASED)
    assert known.cost.teachers and f"{known.cost.hours:.1f} hours on 2 CPU cores" in card
    assert ("not measured yet for these weights" in card) == (not known.test)


def test_energy_is_runtime_times_power_times_overhead():
    """By hand: two hours of two cores of 12 W and 10 GiB of .3725 W are 55.45 Wh, times 1.67."""
    assert TrainingCost((30, 90), 2, 10).kilowatt_hours == pytest.approx(0.0926, abs=1e-4)
    assert TrainingCost((30,), 2, 10, teachers=(60, 30)).kilowatt_hours == pytest.approx(0.0926, abs=1e-4)


def _evaluation(folder, checkpoint) -> GradedSplit:
    """What clip-koa evaluate leaves of ten drawn X-rays, every right knee graded one too high."""
    labels = torch.arange(5).repeat(2)
    files = [f"val/{grade}/9{number:06d}{'LR'[number % 2]}.png" for number, grade in enumerate(labels.tolist())]
    named = labels.clone()
    named[1::2] = (named[1::2] + 1).clamp(max=4)
    logits = 5 * torch.nn.functional.one_hot(named, 5).float()
    graded = GradedSplit(
        Predictions(torch.arange(10), labels, *[logits] * 4), files, [str(number // 2) for number in range(10)]
    )
    write_predictions(folder / "predictions_validation.jsonl", graded)
    figures = kl_grading_metrics(named.tolist(), labels.tolist(), people=graded.people)
    about = {"split": "validation", "about": {"weights": weights_digest(str(checkpoint))}}
    (folder / "metrics.json").write_text(json.dumps({**about, **dict.fromkeys(HEADS, figures)}))
    for number, (file, grade) in enumerate(zip(files, labels.tolist(), strict=True)):
        (folder / "knees" / file).parent.mkdir(parents=True, exist_ok=True)
        draw_knee(grade, "LR"[number % 2], number, 48).save(folder / "knees" / file)
    return graded


def test_known_failures_by_group_come_from_the_evaluation(checkpoint, tmp_path, capsys):
    evaluation = tmp_path / "evaluation"
    evaluation.mkdir()
    _evaluation(evaluation, checkpoint)
    predictions = evaluation / "predictions_validation.jsonl"
    assert error_groups.main([str(predictions), "--data_dir", str(evaluation / "knees")]) == 0
    printed = capsys.readouterr().out
    folder = build_release(checkpoint, tmp_path / "release", "anna/knees", evaluations=(evaluation,)).folder
    section = _card(folder).split("### Known failures", 1)[1].split("\n###", 1)[0]
    for row in ("| left knees | 5 | 1.000 ", "| right knees | 5 | 0."):
        assert row in section and row in printed
    assert "person" not in (folder / "error_groups.json").read_text() and "9000" not in section
    check_folder(folder)

    predictions.write_text(predictions.read_text().replace('"label": 0', '"label": 1', 1))
    with pytest.raises(ReleaseError, match=r"error_groups\.json is of other predictions"):
        build_release(checkpoint, tmp_path / "other", "anna/knees", evaluations=(evaluation,))
