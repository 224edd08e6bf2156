"""train.py as a user runs it, and what it wrote, loaded in fresh processes."""

import json
import re
import resource
import shutil
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT, VISION_WEIGHTS
from safetensors.torch import load_file

from clip_koa.commands import main
from clip_koa.training.preparation import build_accelerator, load_run_corpus, prepare_run
from clip_koa.training.run_config import parse_run_config
from clip_koa.training.status import KILLED, read_status
from dataset_script.synthetic import draw_knee, write_corpus

SMALL_RUN = (
    "--model.start", "tiny", "--data.corpus", "synthetic:24", "--optimisation.epochs", 2,
    "--optimisation.batch_size", 8, "--optimisation.new_learning_rate", "1e-3", "--compute.mixed_precision", "no",
)  # fmt: skip


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory):
    """One short training run that the tests below look at."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    command = [
        sys.executable,
        "train.py",
        *map(str, SMALL_RUN),
        "--run.output_dir",
        str(folder),
    ]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stderr
    return folder


def _records(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_run_folder(finished_run):
    assert {path.name for path in finished_run.iterdir()} >= {"best", "checkpoints", "metrics.jsonl", "report"}
    best = {path.name for path in (finished_run / "best").iterdir()}
    assert best >= {"model.safetensors", "config.json", "preprocessor_config.json", "tokenizer_config.json"}
    assert {name for name in best if name.endswith(".py")} == {
        path.name for path in (ROOT / "modeling_clip_koa").glob("*_clip_koa.py")
    }
    assert not [name for name in best if name.endswith((".bin", ".pt", ".pkl"))]
    report = finished_run / "report"
    assert {path.suffix for path in report.iterdir()} >= {".html", ".png", ".json", ".jsonl"}
    page = (report / "index.html").read_text()
    assert "Research only" in page and "data:image/png;base64" in page and "http:" not in page and "https:" not in page


def test_metrics_are_those_named(finished_run):
    records = _records(finished_run)
    train = [record for record in records if record["kind"] == "train"]
    assert train and {"loss", "symmetry_loss", "consistency_loss", "classifier_loss", "images_per_second"} <= set(
        train[0]
    )
    evaluations = [record for record in records if record["kind"] == "evaluation"]
    assert [(r["split"], r["checkpoint"]) for r in evaluations] == [
        ("validation", "last"), ("validation", "last"), ("validation", "best"), ("test", "best"),
    ]  # fmt: skip
    by_step = {record["step"]: record for record in evaluations[:2]}
    assert evaluations[2]["text"] == by_step[evaluations[2]["step"]]["text"]  # best/ is the model of its step
    for head in ("text", "text_flip_averaged", "linear"):
        assert {
            "accuracy", "balanced_accuracy", "macro_f1", "quadratic_weighted_kappa", "mae", "recall_per_grade",
            "flip_agreement",
        } <= set(evaluations[0][head])  # fmt: skip
    assert all(record["text_flip_averaged"]["flip_agreement"] == 1.0 for record in evaluations)


def test_the_predictions_give_the_metrics(finished_run):
    """What the report says of best/ follows from the logits written beside it."""
    rows = [json.loads(line) for line in (finished_run / "report/predictions_test.jsonl").read_text().splitlines()]
    best = json.loads((finished_run / "report/metrics.json").read_text())["test"]
    assert best["text"]["num_samples"] == len(rows) == 40

    def grade(values):
        return values.index(max(values))

    accuracy = sum(grade(row["logits"]) == row["label"] for row in rows) / len(rows)
    agreement = sum(grade(row["logits"]) == grade(row["flipped_logits"]) for row in rows) / len(rows)
    assert best["text"]["accuracy"] == pytest.approx(accuracy)
    assert best["text"]["flip_agreement"] == pytest.approx(agreement)


LOADERS = {
    "AutoModel": "AutoModel.from_pretrained(folder, trust_remote_code=True)",
    "AutoModelForImageClassification": (
        "AutoModelForImageClassification.from_pretrained(folder, trust_remote_code=True)"
    ),
}
COMMON = """
import sys, torch
from transformers import (
    AutoConfig, AutoImageProcessor, AutoModel, AutoModelForImageClassification, AutoTokenizer,
    CLIPForImageClassification, CLIPModel, pipeline,
)
folder = sys.argv[1]
processor = AutoImageProcessor.from_pretrained(folder)
from PIL import Image
image = Image.linear_gradient("L").resize((96, 96))
pixel_values = processor(image, return_tensors="pt")["pixel_values"]
"""


@pytest.mark.parametrize("loader", LOADERS)
def test_best_loads_with_trust_remote_code(finished_run, run_python, tmp_path, loader):
    code = (
        COMMON
        + f"""
model = {LOADERS[loader]}.eval()
with torch.no_grad():
    logits, mirrored = model(pixel_values).logits, model(pixel_values.flip(-1)).logits
assert type(model).__name__ == "CLIPKOAForImageClassification" and logits.shape == (1, 5)
assert (logits - mirrored).abs().max() < 1e-5
assert model.config.id2label[4] == "KL4 severe"
print("loaded")
"""
    )
    # In another folder, where the project cannot be imported.
    assert "loaded" in run_python("-c", code, finished_run / "best", cwd=tmp_path).stdout


def test_best_loads_as_stock_clip(finished_run, run_python, tmp_path):
    """Stock CLIPModel with the prompts gives our text head without flip averaging."""
    code = (
        COMMON
        + """
config = AutoConfig.from_pretrained(folder, trust_remote_code=True)
ours = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
stock = CLIPModel.from_pretrained(folder).eval()
assert type(stock) is CLIPModel
tokenizer = AutoTokenizer.from_pretrained(folder)
prompts = [text for texts in config.prompts for text in texts]
with torch.no_grad():
    tokens = tokenizer(prompts, padding=True, return_tensors="pt")
    similarity = stock(pixel_values=pixel_values, **tokens)
    embeds = similarity.text_embeds.view(5, -1, similarity.text_embeds.shape[-1]).mean(1)
    embeds = torch.nn.functional.normalize(embeds, dim=-1)
    logits = stock.logit_scale.exp() * similarity.image_embeds @ embeds.T
    difference = (logits - ours(pixel_values, flip_average=False).logits).abs().max()
assert difference < 1e-4, difference
print("loaded")
"""
    )
    assert "loaded" in run_python("-c", code, finished_run / "best", cwd=tmp_path).stdout


def test_best_grades_in_the_stock_pipeline_without_custom_code(finished_run, run_python, tmp_path):
    code = (
        COMMON
        + """
grader = pipeline("image-classification", model=folder)
assert type(grader.model) is CLIPForImageClassification
scores = {row["label"]: row["score"] for row in grader(image.convert("RGB"), top_k=5)}
ours = AutoModel.from_pretrained(folder, trust_remote_code=True).eval()
with torch.no_grad():
    expected = ours(pixel_values, flip_average=False).classifier_logits.softmax(-1)[0]
for grade, label in ours.config.id2label.items():
    assert abs(scores[label] - expected[grade]) < 1e-5, (label, scores)
print("loaded")
"""
    )
    assert "loaded" in run_python("-c", code, finished_run / "best", cwd=tmp_path).stdout


def test_predict_grades_unseen_xrays_alike_from_both_sides(finished_run, run_python, tmp_path):
    write_corpus(tmp_path / "unseen", people=2, seed=9, image_size=96, overlap=0.15, split="test")
    bad = tmp_path / "unseen" / "test" / "broken.png"
    bad.write_bytes(b"no image")
    result = run_python("predict.py", "--model", finished_run / "best", tmp_path / "unseen", expect=1)
    lines = result.stdout.splitlines()
    assert sum(" mirror " in line for line in lines) == 4
    assert any("broken.png" in line and "not graded" in line for line in lines)
    assert "not for diagnosis" in lines[-1]
    run_python("predict.py", "--model", finished_run / "best", tmp_path / "missing.png", expect=2)


def test_the_readmes_examples_run(run_python, tmp_path):
    grading, loop = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), flags=re.S)
    for folder in ("models", "examples"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    assert "KL4 severe (4,)" in run_python("-c", grading, cwd=tmp_path).stdout
    assert (tmp_path / "why-4-and-not-3.png").is_file()
    for person in range(3):
        for side in "LR":
            grade = (person + "LR".index(side)) % 5
            folder = tmp_path / "corpus" / "validation" / str(grade)
            folder.mkdir(parents=True, exist_ok=True)
            draw_knee(grade, side, person).save(folder / f"{9000001 + person}{side}.png")
    loop = loop.replace('"FOLDER"', repr(str(tmp_path / "corpus")))
    kappa, *interval = run_python("-c", loop).stdout.replace("[", "").replace("]", "").replace(",", "").split()[-3:]
    assert -1 <= float(interval[0]) <= float(kappa) <= float(interval[1]) <= 1


@pytest.mark.slow
def test_resume_gives_the_uninterrupted_run(finished_run, run_python, tmp_path):
    """Stopped in the middle of an epoch and gone on from its checkpoint: the same weights."""
    folder = tmp_path / "run"
    command = (*SMALL_RUN, "--run.output_dir", folder, "--run.checkpoint_steps", 4)
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, command)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "step_000004").exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "checkpoints").is_dir(), "the run wrote no checkpoint"
    assert json.loads((folder / "status.json").read_text())["state"] == "running"  # which nobody could correct
    assert read_status(folder).state == KILLED and f"process {process.pid} on" in read_status(folder).why
    again = run_python("train.py", *command, expect=2)
    assert "--resume latest" in again.stderr and "Traceback" not in again.stderr
    with open(folder / "metrics.jsonl", "a") as file:
        file.write('{"kind": "tra')  # a line that the kill cut short
    resumed = run_python("train.py", *command, "--resume", "latest")
    assert "Going on from" in resumed.stdout
    expected = load_file(finished_run / "best" / "model.safetensors")
    got = load_file(folder / "best" / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)
    steps = [record["step"] for record in _records(folder) if record["kind"] == "train"]
    assert steps == sorted(set(steps))
    run_python("train.py", *command, "--resume", "latest")  # a finished run only evaluates again
    assert [record["split"] for record in _records(folder) if record.get("checkpoint") == "best"] == [
        "validation",
        "test",
    ]


def test_a_gradient_that_is_not_finite_names_the_xrays(run_python, tmp_path):
    """A consistency weight beyond fp32 makes the first gradient infinite."""
    result = run_python(
        "train.py", *SMALL_RUN, "--losses.consistency_weight", "1e39", "--run.output_dir", tmp_path / "run", expect=2
    )
    assert re.search(r"not finite at step 1 \(X-rays train/.*\.png and 4 more", result.stderr)
    assert "checkpoint: none yet" in result.stderr and "Traceback" not in result.stderr
    status = json.loads((tmp_path / "run/status.json").read_text())
    assert status["state"] == "failed" and len(status["files"]) == 8
    assert not (tmp_path / "run/best").exists()


def test_weights_that_are_not_finite_are_never_saved(run_python, tmp_path):
    result = run_python(
        "train.py", *SMALL_RUN, "--optimisation.new_learning_rate", "1e30", "--optimisation.warmup", 0.5,
        "--run.checkpoint_steps", 1, "--run.output_dir", tmp_path / "run", expect=2,
    )  # fmt: skip
    assert "Traceback" not in result.stderr
    message = re.search(r"clip-koa train: (.*)", result.stderr)[1]
    assert "not finite" in message and re.search(r"last good checkpoint: \S+step_00000\d", message)
    assert json.loads((tmp_path / "run/status.json").read_text())["state"] == "failed"
    saved = load_file(sorted((tmp_path / "run/checkpoints").iterdir())[-1] / "model.safetensors")
    assert all(value.isfinite().all() for value in saved.values())


CRAFT = (
    *SMALL_RUN, "--data.class_balance", 0.5, "--model.drop_path", 0.2, "--model.patch_dropout", 0.3,
    "--optimisation.ema_decay", 0.9, "--optimisation.layer_decay", 0.8, "--losses.ordinal_smoothing", 0.5,
    "--losses.consistency", "kl", "--losses.consistency_weight", 4,
)  # fmt: skip
TWO_PROCESSES = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_processes.yaml")


@pytest.mark.slow
def test_process_count_and_accumulation_do_not_change_the_result(run_python, tmp_path):
    """The same global batch on one process, shared by two, or computed in two parts: each step's losses agree."""
    run_python("train.py", *CRAFT, "--run.output_dir", tmp_path / "one")
    run_python(*TWO_PROCESSES, "train.py", *CRAFT, "--run.output_dir", tmp_path / "two", ACCELERATE_USE_CPU="true")
    run_python("train.py", *CRAFT, "--compute.gradient_accumulation_steps", 2, "--run.output_dir", tmp_path / "parts")
    expected = _records(tmp_path / "one")
    assert sum(record["kind"] == "train" for record in expected) == 12
    for name in ("two", "parts"):
        records = _records(tmp_path / name)
        assert [record["kind"] for record in records] == [record["kind"] for record in expected]
        for got, single in zip(records, expected, strict=True):
            for part in ("loss", "symmetry_loss", "consistency_loss", "classifier_loss"):
                assert got[part] == pytest.approx(single[part], abs=1e-5), (name, got["step"], part)
            if got["kind"] == "train":
                assert got["learning_rate"] == pytest.approx(single["learning_rate"], rel=1e-12)
            else:
                assert got["text"]["num_samples"] == 40  # each X-ray once, though two share batches of 8 and 4


def test_sigterm_saves_and_asks_to_be_resumed(finished_run, run_python, tmp_path):
    folder = tmp_path / "run"
    command = (*SMALL_RUN, "--run.output_dir", folder)
    for number in (signal.SIGTERM, signal.SIGUSR1, signal.SIGINT):
        process = subprocess.Popen(
            [sys.executable, "train.py", *map(str, command), "--resume", "latest"],
            cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        begun, deadline = time.time(), time.monotonic() + 300
        status = folder / "status.json"
        while not (status.exists() and status.stat().st_mtime > begun) and time.monotonic() < deadline:
            time.sleep(0.01)
        process.send_signal(number)
        _, stderr = process.communicate(timeout=300)
        assert process.returncode == 75, stderr
        assert "--resume latest" in stderr and number.name in stderr and "Traceback" not in stderr
        assert json.loads(status.read_text())["state"] == "interrupted"
    run_python("train.py", *command, "--resume", "latest")
    expected = load_file(finished_run / "best" / "model.safetensors")
    got = load_file(folder / "best" / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)
    launches = json.loads((folder / "run.json").read_text())["launches"]
    steps = [launch["from_step"] for launch in launches]
    assert len(steps) == 4 and steps[0] == 0 and steps == sorted(set(steps))


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux")
def test_a_full_disk_stops_the_run_and_the_checkpoint_before_goes_on(finished_run, run_python, tmp_path):
    """A limit on the size of files stands in for the full disk: the next checkpoint cannot be written."""
    folder = tmp_path / "run"
    command = (*SMALL_RUN, "--run.checkpoint_steps", 2, "--run.output_dir", folder)
    process = subprocess.Popen(
        [sys.executable, "train.py", *map(str, command)],
        cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + 300
    while not (folder / "checkpoints" / "step_000002").exists() and time.monotonic() < deadline:
        time.sleep(0.005)
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (100_000, 100_000))
    _, stderr = process.communicate(timeout=300)
    assert process.returncode == 2 and "Traceback" not in stderr
    message = re.search(r"clip-koa train: (.*)", stderr)[1]
    assert "could not be written" in message and re.search(r"step_\d+ is whole: --resume latest", message)
    run_python("train.py", *command, "--resume", "latest")
    expected = load_file(finished_run / "best" / "model.safetensors")
    got = load_file(folder / "best" / "model.safetensors")
    assert all(expected[name].equal(got[name]) for name in expected)


def test_a_resume_may_not_change_what_is_learned(finished_run, run_python, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    command = ("train.py", *SMALL_RUN, "--resume", "latest", "--run.output_dir", folder)
    result = run_python(*command, "--optimisation.new_learning_rate", "2e-3", expect=2)
    assert "optimisation.new_learning_rate: 0.001 -> 0.002" in result.stderr and "Traceback" not in result.stderr
    run = json.loads((folder / "run.json").read_text())
    run["data"]["digest"] = "0" * 64
    (folder / "run.json").write_text(json.dumps(run))
    result = run_python(*command, expect=2)
    assert "other X-rays" in result.stderr and "Traceback" not in result.stderr


def test_a_checkpoint_of_another_run_is_refused(finished_run, tmp_path, capsys):
    """Neither its recipe nor its X-rays would be compared with this run's."""
    other = str(finished_run / "checkpoints" / "step_000006")
    command = ["train", *SMALL_RUN, "--run.output_dir", tmp_path / "new", "--resume"]
    assert main([*command, other, "--optimisation.ema_decay", 0.9]) == 2
    assert f"--resume {other} is no checkpoint of this run: pass latest or" in capsys.readouterr().err
    assert not (tmp_path / "new" / "checkpoints").exists()
    # Nor is one taken that was put there by hand, without what tells how it was trained.
    for missing in ("run.json", "config.yaml"):
        folder = tmp_path / missing
        shutil.copytree(finished_run, folder)
        (folder / missing).unlink()
        for resume in (["--resume", "latest"], []) if missing == "config.yaml" else (["--resume", "latest"],):
            assert main(["train", *SMALL_RUN, "--run.output_dir", folder, *resume]) == 2
            assert f"holds checkpoints but no {missing}" in capsys.readouterr().err


def test_going_back_to_an_earlier_checkpoint_drops_the_later_ones(finished_run, tmp_path):
    """They were kept as the newest two, so that what was trained anew was deleted at once."""
    folder = tmp_path / "run"
    shutil.copytree(finished_run, folder)
    earlier, later = sorted((folder / "checkpoints").iterdir())
    step, last = (int(path.name.removeprefix("step_")) for path in (earlier, later))
    command = [*map(str, SMALL_RUN), "--run.output_dir", str(folder), "--resume", earlier.name]
    config = parse_run_config(command)
    accelerator = build_accelerator(config)
    run = prepare_run(config, load_run_corpus(config, accelerator), accelerator)
    assert run.state.step == step < last == run.total_steps
    assert list((folder / "checkpoints").iterdir()) == [earlier]
    assert max(record["step"] for record in _records(folder)) == step


def test_a_run_names_what_repeats_it(finished_run):
    run = json.loads((finished_run / "run.json").read_text())
    assert run["data"]["counts"]["test"] == 40 and re.fullmatch(r"[0-9a-f]{64}", run["data"]["digest"])
    (launch,) = run["launches"]
    assert "--data.corpus" in launch["command"] and {"torch", "transformers"} <= launch["versions"].keys()
    assert launch["machine"]["processes"] == 1
    if (ROOT / ".git").exists():
        assert re.fullmatch(r"[0-9a-f]{40}", launch["git"]["revision"]) and isinstance(launch["git"]["dirty"], bool)
    assert list((finished_run / "tensorboard" / "clip_koa").glob("events.*"))
    assert json.loads((finished_run / "status.json").read_text())["state"] == "finished"


def test_one_view_first_and_evaluation_every_third_epoch(run_python, tmp_path):
    """The mirror image joins in half-way, and what is saved says how the run ends; with a stop in between as well."""
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    command = (
        *SMALL_RUN, "--optimisation.epochs", 4, "--losses.one_view_until", 0.5, "--data.random_flip", 0.5,
        "--run.evaluation_epochs", 3, "--run.best_metric", "last", "--compute.mixed_precision", "bf16",
    )  # fmt: skip
    run_python("train.py", *command, "--run.output_dir", whole)
    records = _records(whole)
    steps = [record for record in records if record["kind"] == "train"]
    one_view = [record["consistency_loss"] == 0 for record in steps]
    assert one_view == [record["step"] <= steps[-1]["step"] / 2 for record in steps]
    assert [r["epoch"] for r in records if r["kind"] == "evaluation" and r["checkpoint"] == "last"] == [3, 4]
    # What ends up in best/ is evaluated once, in fp32.
    _, last, best = [r for r in records if r["kind"] == "evaluation" and r["split"] == "validation"]
    assert {**last, "checkpoint": "best"} == best
    config = json.loads((whole / "best/config.json").read_text())
    assert config["symmetry"] and config["consistency_weight"] == 8.0
    shutil.copytree(whole, stopped)
    shutil.rmtree(stopped / "best")
    for checkpoint in sorted((stopped / "checkpoints").iterdir())[1:]:
        shutil.rmtree(checkpoint)
    run_python("train.py", *command, "--run.output_dir", stopped, "--resume", "latest")
    expected, got = (load_file(folder / "best/model.safetensors") for folder in (whole, stopped))
    assert all(expected[name].equal(got[name]) for name in expected)


def test_lora_and_gradient_checkpointing_leave_a_plain_model(run_python, tmp_path):
    pytest.importorskip("peft")
    folder = tmp_path / "run"
    options = ("--model.lora_rank", 2, "--optimisation.max_steps", 3, "--resume", "latest")
    run_python("train.py", *SMALL_RUN, *options, "--run.output_dir", folder)
    run_python("train.py", *SMALL_RUN, *options, "--run.output_dir", folder)  # goes on from its checkpoint
    assert not [
        name for name in load_file(folder / "best/model.safetensors") if "lora" in name or "base_layer" in name
    ]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (("--data.corpus", "/nowhere"), "no such folder.*10.17632"),
        (("--model.start", "no/such-model"), "model.start='no/such-model'"),
        (("--model.start", "missing.onnx"), "missing.onnx.*make vision-weights"),
        (("--optimisation.batch_size", 4000), "optimisation.batch_size=4000"),
        (("--run.best_metric", "accuracy"), "text.accuracy"),
        (("--model.freeze_layers", 9), "has 4 blocks"),
        (("--resume", "step_000009"), "is no checkpoint"),
        (("--data.corpus", "synthetic:many"), "synthetic:many: name a number of people.*synthetic:40"),
        (("--trackers", "wandb"), "trackers='wandb': it must be tensorboard or trackio"),
    ],
)
def test_errors_are_one_line(run_command, tmp_path, arguments, reason):
    data = () if "--data.corpus" in arguments else ("--data.corpus", "synthetic:24")
    command = ("train", *data, *arguments, "--run.output_dir", tmp_path / "run")
    result = run_command(*command, expect=2, KNEE_XRAY_DIR="")
    assert re.search(reason, result.stderr) and "Traceback" not in result.stderr
    assert not (tmp_path / "run" / "metrics.jsonl").exists()


def test_frozen_blocks_stay_as_they_are(run_python, tmp_path):
    run_python(
        "train.py",
        *SMALL_RUN,
        "--optimisation.max_steps",
        4,
        "--model.freeze_layers",
        2,
        "--run.output_dir",
        tmp_path / "run",
    )
    from transformers import set_seed

    from clip_koa.training.starting_points import load_starting_point
    from modeling_clip_koa import PROMPT_SETS

    set_seed(0)
    before = load_starting_point("tiny", PROMPT_SETS["standard"], []).model.state_dict()
    after = load_file(tmp_path / "run" / "best" / "model.safetensors")
    for name, value in after.items():
        frozen = name.startswith(("vision_model.embeddings", "vision_model.pre_layrnorm")) or re.match(
            r"vision_model\.encoder\.layers\.[01]\.", name
        )
        if frozen:
            assert value.equal(before[name]), name
    assert not after["vision_model.encoder.layers.2.mlp.fc1.weight"].equal(
        before["vision_model.encoder.layers.2.mlp.fc1.weight"]
    )


@pytest.mark.real
def test_a_few_steps_on_real_xrays(knee_xray_dir, run_python, tmp_path):
    """Folder -> training -> checkpoint -> grade, on some real knees at 96 pixels."""
    for split, count in (("train", 20), ("val", 4)):
        for grade in map(str, range(5)):
            (tmp_path / "knees" / split / grade).mkdir(parents=True)
            for xray in sorted((knee_xray_dir / split / grade).iterdir())[:count]:
                shutil.copy(xray, tmp_path / "knees" / split / grade)
    run_python(
        "train.py",
        "--data.corpus",
        tmp_path / "knees",
        "--model.start",
        "tiny",
        "--optimisation.max_steps",
        6,
        "--run.output_dir",
        tmp_path / "run",
    )
    xray = next((knee_xray_dir / "val" / "0").iterdir())
    assert "KL" in run_python("predict.py", "--model", tmp_path / "run" / "best", xray).stdout


@pytest.mark.real
@pytest.mark.weights
@pytest.mark.skipif(not VISION_WEIGHTS.is_file(), reason="run make vision-weights")
def test_small_config_starts_on_real_xrays(knee_xray_dir, tmp_path):
    """configs/small.yaml: the DINOv2 start, its frozen blocks, and losses that fall within a few steps."""
    import torch
    from datasets import DatasetDict

    from clip_koa.training.preparation import build_accelerator, prepare_run
    from clip_koa.training.run_config import parse_run_config
    from dataset_script.knee_xray import load_knee_xray

    corpus = load_knee_xray(knee_xray_dir)
    corpus = DatasetDict(
        {"train": corpus["train"].shuffle(seed=0).select(range(64)), "validation": corpus["validation"]}
    )
    config = parse_run_config(
        ["--config", str(ROOT / "configs/small.yaml"), "--run.output_dir", str(tmp_path),
         "--data.corpus", str(knee_xray_dir), "--model.start", str(VISION_WEIGHTS), "--compute.mixed_precision", "no"]
    )  # fmt: skip
    run = prepare_run(config, corpus, build_accelerator(config))
    assert not any(parameter.requires_grad for parameter in run.model.vision_model.encoder.layers[7].parameters())
    assert all(parameter.requires_grad for parameter in run.model.vision_model.encoder.layers[8].parameters())
    batch = next(iter(run.train_loader))
    optimizer = torch.optim.AdamW([p for p in run.model.parameters() if p.requires_grad], lr=2e-4)
    losses = []
    for _ in range(6):
        loss = run.model(batch["pixel_values"][:8], labels=batch["labels"][:8]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.8 * losses[0]
