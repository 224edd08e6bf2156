"""clip-koa average as a user runs it, and what it refuses."""

import pytest
import torch

from clip_koa.calibration.temperatures import fold_temperatures
from clip_koa.commands import main
from clip_koa.evaluation.loading import CheckpointError
from clip_koa.training.averaging import average_checkpoints
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.starting_points import build_image_processor
from modeling_clip_koa import CLIPKOAForImageClassification


@pytest.fixture
def checkpoint(make_model, tokenizer, tmp_path):
    """Saves a tiny model of a seed under a name."""

    def save(name, seed, change=lambda model: None, **settings):
        model = make_model(seed=seed, **settings)
        change(model)
        save_model_folder(tmp_path / name, model, build_image_processor(32, [0.5] * 3, [0.25] * 3), tokenizer)
        return str(tmp_path / name)

    return save


def test_every_weight_is_the_mean_of_all(checkpoint, run_command, tmp_path):
    folders = [checkpoint(f"seed{seed}", seed) for seed in range(3)]
    assert "averaged" in run_command("average", *folders, "--output", tmp_path / "averaged").stdout
    parts = [dict(CLIPKOAForImageClassification.from_pretrained(folder).named_parameters()) for folder in folders]
    model = CLIPKOAForImageClassification.from_pretrained(tmp_path / "averaged")
    mean = dict(model.named_parameters())
    assert mean.keys() == parts[0].keys()
    for name, weight in mean.items():
        torch.testing.assert_close(weight, sum(part[name] for part in parts) / 3, rtol=1e-5, atol=1e-6)
    assert not mean["classifier.weight"].equal(parts[0]["classifier.weight"])
    # The embeddings that are kept beside the weights follow from them.
    torch.testing.assert_close(model.grade_prompts.embeds, model.get_grade_embeds().detach(), rtol=1e-5, atol=1e-6)
    first = CLIPKOAForImageClassification.from_pretrained(folders[0])
    assert model.state_dict().keys() == first.state_dict().keys()


@pytest.mark.parametrize(
    "other, message",
    [
        ({"prompts": "standard"}, "other and .*first differ in prompts"),
        ({"change": lambda model: fold_temperatures(model, 1.5, 1.5)}, "other is calibrated already"),
    ],
)
def test_checkpoints_that_do_not_belong_together_are_refused(checkpoint, tmp_path, other, message):
    folders = [checkpoint("first", 0), checkpoint("other", 1, **other)]
    with pytest.raises(CheckpointError, match=message):
        average_checkpoints(list(map(str, folders)))
    assert main(["average", *folders, "--output", tmp_path / "averaged"]) == 2
    assert not (tmp_path / "averaged").exists()


def test_wrong_use_is_a_line_or_two(checkpoint, run_command, tmp_path):
    first = checkpoint("first", 0)
    output = ("--output", tmp_path / "averaged")
    missing = run_command("average", first, tmp_path / "missing", *output, expect=2).stderr
    assert "missing cannot be loaded" in missing and "Traceback" not in missing
    assert "two checkpoints or more" in run_command("average", first, *output, expect=2).stderr
