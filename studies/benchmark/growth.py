"""`clip-koa grade` as the archive grows: each figure from a process of its own."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm.auto import tqdm

from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.starting_points import load_starting_point
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS

_DRAWN = 100  # X-rays, which are then linked again and again
_START = 16  # X-rays: what a process takes to start is measured with a batch of them


def measure_growth(counts: tuple[int, ...]) -> dict[str, dict]:
    """X-rays per second and peak memory of `clip-koa grade` for archives of each size, with a tiny model.

    The model is tiny so that what grows with the archive is not hidden behind it. Start-up is taken off.

    Returns:
        For each size `X-rays/s over the first` and `MiB over the first`, ratios to the smallest archive's.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = load_starting_point("tiny", PROMPT_SETS["standard"], [])
        save_model_folder(folder / "model", start.model, start.image_processor, start.tokenizer)
        archives = {count: link_xrays(folder / str(count), count) for count in (_START, *counts)}
        _predict(folder, archives[_START])  # which compiles the model, once
        starting, _ = _predict(folder, archives[_START])
        rates, memory = [], []
        for count in tqdm(counts, desc="growth", unit="archive"):
            seconds, peak = _predict(folder, archives[count])
            rates.append((count - _START) / (seconds - starting))
            memory.append(peak)
    return {
        f"{count} X-rays": {"X-rays/s over the first": rate / rates[0], "MiB over the first": peak / memory[0]}
        for count, rate, peak in zip(counts, rates, memory, strict=True)
    }


def link_xrays(folder: Path, count: int) -> Path:
    """A folder of that many X-rays, links to a few drawn ones."""
    drawn = folder.parent / "drawn"
    if not drawn.exists():
        drawn.mkdir()
        for number in range(_DRAWN):
            draw_knee(number % 5, "LR"[number % 2], number).convert("L").save(drawn / f"{number}.png")
    folder.mkdir()
    for number, source in zip(range(count), itertools.cycle(sorted(drawn.iterdir())), strict=False):
        (folder / f"{number:07d}.png").symlink_to(source)
    return folder


def _predict(folder: Path, archive: Path) -> tuple[float, int]:
    """Seconds that a run takes, and MiB at its peak."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, "-m", "clip_koa", "grade", "--model", folder / "model", "--output", output, archive]
        started = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return time.perf_counter() - started, usage.ru_maxrss // 1024
