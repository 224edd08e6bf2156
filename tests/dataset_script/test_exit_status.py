"""How a command ends: one message, and a status that means the same everywhere."""

import errno
import os
import signal
import subprocess
import sys
import time

import pytest
from conftest import ROOT

from clip_koa.interruption import Interrupted, work_is_kept
from dataset_script.exit_status import Stopped, main_of, run_command
from dataset_script.pixels import CLIPKOAError


def _raise(error):
    def command():
        raise error

    return command


@pytest.mark.parametrize(
    "error, status, message",
    [
        (CLIPKOAError("name another."), 2, "x: name another.\n"),
        (Interrupted("stopped."), 75, "x: stopped.\n"),
        (FileNotFoundError("a.png: there is none."), 2, "x: a.png: there is none.\n"),
        (PermissionError(errno.EACCES, "Permission denied", "a.png"), 2, "x: a.png: Permission denied.\n"),
        (PermissionError(errno.EACCES, "Permission denied", b"a\xff.png"), 2, "x: a\\xff.png: Permission denied.\n"),
        (CLIPKOAError(os.fsdecode(b"a\xff.png")), 2, "x: a\\xff.png\n"),
        (
            ModuleNotFoundError("no", name="gradio.blocks"),
            2,
            "x: it needs gradio.blocks: pip install 'clip-koa[app]'.\n",
        ),
        (KeyboardInterrupt(), 130, "x: stopped by SIGINT.\n"),
        (Stopped(signal.SIGTERM), 143, "x: stopped by SIGTERM.\n"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), 141, ""),
    ],
)
def test_an_error_is_one_message_and_a_status(error, status, message, capfd):
    assert run_command("x", _raise(error)) == status
    assert capfd.readouterr().err == message


@pytest.mark.parametrize(
    "error", [ValueError("secret 1"), ModuleNotFoundError("no secret", name="secret"), KeyError("secret")]
)
def test_a_fault_of_ours_is_told_with_its_place_but_for_what_is_hidden(error, capsys):
    assert run_command("x", _raise(error), hide=lambda text: text.replace("secret", "...")) == 2
    told = capsys.readouterr().err
    assert told.startswith("x: a fault of this program:\nTraceback") and "secret" not in told


def test_what_a_command_returns_is_its_status():
    assert [run_command("x", lambda status=status: status) for status in (None, 0, 1)] == [0, 0, 1]
    assert main_of("name", lambda arguments, name: len(arguments) if name == "name" else 9)(["a"]) == 1


def test_where_work_is_kept_a_stop_tells_how_to_go_on(capsys):
    def command():
        with work_is_kept("Start it again."):
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(10)

    assert run_command("x", command) == 75
    assert capsys.readouterr().err == "x: stopped by SIGTERM. Start it again.\n"
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL


PROGRAM = """
import os, signal, sys, time
from dataset_script.exit_status import run_command
def command():
    if sys.argv[1] == "print":
        for _ in range(100_000):
            print("a line")
    if sys.argv[1] == "fork" and (child := os.fork()) == 0:
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)
    if sys.argv[1] == "fork":
        return 0 if os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGTERM else 1
    print("waiting", flush=True)
    time.sleep(1 if sys.argv[1] == "hup" else 20)
sys.exit(run_command("x", command))
"""


def _start(*arguments, **settings) -> subprocess.Popen:
    return subprocess.Popen(
        [sys.executable, "-c", PROGRAM, *arguments], cwd=ROOT, text=True, stderr=subprocess.PIPE, **settings
    )


def test_who_reads_a_few_lines_gets_no_complaint():
    process = _start("print", stdout=subprocess.PIPE)
    assert process.stdout.readline() == "a line\n"
    process.stdout.close()
    assert (process.wait(60), process.stderr.read()) == (141, "")


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="a device that is full")
def test_a_full_disk_under_what_is_printed_is_one_line():
    with open("/dev/full", "w") as full:
        process = _start("print", stdout=full)
    told = "x: what it prints could not be written: No space left on device.\n"
    assert (process.wait(60), process.stderr.read()) == (2, told)


def test_a_forked_worker_ends_as_without_us():
    process = _start("fork", stdout=subprocess.PIPE)
    assert (process.wait(60), process.stderr.read()) == (0, "")


def test_a_signal_that_is_ignored_stays_so():
    """As under nohup."""
    process = _start("hup", stdout=subprocess.PIPE, preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN))
    assert process.stdout.readline() == "waiting\n"
    process.send_signal(signal.SIGHUP)
    assert (process.wait(60), process.stderr.read()) == (0, "")
