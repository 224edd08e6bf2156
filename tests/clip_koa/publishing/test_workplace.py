"""Building a release: one writer, put in its place when it is checked, and nothing left behind however it ends."""

import os
import signal
import subprocess
import sys
import tempfile
import time

import pytest
from conftest import ROOT

from clip_koa.locks import InUseError
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.workplace import Workplace
from dataset_script.exit_status import Stopped, signals_as_exceptions

# Builds in a workplace, waits, and cleans up after itself alone.
BUILD = """
import sys, time
from pathlib import Path
from clip_koa.publishing.workplace import Workplace
from dataset_script.exit_status import Stopped, signals_as_exceptions

try:
    with signals_as_exceptions(), Workplace(Path(sys.argv[1]) if len(sys.argv) > 1 else None) as place:
        place.release.mkdir()
        (place.release / "half").write_text("x")
        print("waiting", flush=True)
        time.sleep(60)
except Stopped as stop:
    sys.exit(128 + stop.args[0])
"""
# Publishes the metric, and waits in place of one of the door's functions.
PUBLISH = """
import sys, time
from clip_koa.commands import main
from clip_koa.publishing import publish

def wait(*_, **__):
    print("waiting", flush=True)
    time.sleep(60)

setattr(publish, sys.argv[1], wait)
sys.exit(main(["publish", *sys.argv[2:]]))
"""
METRIC = [str(ROOT / "metrics/kl_grading"), "anna/kl", "--metric"]


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr(tempfile, "tempdir", None)
    yield folder
    tempfile.tempdir = None


def _start(script, *arguments):
    process = subprocess.Popen(
        [sys.executable, "-c", script, *map(str, arguments)], cwd=ROOT, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    while process.stdout.readline() != "waiting\n":
        assert process.poll() is None, process.stderr.read()
    return process


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("kept", [True, False])
def test_a_signal_leaves_nothing(tmp_path, temporary, number, kept):
    process = _start(BUILD, *([tmp_path / "new" / "release"] if kept else []))
    assert list(tmp_path.rglob("half"))
    process.send_signal(number)
    process.send_signal(number)  # who is impatient gets the same
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + number, told
    assert list(tmp_path.iterdir()) == [temporary] and not list(temporary.iterdir())


def test_the_door_tells_that_it_was_stopped(tmp_path, temporary):
    process = _start(PUBLISH, "check_folder", *METRIC, "--dry_run", "--output", tmp_path / "release")
    process.send_signal(signal.SIGTERM)
    _, told = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert told.splitlines()[-1].startswith("clip-koa publish: stopped by SIGTERM.") and "Traceback" not in told
    assert list(tmp_path.iterdir()) == [temporary] and not list(temporary.iterdir())


def test_a_signal_while_it_uploads_keeps_what_was_checked(tmp_path, temporary):
    process = _start(PUBLISH, "validate_online", *METRIC, "--output", tmp_path / "release")
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=60)
    assert (tmp_path / "release" / "kl_grading.py").is_file()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["release", "temporary"]


@pytest.mark.parametrize("kept", [True, False])
def test_what_a_kill_leaves_is_hidden_and_the_next_run_removes_it(tmp_path, temporary, kept):
    process = _start(BUILD, *([tmp_path / "release"] if kept else []))
    process.kill()
    process.communicate(timeout=60)
    left = [path for folder in (tmp_path, temporary) for path in folder.iterdir() if path != temporary]
    assert left and all(path.name.startswith(".") for path in left)
    with Workplace(tmp_path / "release" if kept else None) as place:
        (place.folder / "release").mkdir()
    assert list(tmp_path.iterdir()) == [temporary] and not list(temporary.iterdir())


def test_the_second_publisher_is_told_who_publishes(tmp_path, temporary, run_python):
    process = _start(BUILD, tmp_path / "release")
    try:
        refused = run_python("push_to_hub.py", *METRIC, "--dry_run", "--output", tmp_path / "release", expect=2)
        assert f"release is being written by process {process.pid} on" in refused.stderr
        assert len(refused.stderr.splitlines()) == 1
        with Workplace(None), Workplace(None):  # without a place of their own, two do not meet
            assert process.poll() is None
    finally:
        process.terminate()
        process.communicate(timeout=60)


def test_what_stands_there_is_not_touched(tmp_path):
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine").write_text("x")
    (tmp_path / "file").write_text("x")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    before = sorted(tmp_path.iterdir())
    for name in ("full", "file", "link"):
        with (
            pytest.raises(ReleaseError, match=f"{name} is (?:not empty|a link): name a new folder"),
            Workplace(tmp_path / name),
        ):
            pass
    assert sorted(tmp_path.iterdir()) == before


def test_an_empty_folder_is_filled_when_the_release_is_whole(tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / ".out.building").symlink_to(ROOT)  # a stranger's link is taken away, and not what it leads to
    with Workplace(tmp_path / "out") as place:
        place.release.mkdir()
        (place.release / "a").write_text("a")
        assert not list((tmp_path / "out").iterdir()) and os.stat(place.folder).st_mode & 0o077 == 0
        with pytest.raises(InUseError), Workplace(tmp_path / "out"):
            pass
        place.keep(place.release)
    assert [path.name for path in tmp_path.iterdir()] == ["out"] and (tmp_path / "out" / "a").read_text() == "a"
    assert (ROOT / "push_to_hub.py").is_file()


def test_signals_are_heard_as_before_afterwards():
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(Stopped) as stopped, signals_as_exceptions():
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(5)
    assert stopped.value.args == (signal.SIGTERM,) and signal.getsignal(signal.SIGTERM) is before
