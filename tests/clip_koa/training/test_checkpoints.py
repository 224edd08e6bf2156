"""Checkpoints: whole or not at all, checked before they are used."""

import json
import os
import shutil

import pytest
import torch
from accelerate import Accelerator

from clip_koa.training.checkpoints import (
    SaveError,
    TrainState,
    find_checkpoint,
    find_damage,
    list_checkpoints,
    restore_previous,
    save_checkpoint,
    save_model_folder,
    written_whole,
)
from clip_koa.training.run_config import RunConfigError


@pytest.fixture
def checkpoints(tmp_path):
    """A folder with the checkpoints of steps 3 and 4, of five that were saved."""
    accelerator = Accelerator(cpu=True)
    accelerator.free_memory()
    accelerator.prepare(torch.nn.Linear(3, 2))
    state = TrainState()
    for step in range(5):
        state.step = step
        save_checkpoint(accelerator, tmp_path / "checkpoints", state)
    return tmp_path / "checkpoints"


def test_the_newest_are_kept_and_whole(checkpoints):
    assert [path.name for path in list_checkpoints(checkpoints)] == ["step_000003", "step_000004"]
    assert find_damage(checkpoints / "step_000004") == ""
    assert find_checkpoint("latest", checkpoints).name == "step_000004"
    assert find_checkpoint("step_000003", checkpoints).name == "step_000003"
    assert find_checkpoint(str(checkpoints / "step_000003"), checkpoints).name == "step_000003"
    assert find_checkpoint(os.path.relpath(checkpoints / "step_000003"), checkpoints).name == "step_000003"
    assert find_checkpoint("", checkpoints) is None
    assert [path.name for path in checkpoints.iterdir() if path.name.startswith(".")] == []


@pytest.mark.parametrize("name", ["step_000003", "other", "../elsewhere/step_000003", "."])
def test_only_a_checkpoint_of_the_run_itself_is_gone_on_from(checkpoints, name):
    """Nothing tells whether another folder was trained by this recipe on these X-rays."""
    elsewhere = checkpoints.parent / "elsewhere"
    shutil.copytree(checkpoints, elsewhere)
    shutil.copytree(checkpoints / "step_000003", checkpoints / "other")
    resume = str(elsewhere / name) if name == "step_000003" else name
    with pytest.raises(RunConfigError, match="is no checkpoint of this run: pass latest or a folder under"):
        find_checkpoint(resume, checkpoints)


def _cut(path):
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("damage", [_cut, _flip, lambda path: path.unlink()])
@pytest.mark.parametrize("name", ["model.safetensors", "random_states_0.pkl", "checkpoint.json"])
def test_a_damaged_checkpoint_is_passed_over(checkpoints, damage, name):
    damage(checkpoints / "step_000004" / name)
    said = []
    assert find_checkpoint("latest", checkpoints, said.append).name == "step_000003"
    assert len(said) == 1 and "step_000004" in said[0] and name in said[0]
    with pytest.raises(RunConfigError, match=name):
        find_checkpoint("step_000004", checkpoints)


def test_nothing_half_written_is_picked_up(checkpoints):
    shutil.copytree(checkpoints / "step_000004", checkpoints / ".step_000009.writing")
    assert find_checkpoint("latest", checkpoints).name == "step_000004"


def test_where_all_are_damaged_nothing_is_started(checkpoints):
    for path in list_checkpoints(checkpoints):
        (path / "checkpoint.json").unlink()
    with pytest.raises(RunConfigError, match="All checkpoints"):
        find_checkpoint("latest", checkpoints, lambda line: None)


class FailingAccelerator:
    """Writes half a checkpoint, as on a disk that is full."""

    is_main_process = True

    def wait_for_everyone(self):
        """One process."""

    def save_state(self, folder):
        """Fails in torch's words."""
        from pathlib import Path

        Path(folder).mkdir()
        (Path(folder) / "optimizer.bin").write_bytes(b"half")
        raise RuntimeError("PytorchStreamWriter failed writing file data/7: file write failed\nmore lines")


def test_a_full_disk_leaves_the_checkpoint_before(checkpoints):
    with pytest.raises(SaveError) as caught:
        save_checkpoint(FailingAccelerator(), checkpoints, TrainState(step=9))
    assert "step_000009" in str(caught.value) and "step_000004 is whole" in str(caught.value)
    assert "\n" not in str(caught.value)
    assert sorted(path.name for path in checkpoints.iterdir()) == ["step_000003", "step_000004"]


def test_a_model_folder_that_fails_leaves_the_one_before(tmp_path, make_model, tokenizer):
    from transformers import CLIPImageProcessor

    folder = tmp_path / "best"
    save_model_folder(folder, make_model(), CLIPImageProcessor(), tokenizer)
    before = {path.name: path.read_bytes() for path in folder.iterdir()}

    class Full:
        def save_pretrained(self, folder):
            raise OSError(28, "No space left on device")

    with pytest.raises(SaveError, match="No space left.*still whole"):
        save_model_folder(folder, make_model(seed=1), CLIPImageProcessor(), Full())
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == before
    assert [path.name for path in tmp_path.iterdir()] == ["best"]


def test_a_kill_between_the_two_moves_loses_nothing(tmp_path):
    folder = tmp_path / "best"
    with written_whole(folder) as temporary:
        (temporary / "a").write_text("one")
    folder.rename(tmp_path / ".best.previous")  # where the kill came
    restore_previous(folder)
    assert (folder / "a").read_text() == "one"
    with written_whole(folder) as temporary:
        (temporary / "a").write_text("two")
    assert (folder / "a").read_text() == "two" and [path.name for path in tmp_path.iterdir()] == ["best"]


def test_the_manifest_names_every_file(checkpoints):
    folder = checkpoints / "step_000003"
    assert set(json.loads((folder / "checkpoint.json").read_text())) == {
        path.name for path in folder.iterdir() if path.name != "checkpoint.json"
    }


def test_the_state_of_an_earlier_version_is_read():
    """It also counted the epoch of the best evaluation."""
    state = TrainState()
    state.load_state_dict({**TrainState(epoch=2, step=9, best_value=0.5, best_step=6).state_dict(), "best_epoch": 1})
    assert state.state_dict() == TrainState(epoch=2, step=9, best_value=0.5, best_step=6).state_dict()
