"""benchmark.py measures what it says, on a model small enough for a test."""

from importlib.util import find_spec

import pytest
import torch

import clip_koa
from clip_koa.training.checkpoints import save_model_folder
from studies.benchmark import backends, growth, inference, measure, training
from studies.benchmark.busy import serving
from studies.benchmark.growth import measure_growth
from studies.benchmark.measure import MODELS, matrix_product


@pytest.fixture(autouse=True)
def tiny(monkeypatch):
    """Adds a model `tiny` to those that are measured."""
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    towers = {"vision_config": {**sizes, "image_size": 32, "patch_size": 16}, "text_config": sizes}
    monkeypatch.setitem(MODELS, "tiny", {**towers, "projection_dim": 16})


@pytest.mark.slow
def test_grading_against_the_pipelines(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    figures = inference.measure_inference("tiny", batch_size=3, prompts="standard", rounds=1)
    assert figures["one view, bf16 over the zero-shot pipeline"]["median"] > 0
    same = figures["same grades as the zero-shot pipeline"]
    assert same["one view, fp32"] == same["one view, fp32, image processor"] == 1
    assert 0 < figures["forward fp32 of the peak"]["median"] < 1
    assert not any("compiled" in name for name in figures)


@pytest.mark.slow
def test_every_backend_that_is_installed_is_measured(monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_KOA_CACHE", str(tmp_path))
    figures = backends.measure_backends("tiny", batch_size=2, prompts="standard", rounds=1)
    ways = {name.split(",")[0] for name in figures}
    assert {"PyTorch fp32", "PyTorch bf16"} <= ways and all(figure["median"] > 0 for figure in figures.values())
    if find_spec("nncf") and find_spec("openvino"):
        assert {"OpenVINO fp32", "OpenVINO int8"} <= ways


def test_training_for_each_batch_size_and_what_it_spends_its_time_on():
    figures = training.measure_batches("tiny", "fp32", "standard", rounds=1)
    assert [int(name.split()[1].strip(",")) for name in figures] == [4, 8, 16, 32, 64]
    assert all(figure["median"] > 0 for figure in figures.values())
    shares = training.profile_training("tiny", 4, "bf16", "standard", steps=1)
    assert sum(share["share"] for share in shares.values()) == pytest.approx(1)
    assert all(shares[kind]["share"] > 0 for kind in ("copies and casts", "softmax", "norms", "optimizer"))


@pytest.mark.slow
def test_training_in_other_ways(monkeypatch):
    """The served processes know the models of the benchmark alone, so the small one stands for all of them."""
    monkeypatch.setattr(training, "serving", lambda settings, kind, name, size: serving(settings, kind, "small", 1))
    monkeypatch.setattr(torch, "compile", lambda model: model)
    figures = training.measure_ways("tiny", 4, "standard", rounds=1)
    assert {name.split(",")[-1].strip() for name in figures} == {
        "fp32 / bf16", "compiled / bf16", "a process for each core / bf16", "of the peak",
    }  # fmt: skip
    assert all(0 < figure["min"] <= figure["median"] for figure in figures.values())


def test_the_yardstick_of_utilisation_counts_what_it_computes(monkeypatch):
    monkeypatch.setattr(measure, "_PRODUCT_SIDES", (64, 96))
    product, flops = matrix_product("bf16")
    result = product()
    assert result.dtype == torch.bfloat16 and flops == 2 * len(result) ** 3


def test_growth_of_the_archive():
    figures = measure_growth((40, 80))
    assert list(figures) == ["40 X-rays", "80 X-rays"]
    assert figures["80 X-rays"]["MiB over the first"] == pytest.approx(1, abs=0.1)
    # Of so few X-rays the time is mostly start-up's noise: that it is measured is all a test can say.
    assert figures["40 X-rays"]["X-rays/s over the first"] == 1 and "X-rays/s over the first" in figures["80 X-rays"]


@pytest.mark.slow
def test_an_archive_over_the_network_alone(tiny_start, monkeypatch, tmp_path):
    monkeypatch.setenv("CLIP_KOA_CACHE", str(tmp_path / "compiled"))
    save_model_folder(tmp_path / "model", tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    monkeypatch.setattr(clip_koa, "RELEASED_MODEL", tmp_path / "model")
    monkeypatch.setattr(growth, "_IN_FP32", 32)
    figures = growth.measure_archive((48, 64))
    expected = ["fp32, auto, 32 X-rays", "fp32, as_is, 32 X-rays"]
    if find_spec("nncf") and find_spec("openvino"):
        expected += ["int8, auto, 48 X-rays", "int8, auto, 64 X-rays", "int8, as_is, 48 X-rays"]
    assert list(figures) == expected and all(figure["MiB"] > 100 for figure in figures.values())
