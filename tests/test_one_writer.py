"""Every door that writes a folder: who comes second is told who writes, and what is there stays as it is."""

import os
import runpy
import subprocess
import sys

import pytest
from conftest import ROOT

from clip_koa.locks import WriterLock
from dataset_script.synthetic import write_corpus

# How each door is told its folder, and whether its lock lies in it.
DOORS = {
    "train.py": (["--run.output_dir", "FOLDER", "--resume", "latest"], True),
    "studies.ablation": (["--config", "configs/ablation.yaml", "--output", "FOLDER"], True),
    "calibrate.py": (["--model", "FOLDER"], False),
    "average_weights.py": (["one", "other", "--output", "FOLDER"], False),
    "export_onnx.py": (["runs/none", "FOLDER"], False),
    "evaluate_checkpoint.py": (["--model", "none", "--output", "FOLDER"], True),
}


def _run(door):
    if door.endswith(".py"):
        runpy.run_path(door, run_name="__main__")
    else:
        runpy.run_module(door, run_name="__main__")


@pytest.mark.parametrize("door", DOORS)
def test_the_second_is_told_and_ends_with_2(door, tmp_path, monkeypatch, capsys):
    if door == "export_onnx.py":
        pytest.importorskip("onnxruntime")
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "model.onnx").touch()
    arguments, inside = DOORS[door]
    monkeypatch.setattr(sys, "argv", [door, *(str(folder) if word == "FOLDER" else word for word in arguments)])
    monkeypatch.chdir(ROOT)
    with WriterLock(folder, inside), pytest.raises(SystemExit) as ended:
        _run(door)
    told = capsys.readouterr().err.splitlines()
    assert ended.value.code == 2
    assert len(told) == 1 and told[0].startswith(f"{door}: {folder} is being written by process {os.getpid()} on ")
    assert [path.name for path in folder.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("door", DOORS)
def test_a_folder_that_cannot_be_written_is_told_in_one_line(door, monkeypatch, capsys):
    if door == "export_onnx.py":
        pytest.importorskip("onnxruntime")
    arguments, _ = DOORS[door]
    if door == "calibrate.py":  # which asks for a model folder that is there
        arguments = ["--model", "configs", "--output", "FOLDER"]
    told = f"{door}: /proc/folder could not be written: No such file or directory."
    monkeypatch.setattr(sys, "argv", [door, *("/proc/folder" if word == "FOLDER" else word for word in arguments)])
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as ended:
        _run(door)
    assert (capsys.readouterr().err or f"{ended.value.code}\n").splitlines() == [told]


def test_a_run_keeps_others_from_its_best_model(tmp_path, monkeypatch, capsys):
    """calibrate.py writes there, train.py too."""
    monkeypatch.setattr(sys, "argv", ["train.py", "--run.output_dir", str(tmp_path / "run")])
    with WriterLock(tmp_path / "run" / "best"), pytest.raises(SystemExit) as ended:
        runpy.run_path(str(ROOT / "train.py"), run_name="__main__")
    assert ended.value.code == 2 and f"{tmp_path}/run/best is being written" in capsys.readouterr().err


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
