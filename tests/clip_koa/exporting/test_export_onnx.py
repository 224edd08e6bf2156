"""The exported graph grades as its checkpoint does."""

import csv

import pytest
import torch
from transformers import CLIPImageProcessor

from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import Typicality, mean_patch, typicality_file

pytest.importorskip("onnxruntime", reason="needs the extra onnx")

from clip_koa.calibration.typicality import typicality_block  # noqa: E402
from clip_koa.exporting.export import compare, export  # noqa: E402
from clip_koa.exporting.folders import ExportError  # noqa: E402
from clip_koa.grading.onnx_network import ExportedModel  # noqa: E402


@pytest.fixture(scope="module")
def checkpoint(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    width = tiny_start.model.config.vision_config.hidden_size
    block = typicality_block(tiny_start.model) + 1  # another than today's, as a file of another version may hold
    typicality = Typicality(block, torch.zeros(width), torch.eye(width), torch.arange(1000.0))
    files = {
        "calibration.json": b'{"thresholds": {"0.90": 0.6}}',
        "typicality.safetensors": typicality_file(typicality),
    }
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer, files)
    return folder


@pytest.mark.parametrize("activation", ["gelu", "quick_gelu"])
def test_logits_and_features_are_the_models(make_model, tokenizer, tmp_path, activation):
    model = make_model().eval()
    model.config.vision_config.hidden_act = activation
    image_processor = CLIPImageProcessor(size={"shortest_edge": 32}, crop_size={"height": 32, "width": 32})
    save_model_folder(tmp_path / "model", model, image_processor, tokenizer)
    model = CLIPKOAForImageClassification.from_pretrained(tmp_path / "model").eval()
    export(tmp_path / "model", tmp_path / "exported", int8=False)
    exported = ExportedModel(tmp_path / "exported")
    for count in (1, 7):  # the batch is free
        pixel_values = torch.randn(count, 3, 32, 32, generator=torch.Generator().manual_seed(count))
        with torch.no_grad():
            output = model(pixel_values, flip_average=True, output_hidden_states=True)
        image, mirror = mean_patch(output.hidden_states[typicality_block(model) + 1]).chunk(2)
        features = (image + mirror) / 2
        logits, flipped_logits, found = exported.grade_pixels(pixel_values)
        torch.testing.assert_close(flipped_logits, output.flipped_logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close((logits + flipped_logits) / 2, output.logits, rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-4)
        averaged = exported.session.run(["probabilities"], {"pixel_values": pixel_values.numpy()})[0]
        torch.testing.assert_close(torch.from_numpy(averaged), output.logits.softmax(-1), rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_predict_gives_the_same_table(checkpoint, run_python, tmp_path):
    knees = tmp_path / "knees"
    knees.mkdir()
    for number in range(5):
        draw_knee(number, "L", number, 96).save(knees / f"{number}L.png")
    tables = {}
    for backend, options in (("pytorch", ()), ("onnx", ()), ("int8", ("--int8",))):
        model = checkpoint
        if backend != "pytorch":
            model = tmp_path / backend
            assert (
                "differ by at most" in run_python("-m", "clip_koa", "export-onnx", checkpoint, model, *options).stdout
            )
        flags = () if backend == "pytorch" else ("--backend", "onnx")
        run_python("predict.py", "--model", model, *flags, "--output", tmp_path / f"{backend}.csv", knees)
        tables[backend] = list(csv.DictReader((tmp_path / f"{backend}.csv").open()))
    for ours, exported, rough in zip(*tables.values(), strict=True):
        for column in ("grade", "set_low", "set_high", "warning", "flip_agreement"):
            assert ours[column] == exported[column]
        for column in ("probability_0", "probability_4", "atypicality", "entropy"):
            assert float(ours[column]) == pytest.approx(float(exported[column]), abs=1e-3)
            assert float(ours[column]) == pytest.approx(float(rough[column]), abs=0.2)
    sizes = [(tmp_path / name / "model.onnx").stat().st_size for name in ("onnx", "int8")]
    assert sizes[1] < sizes[0] / 2

    refused = run_python("predict.py", "--model", checkpoint, "--backend", "onnx", knees, expect=2)
    assert "name a folder that clip-koa export-onnx wrote" in refused.stderr
    maps = ("--explain", tmp_path / "maps")
    refused = run_python("predict.py", "--model", tmp_path / "onnx", "--backend", "onnx", *maps, knees, expect=2)
    assert "draws no heat maps" in refused.stderr
    refused = run_python("-m", "clip_koa", "export-onnx", checkpoint, knees, expect=2)
    assert "no export: name another folder" in refused.stderr


def test_a_wrong_graph_is_refused_and_the_earlier_one_stays(checkpoint, tmp_path, monkeypatch):
    export(checkpoint, tmp_path / "exported", int8=False)
    before = (tmp_path / "exported" / "model.onnx").read_bytes()
    monkeypatch.setattr("clip_koa.exporting.export.compare", lambda *arguments: 0.01)
    with pytest.raises(ExportError, match="differ by 0.01"):
        export(checkpoint, tmp_path / "exported", int8=False)
    assert (tmp_path / "exported" / "model.onnx").read_bytes() == before
    with pytest.raises(ExportError, match="has no config.json"):
        export(tmp_path, tmp_path / "other", int8=False)
    assert not (tmp_path / "other").exists()


def test_the_check_sees_a_difference(checkpoint, tmp_path):
    export(checkpoint, tmp_path / "exported", int8=False)
    other = CLIPKOAForImageClassification.from_pretrained(checkpoint).eval()
    assert compare(other, ExportedModel(tmp_path / "exported")) < 1e-4
    with torch.no_grad():
        other.visual_projection.weight[:, 0] += 0.05
    assert compare(other, ExportedModel(tmp_path / "exported")) > 1e-4


def test_an_import_of_the_export_hides_no_module_of_ours(run_python):
    """onnxruntime's quantization puts a folder with a metrics.py of its own on the path."""
    code = """
import sys
places = list(sys.path)
from clip_koa.exporting.export import quantize
try:
    quantize("none.onnx", "none")
except Exception:
    pass
assert sys.path == places, set(sys.path) - set(places)
"""
    run_python("-c", code)
