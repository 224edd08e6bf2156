"""8 bits for OpenVINO: calibrated on the train split, measured on validation, and graded with."""

import json
import shutil

import pytest

pytest.importorskip("nncf", reason="needs the extra openvino")

from clip_koa.commands import main  # noqa: E402
from clip_koa.exporting.openvino_export import spread  # noqa: E402
from clip_koa.grading.grader import Grader  # noqa: E402
from clip_koa.grading.openvino_cache import CACHE_VARIABLE  # noqa: E402
from clip_koa.localisation.fit import new_locator  # noqa: E402
from clip_koa.training.checkpoints import save_model_folder  # noqa: E402
from dataset_script.synthetic import draw_knee  # noqa: E402
from modeling_clip_koa.localisation_clip_koa import locator_file  # noqa: E402

# What stays in fp32.
KEPT = {"patch_embedding", "q_proj", "out_proj", "fc1", "fc2", "visual_projection", "aten::matmul"}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    for split, first in (("train", 0), ("val", 100)):
        for number in range(10):
            place = folder / split / str(number % 5)
            place.mkdir(parents=True, exist_ok=True)
            draw_knee(number % 5, "L", first + number, 64).save(place / f"{9000000 + first + number}L.png")
    return folder


def accuracy_of(checkpoint, corpus) -> float:
    """By the grader, of the corpus' validation split."""
    graded = list(Grader(str(checkpoint)).grade(sorted((corpus / "val").rglob("*.png"))))
    return sum(xray.grade.grade == int(xray.file.split("/")[-2]) for xray in graded) / len(graded)


def test_an_export_in_8_bits_grades_nearly_as_its_checkpoint(tiny_start, corpus, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv(CACHE_VARIABLE, str(tmp_path / "compiled"))
    checkpoint, output = tmp_path / "model", tmp_path / "int8"
    files = {"localisation.safetensors": locator_file(new_locator(tiny_start.model, tiny_start.image_processor))}
    save_model_folder(checkpoint, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer, files)
    command = ["export-openvino", checkpoint, output, "--data_dir", corpus]
    assert main(command) == 0
    printed, about = capsys.readouterr().out, json.loads((output / "openvino.json").read_text())
    from openvino import Core

    core = Core()
    has_bf16 = "BF16" in core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert about["precision"] == "int8" and list(about["validation"]) == ["int8", "int8+bf16"][: 1 + has_bf16]
    for precision, cost in about["validation"].items():
        assert cost["num_xrays"] == 10 and 0 <= cost["same_grades"] <= 1
        assert f"{precision}: {cost['same_grades']:.1%} of 10 get the grade that fp32 gives" in printed
    assert cost["accuracy_fp32"] == accuracy_of(checkpoint, corpus)

    rough, whole = Grader(str(output), backend="auto"), Grader(str(checkpoint))
    assert (rough.backend, rough.precision, rough.model.can_find_knees) == ("openvino", "int8", True)
    pictures = [draw_knee(number, "R", number, 96) for number in range(5)]
    for one, other in zip(rough.model.grade(pictures), whole.model.grade(pictures), strict=True):
        assert one.probabilities != other.probabilities
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.05)
    network = core.read_model(output / "openvino_grading.xml")
    kept = {op.get_friendly_name() for op in network.get_ops() if op.get_type_name() in ("Convolution", "MatMul")} - {
        op.get_friendly_name()
        for op in network.get_ops()
        if any(part.get_node().get_type_name() == "FakeQuantize" for part in op.input_values())
    }
    assert {name.split("/")[0].rsplit(".", 1)[-1] for name in kept} == KEPT
    mixed = Grader(str(output), precision="auto", backend="openvino")
    assert mixed.precision == ("int8+bf16" if has_bf16 else "int8")
    for one, other in zip(mixed.model.grade(pictures), rough.model.grade(pictures), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=0.03)
        assert (one.probabilities != other.probabilities) == has_bf16
    sizes = [(folder / "openvino_grading.bin").stat().st_size for folder in (output,)]
    assert sizes[0] < (checkpoint / "model.safetensors").stat().st_size

    knees = corpus / "val" / "1"
    assert main(["grade", "--model", output, "--precision", "bf16", knees]) == 2
    assert "is an export in int8: leave --precision bf16 out" in capsys.readouterr().err
    assert main(["grade", "--model", output, "--explain", tmp_path / "maps", knees]) == 2
    assert "draws no heat maps" in capsys.readouterr().err
    (output / "openvino.json").write_text("{}")
    assert main(["grade", "--model", output, knees]) == 2
    assert "openvino.json is damaged: run clip-koa export-openvino anew" in capsys.readouterr().err


def test_what_cannot_be_exported(corpus, tmp_path, capsys):
    only_train = tmp_path / "corpus"
    shutil.copytree(corpus / "train", only_train / "train")
    (tmp_path / "model").mkdir()
    assert main(["export-openvino", tmp_path / "model", tmp_path / "int8", "--data_dir", only_train]) == 2
    assert "has no config.json: name a model folder" in capsys.readouterr().err
    for name in ("config.json", "preprocessor_config.json"):
        (tmp_path / "model" / name).write_text("{}")
    assert main(["export-openvino", tmp_path / "model", tmp_path / "int8", "--data_dir", only_train]) == 2
    assert "has no validation split" in capsys.readouterr().err
    assert main(["export-openvino", tmp_path / "model", corpus, "--data_dir", corpus]) == 2
    assert "is there and no export for OpenVINO" in capsys.readouterr().err
    assert not (tmp_path / "int8").exists()


def test_xrays_are_spread_over_a_list():
    assert spread(list("abcdefghij"), 4) == list("adgj")
    assert spread(list("abc"), 9) == list("abc")


def test_it_needs_no_package_of_onnx(run_python):
    without = "import sys; sys.modules.update(dict.fromkeys(('onnx', 'onnxruntime', 'onnxscript')));"
    run_python("-c", f"{without} import clip_koa.exporting.openvino_export")
