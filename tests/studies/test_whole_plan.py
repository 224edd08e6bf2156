"""The whole plan: each stage leaves what it has, and a start of another size is the same model."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from clip_koa.evaluation.loading import load_checkpoint
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from studies import resized_start
from studies.whole_plan import SEEDS, run_until


@pytest.fixture(scope="module")
def checkpoint(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


def test_at_its_own_size_a_start_is_the_same_model(checkpoint):
    source, processor = load_checkpoint(str(checkpoint))
    size = source.config.vision_config.image_size
    model, own = resized_start.resize_checkpoint(str(checkpoint), size)
    assert all(value.equal(source.state_dict()[name]) for name, value in model.state_dict().items())
    pixel_values = torch.randn(2, 3, size, size)
    assert model(pixel_values).logits.equal(source(pixel_values).logits)
    assert own.to_dict() == processor.to_dict()


def test_a_larger_start_loads_learns_and_grades(checkpoint, tmp_path, capsys):
    source, _ = load_checkpoint(str(checkpoint))
    vision, start = source.config.vision_config, tmp_path / "start"
    size = 3 * vision.image_size // 2 // vision.patch_size * vision.patch_size
    given = ["--model", str(checkpoint), "--output", str(start)]
    assert resized_start.main([*given, "--image_size", str(size)]) == 0
    model, _ = load_checkpoint(str(start))
    assert model.config.vision_config.image_size == size and model.config.calibration is None
    table, old = (m.vision_model.embeddings.position_embedding.weight for m in (model, source))
    assert len(table) == 1 + (size // vision.patch_size) ** 2 and table[0].equal(old[0])
    loss = model.train()(torch.randn(2, 3, size, size), labels=torch.tensor([0, 4])).loss
    loss.backward()
    assert model.vision_model.embeddings.position_embedding.weight.grad.abs().sum() > 0
    assert model.eval().grade(draw_knee(3, "L", 1, 200)).grade in range(5)
    assert resized_start.main([*given, "--image_size", str(size + 1)]) == 2
    assert "give a multiple" in capsys.readouterr().err


def test_commands_end_by_the_deadline_and_say_how(tmp_path, capsys):
    commands = {
        "well": ["-c", "print('said')"],
        "ill": ["-c", "raise SystemExit(3)"],
        "long": ["-c", "import time; time.sleep(600)"],
        "never": ["-c", "print('not begun')"],
    }
    started = time.monotonic()
    assert run_until(commands, started + 3, 1, tmp_path) == {"well"}
    assert time.monotonic() - started < 30
    assert (tmp_path / "well.log").read_text() == "said\n" and not (tmp_path / "never.log").exists()
    printed = capsys.readouterr().out
    assert f"ill ended with status 3: {tmp_path}/ill.log" in printed and "cut off by the time: long, never" in printed


@pytest.mark.slow
def test_the_rehearsal_leaves_all_that_is_small_and_goes_on(tmp_path):
    output = tmp_path / "plan"
    command = [sys.executable, "-m", "studies.whole_plan", "--output", str(output), "--rehearsal", "--minutes", "20"]
    root = Path(__file__).parents[2]
    printed = subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout
    assert "ended with status" not in printed and "cut off" not in printed
    assert len(list((output / "members").glob("tiny_fold*.parquet"))) == 5
    for name in (
        "members.md", "teacher.parquet", "calibration.json", "evaluation/metrics.json", "claim/ablation.md",
        "claim/ablation_epochs.md", *(f"student_seed{seed}.jsonl" for seed in SEEDS),
    ):  # fmt: skip
        assert (output / name).stat().st_size, name
    model, _ = load_checkpoint(str(output / "model"))
    assert model.config.vision_config.image_size == 144 and model.config.calibration
    made = {path: path.stat().st_mtime_ns for path in output.rglob("*") if path.suffix in (".parquet", ".safetensors")}
    subprocess.run(command, cwd=root, check=True, capture_output=True)
    assert {path: path.stat().st_mtime_ns for path in made if path.name != "teacher.parquet"} == {
        path: written for path, written in made.items() if path.name != "teacher.parquet"
    }
