"""`clip-koa grade` as the archive grows, and shared out over processes: each figure from processes of their own."""

import itertools
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tqdm.auto import tqdm

from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor, load_starting_point
from clip_koa.training.tokenizer import build_prompt_tokenizer
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS
from studies.benchmark.measure import build_model

_PREDICT = Path(__file__).parents[2] / "predict.py"
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


def measure_sharing(name: str, count: int) -> dict[str, float]:
    """X-rays per second of two processes with half of the cores each, over those of one process with all.

    Args:
        name: of `MODELS`; its weights are random.
        count: X-rays to grade; start-up is taken off.
    """
    cores = len(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = build_prompt_tokenizer(PROMPT_SETS["standard"], 77)
        processor = build_image_processor(224, IMAGENET_MEAN, IMAGENET_STD)
        save_model_folder(folder / "model", build_model(name, "standard"), processor, tokenizer)
        few, many = link_xrays(folder / "few", 2 * _START), link_xrays(folder / "many", count)
        seconds = {}
        for processes in (1, 2):
            environment = [
                {"RANK": rank, "WORLD_SIZE": processes, "OMP_NUM_THREADS": max(1, cores // processes)}
                for rank in range(processes)
            ]
            starting, _ = _predict(folder, few, environment)
            whole, _ = _predict(folder, many, environment)
            seconds[processes] = whole - starting
    return {"two processes over one": seconds[1] / seconds[2]}


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


def _predict(folder: Path, archive: Path, environments: list[dict] | None = None) -> tuple[float, int]:
    """Seconds until the last process has graded its share, and MiB at the peak of the largest."""
    with tempfile.TemporaryDirectory(dir=folder) as output:
        command = [sys.executable, _PREDICT, "--model", folder / "model", "--output", output, archive]
        started = time.perf_counter()
        processes = [
            subprocess.Popen(
                list(map(str, command)),
                env=os.environ | {name: str(value) for name, value in environment.items()},
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
            )
            for environment in environments or [{}]
        ]
        peaks = []
        for process in processes:
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
            if process.returncode:
                raise subprocess.CalledProcessError(process.returncode, process.args)
            peaks.append(usage.ru_maxrss // 1024)
        return time.perf_counter() - started, max(peaks)
