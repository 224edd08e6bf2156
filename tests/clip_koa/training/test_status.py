"""status.json: what a run says of itself, and what is true when its process is gone."""

import json
import os
import signal
import socket
import subprocess
import sys
import time

import pytest
from accelerate import Accelerator
from conftest import ROOT, largest_file

from clip_koa.files import WriteError
from clip_koa.locks import WriterLock
from clip_koa.training import status
from clip_koa.training.recording import Recorder
from clip_koa.training.run_config import RunConfig
from clip_koa.training.status import KILLED, read_status, write_status

# A run that says it is running, and its lock; then it waits to be killed.
RUN = """
import sys, time
from pathlib import Path
from clip_koa.locks import WriterLock
from clip_koa.training.status import write_status
lock = WriterLock(sys.argv[1], inside=True).acquire()
write_status(Path(sys.argv[1]), "running", step=3, total_steps=9)
print("written", flush=True)
time.sleep(60)
"""


@pytest.fixture
def running(tmp_path):
    """A process that runs in `tmp_path`."""
    process = subprocess.Popen([sys.executable, "-c", RUN, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "written\n"
    yield process
    process.kill()
    process.wait()


def _change(folder, **values):
    path = folder / status.FILE
    content = json.loads(path.read_text())
    content["process"] |= values.pop("process", {})
    path.write_text(json.dumps(content | values))


def test_a_run_that_was_killed_is_told_from_one_that_runs(tmp_path, running, capsys):
    found = read_status(tmp_path)
    assert (found.state, found.step, found.total_steps) == ("running", 3, 9)
    assert f"process {running.pid} on {socket.gethostname()}, last written 20" in found.why
    assert status.main([str(tmp_path)]) == 0
    running.send_signal(signal.SIGKILL)
    running.wait()
    assert (tmp_path / ".lock").exists()  # what a kill leaves
    assert read_status(tmp_path).state == KILLED
    assert status.main([str(tmp_path)]) == 1
    printed = capsys.readouterr().out.splitlines()
    assert printed[0].startswith(f"{tmp_path}: running, step 3 of 9: process {running.pid} on")
    assert printed[1].startswith(f"{tmp_path}: stopped (killed), step 3 of 9: process {running.pid} on")


def test_where_there_are_no_locks_the_process_tells_and_another_with_its_id_does_not(tmp_path, running, monkeypatch):
    monkeypatch.setattr(WriterLock, "is_held", lambda lock: None)
    assert read_status(tmp_path).state == "running"
    started = json.loads((tmp_path / status.FILE).read_text())["process"]["started"]
    _change(tmp_path, process={"started": started - 60})  # the id was given to a process that began later
    assert read_status(tmp_path).state == KILLED
    _change(tmp_path, process={"started": started})
    running.kill()
    running.wait()
    assert read_status(tmp_path).state == KILLED


def test_from_another_host(tmp_path, running):
    """The lock tells where it is held; else how long ago the run wrote."""
    _change(tmp_path, process={"host": "elsewhere"})
    assert read_status(tmp_path).state == "running"
    running.kill()
    running.wait()
    fresh = read_status(tmp_path)
    assert fresh.state == "running" and "by its last write alone" in fresh.why
    before = time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(time.time() - status.SILENCE - 60))
    _change(tmp_path, time=before)
    assert read_status(tmp_path).state == KILLED


def test_a_full_disk_is_told_with_the_file_that_could_not_be_written(tmp_path):
    recorder = Recorder(RunConfig().changed({"run.output_dir": str(tmp_path)}), Accelerator(cpu=True))
    with largest_file(100), pytest.raises(WriteError, match=r"metrics\.jsonl could not be written: File too large\.$"):
        recorder.record(kind="train", step=1, text="x" * 200)


def test_what_is_no_status(tmp_path, capsys):
    assert read_status(tmp_path).state == "not begun"
    for content in ("", "{", "[]", "{}", '{"state": "running"}', '{"state": "running", "process": {}, "time": 3}'):
        (tmp_path / status.FILE).write_text(content)
        assert read_status(tmp_path).state == "unknown", content
    write_status(tmp_path, "failed", step=2, total_steps=9, reason="The loss is not finite.")
    assert str(read_status(tmp_path)) == "failed, step 2 of 9: The loss is not finite."
    assert status.main([str(tmp_path)]) == 1
    write_status(tmp_path, "finished")
    assert status.main([str(tmp_path), str(tmp_path / "none")]) == 0
    assert "not begun" in capsys.readouterr().out
    assert json.loads((tmp_path / status.FILE).read_text())["process"]["id"] == os.getpid()
