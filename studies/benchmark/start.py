"""How long one takes from the start of `clip-koa grade` to the first grade."""

import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import clip_koa


def measure_start(rounds: int) -> dict:
    """Seconds on the clock, and of processor time, of grading one X-ray with the released model in a new process.

    Backends take turns, after a start of each that warms the disk and compiles what is to be compiled.
    """
    backends = ["pytorch", *(["openvino"] if find_spec("openvino") else [])]
    found = {backend: [] for backend in backends}
    with tempfile.TemporaryDirectory() as folder:
        for number in range(rounds + 1):
            for backend in backends:
                times = _grade(backend, Path(folder))
                if number:
                    found[backend].append(times)
    return {backend: _shown(times) for backend, times in found.items()}


def _grade(backend: str, folder: Path) -> tuple[float, float]:
    xray = clip_koa.RELEASED_MODEL.parents[1] / "examples" / "kl0_left.png"  # a drawn one would be refused
    command = [sys.executable, "-m", "clip_koa", "grade", "--backend", backend, str(xray)]
    before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    environment = {**os.environ, "CLIP_KOA_CACHE": str(folder / "compiled")}
    subprocess.run(command, check=True, capture_output=True, cwd=clip_koa.RELEASED_MODEL.parents[1], env=environment)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return time.perf_counter() - started, processor


def _shown(times: list[tuple[float, float]]) -> dict[str, float]:
    clock, processor = zip(*times, strict=True)
    return {
        "seconds": statistics.median(clock), "min": min(clock), "max": max(clock),
        "processor": statistics.median(processor),
    }  # fmt: skip
