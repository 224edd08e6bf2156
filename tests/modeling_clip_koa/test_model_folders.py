"""A model folder that is damaged, foreign or in part missing: one line wherever it is named, and nothing written."""

import json
import os
import shutil

import onnx
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessor, CLIPModel, ViTConfig, ViTForImageClassification

from clip_koa.commands import main
from clip_koa.evaluation.loading import CheckpointError, load_checkpoint
from clip_koa.exporting.export import export
from clip_koa.grading.grader import Grader
from clip_koa.grading.onnx_network import ExportedModel
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CalibrationError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import Typicality, read_calibration, read_typicality, typicality_file

PARTS = {"model.safetensors", "config.json", "preprocessor_config.json"}


@pytest.fixture(scope="module")
def whole(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "whole"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


@pytest.fixture
def folder(whole, tmp_path):
    shutil.copytree(whole, tmp_path / "model")
    return tmp_path / "model"


def _write_config(folder, **values):
    config = json.loads((folder / "config.json").read_text())
    for name, value in values.items():
        if isinstance(value, dict) and name.endswith("_config"):
            config[name] |= value
        else:
            config[name] = value
    (folder / "config.json").write_text(json.dumps(config))


def _write_weights(folder, **values):
    weights = load_file(folder / "model.safetensors") | values
    save_file({name: value for name, value in weights.items() if value is not None}, folder / "model.safetensors",
              metadata={"format": "pt"})  # fmt: skip


def truncate(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[: len(weights) // 2])


def empty(folder):
    (folder / "model.safetensors").write_bytes(b"")


def lie_about_the_header(folder):
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes((2**62).to_bytes(8, "little") + weights[8:])


def no_weights(folder):
    (folder / "model.safetensors").unlink()


def foreign_weights(folder):
    save_file({"bert.encoder.weight": torch.zeros(3, 3)}, folder / "model.safetensors", metadata={"format": "pt"})


def one_weight_missing(folder):
    _write_weights(folder, **{"text_projection.weight": None})


def nan_in_a_weight(folder):
    weight = load_file(folder / "model.safetensors")["visual_projection.weight"]
    weight[0, 0] = float("nan")
    _write_weights(folder, **{"visual_projection.weight": weight})


def more_blocks(folder):
    _write_config(folder, vision_config={"num_hidden_layers": 6})


def fewer_blocks(folder):
    _write_config(folder, vision_config={"num_hidden_layers": 3})


def fewer_text_blocks(folder):
    _write_config(folder, text_config={"num_hidden_layers": 1})


def another_hidden_size(folder):
    _write_config(folder, vision_config={"hidden_size": 64})


def words_in_place_of_numbers(folder):
    _write_config(folder, vision_config={"hidden_size": "many"})


def three_labels(folder):
    _write_config(folder, id2label={"0": "a", "1": "b", "2": "c"}, label2id={"a": 0, "b": 1, "c": 2})


def three_labels_and_prompts(folder):
    three_labels(folder)
    _write_config(folder, prompts=[["a"], ["b"], ["c"]])


def prompts_of_numbers(folder):
    _write_config(folder, prompts=5)


def another_model(folder):
    _write_config(folder, model_type="bert")


def damaged_config(folder):
    (folder / "config.json").write_text('{"model_type": "cl')


def config_of_a_list(folder):
    (folder / "config.json").write_text("[1, 2]")


def no_config(folder):
    (folder / "config.json").unlink()


def empty_folder(folder):
    for path in folder.iterdir():
        path.unlink()


def no_folder(folder):
    shutil.rmtree(folder)


def a_file(folder):
    shutil.rmtree(folder)
    folder.write_bytes(b"weights")


def a_vit(folder):
    sizes = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1}
    ViTForImageClassification(ViTConfig(**sizes, image_size=96, num_labels=5)).save_pretrained(folder)


def no_image_processor(folder):
    (folder / "preprocessor_config.json").unlink()


def damaged_image_processor(folder):
    (folder / "preprocessor_config.json").write_text("{")


# What is wrong of the model itself, at whatever door it is named.
MODEL_FAULTS = [
    truncate, empty, lie_about_the_header, no_weights, foreign_weights, one_weight_missing, nan_in_a_weight,
    more_blocks, fewer_blocks, fewer_text_blocks, another_hidden_size, words_in_place_of_numbers, three_labels,
    three_labels_and_prompts, prompts_of_numbers, another_model, damaged_config, config_of_a_list, no_config,
    empty_folder, no_folder, a_file, a_vit, no_image_processor, damaged_image_processor,
]  # fmt: skip


def plain_clip(folder):
    """Weights that training may start from, and that grade nothing."""
    stock = CLIPModel.from_pretrained(folder)
    for name in ("prompts", "prompt_shape", "tokenized_prompts", "auto_map", "id2label", "label2id"):
        delattr(stock.config, name)
    stock.save_pretrained(folder)


def saved_by_stock(folder):
    """A CLIP-KOA configuration over weights that lost the heads."""
    CLIPModel.from_pretrained(folder).save_pretrained(folder)


def images_of_another_size(folder):
    CLIPImageProcessor(size={"shortest_edge": 64}, crop_size={"height": 64, "width": 64}).save_pretrained(folder)


GRADING_FAULTS = [plain_clip, saved_by_stock, images_of_another_size]


def no_tokenizer(folder):
    for path in folder.iterdir():
        if path.name.startswith(("tokenizer", "vocab", "merges", "special_tokens")):
            path.unlink()


def damaged_tokenizer(folder):
    (folder / "tokenizer.json").write_text("{}")


SAVING_FAULTS = [no_tokenizer, damaged_tokenizer]


def _one_line(message: str, folder) -> str:
    assert "\n" not in message.strip() and len(message) < 600, message
    assert str(folder) in message and "Traceback" not in message
    return message


@pytest.mark.parametrize("damage", MODEL_FAULTS + GRADING_FAULTS, ids=lambda damage: damage.__name__)
def test_it_is_refused_in_one_line(folder, damage):
    damage(folder)
    with pytest.raises(CheckpointError) as refused:
        load_checkpoint(str(folder))
    _one_line(str(refused.value), folder)
    with pytest.raises(CheckpointError):
        Grader(str(folder))


@pytest.mark.parametrize("damage", [truncate, foreign_weights, more_blocks, fewer_blocks, another_hidden_size],
                         ids=lambda damage: damage.__name__)  # fmt: skip
def test_the_class_takes_no_tower_that_was_not_found(folder, damage):
    damage(folder)
    with pytest.raises(Exception, match=r"what its config\.json describes|metadata|header"):
        CLIPKOAForImageClassification.from_pretrained(folder)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Two people in each split."""
    folder = tmp_path_factory.mktemp("corpus")
    for number in range(8):
        place = folder / ("train", "val")[number // 4] / str(number % 4)
        place.mkdir(parents=True)
        draw_knee(number % 4, "LR"[number % 2], number, 96).save(
            place / f"{9000000 + number // 2}{'LR'[number % 2]}.png"
        )
    return folder


def _command(name, folder, corpus, output) -> list:
    """A command that loads a model folder."""
    model, data = ("--model", folder), ("--data_dir", corpus)
    return [name, *{
        "grade": (*model, "--output", f"{output}.csv", corpus),
        "page": model,
        "export-onnx": (folder, output),
        "export-openvino": (folder, output, *data),
        "publish": (folder, "a/b", "--dry_run", "--output", output),
        "evaluate": (*model, *data, "--output", output),
        "calibrate": (*model, *data, "--output", output),
        "average": (folder, folder, "--output", output),
        "train": (
            "--model.start", folder, "--data.corpus", corpus, "--run.output_dir", output,
            "--optimisation.batch_size", 2,
        ),
    }[name]]  # fmt: skip


DOORS = ["grade", "page", "export-onnx", "export-openvino", "publish", "evaluate", "calibrate", "average", "train"]


def _refusal(name, folder, corpus, output, capsys) -> str:
    """What a command says of a model folder, in this process."""
    assert main(_command(name, folder, corpus, output)) == 2
    *_, told = capsys.readouterr().err.strip().splitlines()
    assert told.startswith(f"clip-koa {name}: ")
    return told.removeprefix(f"clip-koa {name}: ")


# A fault of each kind: what is no model folder, another model's, damaged weights, weights that do not fit.
KINDS = [a_file, empty_folder, no_config, a_vit, plain_clip, no_weights, truncate, fewer_blocks, another_hidden_size]


@pytest.mark.parametrize("door", DOORS)
def test_every_door_refuses(whole, corpus, tmp_path, capsys, door):
    for damage in KINDS:
        if damage is plain_clip and door == "train":  # which it may start from
            continue
        folder = tmp_path / damage.__name__
        shutil.copytree(whole, folder)
        damage(folder)
        _one_line(_refusal(door, folder, corpus, tmp_path / "output", capsys), folder)
        assert not (tmp_path / "output.csv").exists() and not list((tmp_path / "output").rglob("*.safetensors"))


@pytest.mark.parametrize("damage", SAVING_FAULTS, ids=lambda damage: damage.__name__)
@pytest.mark.parametrize("door", ["publish", "calibrate", "average", "train"])
def test_doors_that_save_ask_for_the_tokenizer(folder, corpus, tmp_path, capsys, door, damage):
    damage(folder)
    message = _refusal(door, folder, corpus, tmp_path / "output", capsys)
    assert "token" in _one_line(message, folder)
    assert not list((tmp_path / "output").rglob("*.safetensors"))


@pytest.mark.parametrize("door", ["grade", "evaluate", "train"])
def test_a_whole_process_ends_in_one_line(folder, corpus, tmp_path, run_python, door):
    truncate(folder)
    command = ("-m", "clip_koa", *_command(door, folder, corpus, tmp_path / "output"))
    result = run_python(*command, expect=2, TRANSFORMERS_VERBOSITY="warning")
    assert "Traceback" not in result.stderr
    assert result.stderr.strip().splitlines()[-1].startswith(f"clip-koa {door}: ")
    assert "its weights are damaged" in result.stderr.strip().splitlines()[-1]


# What calibrate leaves beside the weights.


@pytest.mark.parametrize(
    "content",
    [
        b'{"thresholds": {"0.90": NaN}}',
        b'{"thresholds": {"0.80": NaN, "0.90": 0.5}}',
        b'{"thresholds": {"0.90": -1}}',
        b'{"thresholds": {"0.90": Infinity}}',
        b'{"thresholds": {"0.90": null}}',
        b'{"thresholds": {"0.90": "high"}}',
        b'{"thresholds": ["0.90"]}',
        b'{"thresholds": 3}',
        b'{"least_probabilities": 3}',
        b'{"least_probabilities": {"0.90": 0.5}}',
        b'{"least_probabilities": {"0.90": [0.5, 0.5]}}',
        b'{"least_probabilities": {"0.90": [0.5, 0.5, 0.5, NaN, 0.5]}}',
        b'{"least_probabilities": {"0.90": [0.5, 0.5, 0.5, null, 0.5]}}',
        b'{"least_probabilities": {"0.90": [0.5, 0.5, 0.5, -1, 0.5]}}',
        b"[]",
        b"{",
        b"",
        b"\xff\xfe\x00",
    ],
)
def test_damaged_calibrations(folder, content):
    (folder / "calibration.json").write_bytes(content)
    with pytest.raises(
        CalibrationError, match=r"calibration\.json is damaged .*: run clip-koa calibrate anew"
    ) as refused:
        Grader(str(folder))
    _one_line(str(refused.value), folder)


def _typicality(width=128, block=1, **changes):
    tensors = {"mean": torch.zeros(width), "precision": torch.eye(width), "distances": torch.arange(9.0)}
    return typicality_file(Typicality(block, **{**tensors, **changes}))


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"12345678", "SafetensorError"),
        (b"", "SafetensorError"),
        (lambda: _typicality()[:-40], "SafetensorError"),
        (lambda: _typicality(width=64), "block 1 of width 64 is not in this model"),
        (lambda: _typicality(block=4), "block 4"),
        (lambda: _typicality(block=-1), "block -1"),
        (lambda: _typicality(mean=torch.zeros(5)), "do not fit"),
        (lambda: _typicality(distances=torch.zeros(0)), "do not fit"),
        (lambda: _typicality(mean=torch.full((128,), float("nan"))), "no finite numbers"),
        (lambda: _typicality(distances=torch.tensor([2.0, 1.0])), "not sorted"),
    ],
)
def test_damaged_typicality(folder, content, reason):
    (folder / "typicality.safetensors").write_bytes(content() if callable(content) else content)
    with pytest.raises(
        CalibrationError, match=rf"typicality\.safetensors is damaged \(.*{reason}.*run clip-koa calib"
    ) as refused:
        Grader(str(folder))
    _one_line(str(refused.value), folder)


def test_what_is_whole_is_taken(folder):
    (folder / "calibration.json").write_text('{"thresholds": {"0.90": 1.1}}')
    (folder / "typicality.safetensors").write_bytes(_typicality())
    assert read_calibration(str(folder))["thresholds"] == {"0.90": 1.1} and read_typicality(str(folder)).block == 1
    grade = Grader(str(folder)).model.grade(draw_knee(3, "L", 0, 96))
    assert grade.confidence_set and grade.atypicality is not None


# An exported folder.


def test_damaged_exports(whole, folder, tmp_path):
    pytest.importorskip("onnxruntime")
    export(whole, tmp_path / "exported", int8=False)
    good = (tmp_path / "exported" / "model.onnx").read_bytes()
    graph = onnx.load(tmp_path / "exported" / "model.onnx")
    del graph.graph.output[0]
    graph.graph.output[0].name = next(node.output[0] for node in graph.graph.node if node.op_type == "Conv")

    def refuse(content=good, **config):
        shutil.rmtree(folder)
        shutil.copytree(tmp_path / "exported", folder)
        (folder / "model.onnx").write_bytes(content)
        _write_config(folder, **config)
        with pytest.raises(CheckpointError) as refused:
            ExportedModel(folder)
        return _one_line(str(refused.value), folder)

    for content in (good[: len(good) // 2], b"", os.urandom(200)):
        assert "cannot be loaded" in refuse(content)
    assert "gives no logits" in refuse(graph.SerializeToString())
    assert "bert model" in refuse(model_type="bert")
    assert "pixels" in refuse(vision_config={"image_size": 48})
