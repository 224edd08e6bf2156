"""One writer: the second is told who writes, and a writer that dies keeps nobody out."""

import fcntl
import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time

import pytest
from conftest import ROOT

from clip_koa.files import WriteError
from clip_koa.locks import InUseError, WriterLock

HOLD = """
import os, sys, time
from clip_koa.locks import WriterLock
WriterLock(sys.argv[1], inside=sys.argv[2] == "inside").acquire()
if not os.fork():
    print(os.getppid(), flush=True)
time.sleep(60)
"""


@pytest.fixture(params=[False, True], ids=["beside", "inside"])
def inside(request):
    return request.param


def test_the_second_writer_is_told_who_writes(tmp_path, inside):
    target = tmp_path / "new" / "table.csv"
    with WriterLock(target, inside) as first:
        begun = json.loads(first.file.read_text())["since"]
        with pytest.raises(InUseError) as refused:
            WriterLock(target, inside).acquire()
        assert WriterLock(target, inside).is_held() is True
    expected = f"{target} is being written by process {os.getpid()} on {socket.gethostname()} since {begun}:"
    assert str(refused.value).startswith(expected) and "\n" not in str(refused.value)
    assert WriterLock(target, inside).is_held() is False
    assert list(tmp_path.iterdir()) == []  # neither the lock's file nor the folder that was made for it
    with WriterLock(target, inside):
        (target.parent / "written").touch()
    assert (target.parent / "written").exists()


def test_one_folder_has_one_lock_by_whatever_name(tmp_path, monkeypatch):
    (tmp_path / "there").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "there")
    monkeypatch.chdir(tmp_path / "there")
    for one, other in (("a.csv", tmp_path / "link" / "a.csv"), (".", tmp_path / "there")):
        with WriterLock(one), pytest.raises(InUseError):
            WriterLock(other).acquire()
    with WriterLock(".", inside=True), pytest.raises(InUseError):
        WriterLock(tmp_path / "link", inside=True).acquire()


def test_a_killed_writer_keeps_nobody_out_though_its_child_lives(tmp_path, inside):
    target = tmp_path / "table.csv"
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(target), "inside" if inside else "beside"],
        cwd=ROOT, stdout=subprocess.PIPE, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert int(process.stdout.readline()) == process.pid
        with pytest.raises(InUseError, match=re.escape(f"process {process.pid} on {socket.gethostname()}")):
            WriterLock(target, inside).acquire()
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        WriterLock(target, inside).acquire().release()
    finally:
        os.killpg(process.pid, signal.SIGKILL)


def test_a_folder_where_nothing_can_be_made():
    with pytest.raises(WriteError, match=r"^/proc/table.csv could not be written: No such file or directory\.$"):
        WriterLock("/proc/table.csv").acquire()


def test_who_asks_keeps_no_writer_out(tmp_path):
    lock = WriterLock(tmp_path / "table.csv")
    descriptor = os.open(lock.file, os.O_RDONLY | os.O_CREAT)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    threading.Timer(0.07, os.close, [descriptor]).start()
    lock.acquire().release()


def test_never_two_at_once(tmp_path):
    """Threads that take and release the lock as fast as they can: the lock's file comes and goes meanwhile."""
    writing, taken, until = [], [0, 0, 0, 0], time.monotonic() + 0.5
    together = []

    def write(number):
        while time.monotonic() < until:
            try:
                with WriterLock(tmp_path / "table.csv"):
                    writing.append(number)
                    together.append(len(writing))
                    writing.remove(number)
                    taken[number] += 1
            except InUseError:
                continue

    threads = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(together) == {1} and min(taken) > 0 and list(tmp_path.iterdir()) == []
