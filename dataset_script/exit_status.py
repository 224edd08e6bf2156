"""How a command ends: what went wrong as one message, and an exit status that means the same in every command.

All commands of the project go through `run_command`. It lies in this folder, which needs no other, so that whoever has
only the folder has it too.
"""

import io
import os
import signal
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

DONE, INCOMPLETE, NOTHING, STOPPED = 0, 1, 2, 75  # the last is EX_TEMPFAIL of sysexits.h
MEANINGS = {
    DONE: "done",
    INCOMPLETE: "done, but something could not be graded, or did not pass a check",
    NOTHING: "nothing could be done; the message says why",
    STOPPED: "stopped, and what was done so far is kept: start it again to go on",
}
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name))
# What needs an extra of the package, by the name it is imported under.
_EXTRAS = {
    "efficientnet_lite_pytorch": "studies",
    "fpdf": "app",
    "dicomweb_client": "pacs",
    "gradio": "app",
    "highdicom": "pacs",
    "mcp": "mcp",
    "nbclient": "notebooks",
    "nbformat": "notebooks",
    "nncf": "openvino",
    "onnx": "onnx",
    "onnxruntime": "onnx",
    "onnxscript": "onnx",
    "openvino": "openvino",
    "peft": "lora",
    "pydicom": "dicom",
    "pynetdicom": "pacs",
    "ray": "ray",
    "skimage": "robustness",
}


class Stopped(KeyboardInterrupt):
    """Ctrl+C, SIGTERM or SIGHUP; `args` holds its number. What cleans up after an error cleans up after it too."""

    def __str__(self) -> str:
        return f"stopped by {signal.Signals(self.args[0]).name}."


def run_command(name: str, command: Callable[[], int | None], hide: Callable[[str], str] = str) -> int:
    """Runs a command; returns its exit status, one of `MEANINGS`, or 128 and the number of the signal that stopped it.

    What went wrong is told in one message on stderr, `{name}: ...`; a fault of ours with its traceback.

    Args:
        command: returns its exit status, or None where all was done.
        hide: takes out of a message what nobody may read.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a name may hold what the terminal's encoding does not
    try:
        with signals_as_exceptions():
            status = command()
            sys.stdout.flush()  # a full disk is told here, not when Python ends
            return status or DONE
    except KeyboardInterrupt as stop:
        stopped = stop if isinstance(stop, Stopped) else Stopped(signal.SIGINT)
        _tell(name, str(stopped))
        return 128 + stopped.args[0]
    except BrokenPipeError:  # who read what is printed has had enough, as head has
        _forget_output()
        return 128 + getattr(signal, "SIGPIPE", 13)
    except Exception as error:
        message, status = _explain(error)
        _tell(name, hide(message))
        if isinstance(error, OSError) and error.filename is None:
            _forget_output()
        return status


def main_of(name: str, run: Callable[[list[str] | None, str], int | None]) -> Callable[..., int]:
    """The `main` of a module that is run as `python -m`: takes the arguments, returns the exit status.

    Args:
        run: takes the arguments and the name that its help shows; raises where something is wrong.
    """

    def main(arguments: list[str] | None = None) -> int:
        return run_command(name, lambda: run(arguments, name))

    return main


def _explain(error: Exception) -> tuple[str, int]:
    """The message of an error and the exit status."""
    from dataset_script.pixels import CLIPKOAError  # here, as it imports NumPy and Pillow

    if isinstance(error, CLIPKOAError):
        return str(error), error.exit_status
    if isinstance(error, OSError):
        if error.errno is None or not error.strerror:
            return str(error), NOTHING
        # The system names each file but the one that lines are printed to.
        file = "what it prints could not be written" if error.filename is None else os.fsdecode(error.filename)
        return f"{file}: {error.strerror}.", NOTHING
    if isinstance(error, ImportError) and (extra := _EXTRAS.get((error.name or "").split(".")[0])):
        return f"it needs {error.name}: pip install 'clip-koa[{extra}]'.", NOTHING
    return f"a fault of this program:\n{''.join(traceback.format_exception(error))}", NOTHING


def _tell(name: str, message: str) -> None:
    # Bytes of a name that are no UTF-8 are shown as \xff and the like.
    text = os.fsencode(f"{name}: {message}".rstrip()).decode("utf-8", "backslashreplace")
    with suppress(OSError):
        print(text, file=sys.stderr)


def _forget_output() -> None:
    """Python would try to write the rest once more when it ends, and complain."""
    with suppress(OSError, ValueError), open(os.devnull, "wb") as nowhere:
        os.dup2(nowhere.fileno(), sys.stdout.fileno())


@contextmanager
def signals_as_exceptions() -> Iterator[None]:
    """Raises `Stopped` in this block when the process is asked to end."""
    owner = os.getpid()

    def stop(number, frame):
        if os.getpid() != owner:  # a forked worker ends as it would without us
            signal.signal(number, signal.SIG_DFL)
            os.kill(os.getpid(), number)
        raise Stopped(number)

    with handling_signals(stop):
        yield


@contextmanager
def handling_signals(handler) -> Iterator[None]:
    """Sets a handler for Ctrl+C, SIGTERM and SIGHUP in this block; one that is ignored, as under nohup, stays so."""
    if threading.current_thread() is not threading.main_thread():  # only that one hears signals
        yield
        return
    heard = [number for number in _SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
    before = {number: signal.signal(number, handler) for number in heard}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
