"""The two tests of heat maps, on a model whose answer is known to lean on one patch."""

import json

import numpy as np
import pytest
import torch

from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import write_corpus
from studies import heatmap_check


def test_painting_over(pixel_values):
    ranking = torch.arange(16).repeat(6, 1)
    painted = heatmap_check._painted(pixel_values, ranking, 0.25)  # the top row of a grid of 4 x 4
    means = pixel_values.mean((2, 3), keepdim=True).expand(-1, -1, 8, 32)
    torch.testing.assert_close(painted[:, :, :8], means)
    assert torch.equal(painted[:, :, 8:], pixel_values[:, :, 8:])


def test_the_figures_tell_a_true_map_from_a_wrong_one(make_model, pixel_values, monkeypatch):
    model = make_model().eval()
    grades = [2] * 6
    before = heatmap_check._probabilities(model, pixel_values, grades)

    def fall(patch: int) -> np.ndarray:
        ranking = torch.full((6, 1), patch)
        mask = torch.zeros(6, 16).scatter(1, ranking, 1.0).argsort(dim=1, descending=True)
        return before - heatmap_check._probabilities(model, heatmap_check._painted(pixel_values, mask, 1 / 16), grades)

    falls = torch.tensor(np.stack([fall(patch) for patch in range(16)], axis=1)).view(6, 4, 4)
    for sign in (1, -1):
        monkeypatch.setattr(heatmap_check, "_maps", lambda *arguments, sign=sign: sign * falls)
        found = heatmap_check.compare_deletions(model, pixel_values, grades)[0.1]
        assert sign * (found["hottest"] - found["random"]).mean() > 0


def test_maps_of_weights_drawn_anew_are_others(make_model, pixel_values):
    found = heatmap_check.compare_randomised(make_model().eval(), pixel_values, [2] * 6)
    for correlations in found.values():
        assert len(correlations) == 6 and max(correlations) < 0.99


@pytest.mark.slow
def test_the_command(run_python, tiny_start, tmp_path):
    save_model_folder(tmp_path / "m", tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    write_corpus(tmp_path / "knees", 8, 0, 48, 0.3, "validation")
    result = run_python(
        "-m", "studies.heatmap_check", "--model", tmp_path / "m", "--data_dir", tmp_path / "knees",
        "--limit", "3",
    )  # fmt: skip
    figures = json.loads(result.stdout[result.stdout.index("{") :])
    assert len(figures) == 2 + 3 * 5
    for figure in figures.values():
        low, high = figure["interval"]
        assert low <= figure["mean"] <= high
    refused = run_python("-m", "studies.heatmap_check", "--model", tmp_path / "none", expect=2)
    assert "none cannot be loaded: give a model folder" in refused.stderr.splitlines()[-1]
