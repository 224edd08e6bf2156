"""The study of a foreign style: who is labelled, what it writes, how shares are told; and the command."""

import json
from dataclasses import replace

import numpy as np
import pytest

from clip_koa.commands import main as clip_koa
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.layouts import list_files
from dataset_script.names import CorpusError
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee, write_corpus
from metrics.kl_grading.kl_grading import GradedSample
from studies import your_own
from studies.xray_changes import in_foreign_style


def _draw(folder, **people):
    """Drawn X-rays, two of each person, by split."""
    for seed, (split, count) in enumerate(people.items()):
        write_corpus(folder / f"{split}-alone", count, seed, 64, 0.3, split)
        (folder / "knees").mkdir(exist_ok=True)
        (folder / f"{split}-alone" / split).rename(folder / "knees" / split)
    return folder / "knees"


@pytest.fixture
def study(tmp_path):
    data = _draw(tmp_path, train=12, validation=9)
    return your_own.Study("model", str(data), "config", "train", labelled=16, people=0, seed=0, precision="no")


def test_the_style_is_another_gray_curve_at_half_the_pixels():
    knee = draw_knee(2, "L", seed=1)
    changed = in_foreign_style(knee)
    assert changed.mode == "L" and changed.size == (112, 112)
    assert np.abs(np.asarray(changed, int) - np.asarray(knee.resize((112, 112)), int)).mean() > 10


def test_nobody_is_labelled_and_graded(study):
    for learn_from, graded in {"train": 18, "validation": 2}.items():
        splits = your_own.choose(replace(study, learn_from=learn_from))
        counts = {name: len(xrays) for name, xrays in splits.items()}
        assert counts["train"] + counts["validation"] == 16 and counts["test"] == graded
        assert counts["train"] > counts["validation"] > 0
        people = [{xray.person_id for xray in xrays} for xrays in splits.values()]
        assert sum(map(len, people)) == len(set.union(*people))
        assert {xray.split for xray in splits["train"]} == {learn_from}
        assert {xray.split for xray in splits["test"]} == {"validation"}
    assert your_own.choose(study) == your_own.choose(study)
    assert your_own.choose(study)["train"] != your_own.choose(replace(study, seed=1))["train"]
    assert len({xray.person_id for xray in your_own.choose(replace(study, people=3))["test"]}) == 3
    with pytest.raises(CorpusError, match="too few X-rays to label 25"):
        your_own.choose(replace(study, labelled=25))


def test_what_is_written_is_the_style_of_the_chosen(study, tmp_path):
    splits = your_own.choose(study)
    your_own.write_in_style(splits, tmp_path / "style")
    listed = list_files(tmp_path / "style")
    for split, xrays in splits.items():
        assert [(x.grade, x.person_id) for x in listed[split]] == sorted((x.grade, x.person_id) for x in xrays)
    written, original = listed["test"][0], min(splits["test"], key=lambda x: (x.grade, x.path.name))
    expected = in_foreign_style(read_radiograph(original.path).image)
    np.testing.assert_array_equal(np.asarray(read_radiograph(written.path).image), np.asarray(expected))


def test_shares_are_of_what_was_lost():
    truth = np.tile([0, 1, 2, 3], 50)
    people = [f"person {number // 2}" for number in range(200)]

    def sample(right):
        """The first X-rays of each 20 right, the others a grade off."""
        grades = np.where(np.arange(200) % 20 < right, truth, (truth + 1) % 5)
        probabilities = np.full((200, 5), 0.1)
        probabilities[np.arange(200), grades] = 0.6
        return GradedSample(grades, truth.tolist(), probabilities=probabilities, people=people)

    found = your_own.compare(
        {
            ("released", "official"): sample(16),
            ("released", "style"): sample(8),
            ("tuned", "style"): sample(14),
            ("tuned", "official"): sample(15),
        }
    )
    assert found["lost by the style"]["accuracy"]["value"] == pytest.approx(-0.4)
    assert found["won by fine-tuning"]["accuracy"]["value"] == pytest.approx(0.3)
    assert found["lost on official crops"]["accuracy"]["value"] == pytest.approx(-0.05)
    share = found["share of accuracy won back"]
    assert share["value"] == pytest.approx(0.75) and share["interval"][0] < 0.75 < share["interval"][1]
    assert found["figures"]["tuned, style"]["accuracy"]["value"] == pytest.approx(0.7)


@pytest.mark.slow
def test_the_command_does_what_a_user_does_and_nothing_twice(tiny_start, tmp_path, capfd):
    data = _draw(tmp_path, train=60, validation=24)
    save_model_folder(tmp_path / "raw", tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    model, config, output = tmp_path / "model", tmp_path / "config.yaml", tmp_path / "study"
    assert clip_koa(["calibrate", "--model", tmp_path / "raw", "--data_dir", data, "--output", model]) == 0
    config.write_text("run:\n  best_metric: last\noptimisation:\n  epochs: 1\n  batch_size: 8\n")
    command = ["--model", str(model), "--data_dir", str(data), "--output", str(output), "--config", str(config)]
    assert your_own.main([*command, "--labelled", "100", "--people", "20"]) == 0
    figures = json.loads((output / "figures.json").read_text())
    assert figures["xrays"]["train"] + figures["xrays"]["validation"] == 100 and figures["xrays"]["test"] == 40
    assert set(figures["warnings"]) == {"released", "tuned"} and figures["warnings"]["tuned"]["knees"]["images"] == 40
    assert (output / "calibrated" / "typicality.safetensors").is_file()
    official = figures["figures"]["released, official"]["accuracy"]
    assert official["interval"][0] <= official["value"] <= official["interval"][1]
    capfd.readouterr()
    assert your_own.main([*command, "--labelled", "100", "--people", "20"]) == 0
    assert "clip-koa train" not in capfd.readouterr().out
    assert json.loads((output / "figures.json").read_text()) == figures
    assert your_own.main([*command, "--labelled", "60"]) == 2
    assert "holds another study: name a new folder" in capfd.readouterr().err
