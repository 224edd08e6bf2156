"""Every command that writes a folder: who comes second is told who writes, and what is there stays as it is."""

import os
import subprocess
import sys

import pytest
from conftest import ROOT

from clip_koa.commands import main
from clip_koa.locks import WriterLock
from dataset_script.synthetic import write_corpus
from studies.ablation import __main__ as ablation

# How each command is told its folder, and whether its lock lies in it.
COMMANDS = {
    "clip-koa train": (["--run.output_dir", "FOLDER", "--resume", "latest"], True),
    "studies.ablation": (["--config", "configs/ablation.yaml", "--output", "FOLDER"], True),
    "clip-koa calibrate": (["--model", "FOLDER"], False),
    "clip-koa average": (["one", "other", "--output", "FOLDER"], False),
    "clip-koa export-onnx": (["runs/none", "FOLDER"], False),
    "clip-koa export-openvino": (["runs/none", "FOLDER"], False),
    "clip-koa evaluate": (["--model", "none", "--output", "FOLDER"], True),
}


def _run(command, arguments, folder) -> int:
    if command == "clip-koa export-onnx":
        pytest.importorskip("onnxruntime")
    arguments = [str(folder) if word == "FOLDER" else word for word in arguments]
    return main([command.split()[1], *arguments]) if " " in command else ablation.main(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_the_second_is_told_and_ends_with_2(command, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.onnx").touch()
    arguments, inside = COMMANDS[command]
    monkeypatch.chdir(ROOT)
    with WriterLock(folder, inside):
        assert _run(command, arguments, folder) == 2
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 1 and told[0].startswith(f"{command}: {folder} is being written by process {os.getpid()} on ")
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_folder_that_cannot_be_written_is_told_in_one_line(command, monkeypatch, capsys):
    arguments, _ = COMMANDS[command]
    if command == "clip-koa calibrate":  # which asks for a model folder that is there
        arguments = ["--model", "configs", "--output", "FOLDER"]
    monkeypatch.chdir(ROOT)
    assert _run(command, arguments, "/proc/folder") == 2
    told = f"{command}: /proc/folder could not be written: No such file or directory."
    assert capsys.readouterr().err.splitlines() == [told]


def test_a_run_keeps_others_from_its_best_model(tmp_path, capsys):
    """calibrate writes there, train too."""
    with WriterLock(tmp_path / "run" / "best"):
        assert main(["train", "--run.output_dir", tmp_path / "run"]) == 2
    assert f"{tmp_path}/run/best is being written" in capsys.readouterr().err


BUILD = """
import sys
from dataset_script.knee_xray import KneeXray
builder = KneeXray("folder", data_dir=sys.argv[1], cache_dir=sys.argv[2])
builder.download_and_prepare()
corpus = builder.as_dataset()
print({name: [row["file"] for row in split] for name, split in corpus.items()})
"""


def test_two_processes_build_one_cache_entry(tmp_path):
    """The library's own lock: both end with the whole corpus."""
    write_corpus(tmp_path / "corpus", people=12, seed=1, image_size=48, overlap=0.15, split="train")
    command = [sys.executable, "-c", BUILD, str(tmp_path / "corpus"), str(tmp_path / "cache")]
    processes = [
        subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    found = [process.communicate(timeout=300) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], found
    assert found[0][0] == found[1][0] and found[0][0].count(".png") == 24
    (entry,) = (tmp_path / "cache").rglob("dataset_info.json")
    assert not [path for path in entry.parent.parent.iterdir() if path.name.endswith("incomplete")]
