"""How a run stands, by its status.json; and whether the process that wrote it still lives.

    python -m clip_koa.training.status runs/demo runs/small

prints a line for each run folder. The exit status is 0 where none failed or was killed, else 1.
"""

import argparse
import json
import socket
import sys
import time
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import psutil

from clip_koa.files import write_file
from clip_koa.locks import WriterLock
from dataset_script.exit_status import main_of

FILE = "status.json"
_CLOCK = "%Y-%m-%dT%H:%M:%S%z"
STATES = ("running", "interrupted", "failed", "finished")
KILLED = "stopped (killed)"
NOT_BEGUN = "not begun"
DAMAGED = "unknown"
# Seconds without a write after which a run on a host whose locks are not seen here is taken for dead.
SILENCE = 3600
# A process's start as the system computes it moves with its clock.
_SAME_START = 5.0


@dataclass(frozen=True)
class RunStatus:
    """How a run stands."""

    state: str  # one of `STATES`, `KILLED`, `NOT_BEGUN`, or `DAMAGED`
    why: str = ""  # what tells, in words
    step: int = 0
    total_steps: int = 0

    def __str__(self) -> str:
        steps = f", step {self.step} of {self.total_steps}" if self.total_steps else ""
        return f"{self.state}{steps}" + (f": {self.why}" if self.why else "")


def write_status(folder: Path, state: str, **values) -> None:
    """Writes status.json: one of `STATES`, the time, and the process that writes it."""
    process = psutil.Process()
    content = {
        "state": state,
        "time": time.strftime(_CLOCK),
        "process": {"id": process.pid, "host": socket.gethostname(), "started": process.create_time()},
        **values,
    }
    write_file(folder / FILE, json.dumps(content, indent=1).encode())


def read_status(folder: Path) -> RunStatus:
    """How the run in a folder stands. One that says `running` but was killed is `KILLED`.

    On the host that it runs on, its lock tells, or, where the file system knows no locks, its process's id and start;
    another process with the same id is told by its start. From another host the lock tells where it is held. Where it
    is not, the file system may not share its locks: a run is taken for dead when it has written nothing for `SILENCE`
    seconds.
    """
    try:
        content = json.loads((folder / FILE).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return RunStatus(NOT_BEGUN, f"{folder} holds no {FILE}")
    except (OSError, ValueError) as error:
        return RunStatus(DAMAGED, f"{folder / FILE} cannot be read ({str(error).splitlines()[0]})")
    try:
        state, steps = content["state"], (int(content.get("step", 0)), int(content.get("total_steps", 0)))
        if state != "running":
            return RunStatus(state, str(content.get("reason", "")), *steps)
        process, written = content["process"], datetime.strptime(content["time"], _CLOCK).timestamp()
        where = f"process {process['id']} on {process['host']}"
        is_alive, why = _is_alive(folder, process, written)
    except (KeyError, TypeError, ValueError, AttributeError):
        return RunStatus(DAMAGED, f"{folder / FILE} is not as this version writes it")
    return RunStatus("running" if is_alive else KILLED, f"{where}, last written {content['time']}; {why}", *steps)


def _is_alive(folder: Path, process: dict, written: float) -> tuple[bool, str]:
    held = WriterLock(folder, inside=True).is_held()
    if held:
        return True, "it holds the run's lock"
    if process["host"] == socket.gethostname():
        if held is False:
            return False, "it holds the run's lock no more"
        if _lives(process):
            return True, "the process lives"
        return False, "there is no such process"
    silent = time.time() - written
    return silent < SILENCE, f"seen from {socket.gethostname()} by its last write alone"


def _lives(process: dict) -> bool:
    try:
        return abs(psutil.Process(process["id"]).create_time() - process["started"]) < _SAME_START
    except psutil.Error:
        return False


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints a line for each run folder; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="How training runs stand.")
    parser.add_argument("folders", nargs="+", type=Path, metavar="RUN", help="run folder of clip-koa train")
    found = {folder: read_status(folder) for folder in parser.parse_args(arguments).folders}
    for folder, status in found.items():
        print(f"{folder}: {status}")
    return 1 if any(status.state in ("failed", KILLED, DAMAGED) for status in found.values()) else 0


main = main_of("clip_koa.training.status", run)


if __name__ == "__main__":
    sys.exit(main())
