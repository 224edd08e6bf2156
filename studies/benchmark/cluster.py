"""`clip-koa grade --ray` on this machine, against separate runs with a thread each, and as the archive grows."""

import contextlib
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import psutil

from clip_koa.grading.grade_table import rows_of, table_at
from clip_koa.grading.grader import BATCH_SIZE, GradedXray
from clip_koa.grading.growing_table import GrowingTable
from clip_koa.grading.run import entries_of
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor, load_starting_point
from clip_koa.training.tokenizer import build_prompt_tokenizer
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS, Grade
from studies.benchmark.growth import link_xrays
from studies.benchmark.measure import build_model, ratio

_CORES = 2
# Of the rows: what comes before are processes that start, what comes after those that wait for the last.
_FROM, _TO = 0.25, 0.9


class _Spent(NamedTuple):
    """What an X-ray cost: seconds of the clock, and of processors."""

    seconds: float
    processor: float


def measure_cluster(name: str, count: int, rounds: int) -> dict[str, dict]:
    """X-rays per second of two processes of a cluster on this machine, over two runs of `clip-koa grade` on halves.

    Each has one thread, and start-up is left out. The two ways take turns.

    Args:
        name: of `MODELS`; its weights are random.
        count: X-rays to grade.

    Returns:
        The ratio of X-rays per second, and of X-rays per second of processor time: where others use the machine, the
        first depends on them.
    """
    spent = {True: [], False: []}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tokenizer = build_prompt_tokenizer(PROMPT_SETS["standard"], 77)
        processor = build_image_processor(224, IMAGENET_MEAN, IMAGENET_STD)
        save_model_folder(folder / "model", build_model(name, "standard"), processor, tokenizer)
        whole = link_xrays(folder / "whole", count)
        halves = [link_xrays(folder / str(number), count // _CORES) for number in range(_CORES)]
        for _ in range(rounds):
            for on_cluster in (True, False):
                inputs = [whole] if on_cluster else halves
                spent[on_cluster].append(_spend(folder, inputs, count, on_cluster))
    return {
        f"X-rays/s {of}": ratio(*([each[place] for each in spent[way]] for way in (False, True)))
        for place, of in enumerate(("of the clock", "of processors"))
    }


def measure_driver(counts: tuple[int, ...]) -> dict[str, dict]:
    """Of the process that hands out and writes, MiB at the peak and seconds of a core, with a tiny model."""
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = load_starting_point("tiny", PROMPT_SETS["standard"], [])
        save_model_folder(folder / "model", start.model, start.image_processor, start.tokenizer)
        for count in counts:
            archive = link_xrays(folder / str(count), count)
            driver, _ = _grade(folder, archive, on_cluster=True)
            peak = spent = 0
            while driver.poll() is None:
                with contextlib.suppress(OSError, StopIteration, psutil.Error):
                    lines = Path(f"/proc/{driver.pid}/status").read_text().splitlines()
                    peak = max(peak, int(next(line for line in lines if line.startswith("VmHWM")).split()[1]))
                    times = psutil.Process(driver.pid).cpu_times()
                    spent = max(spent, times.user + times.system)
                time.sleep(0.5)
            if driver.returncode:
                raise subprocess.CalledProcessError(driver.returncode, driver.args)
            figures[f"{count} X-rays"] = {"MiB of the driver": peak // 1024, "seconds of a core": spent}
    return figures


def _grade(folder: Path, archive: Path, on_cluster: bool) -> tuple[subprocess.Popen, Path]:
    """A run that was started, and where its rows come."""
    output = Path(tempfile.mkdtemp(dir=folder))
    command = ["-m", "clip_koa", "grade", "--model", folder / "model", "--framing", "as_is", "--output", output]
    command += ["--ray", "local", "--cores", _CORES] if on_cluster else []
    run = subprocess.Popen(
        [sys.executable, *map(str, command), str(archive)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    return run, rows_of(table_at(output))


def _spend(folder: Path, inputs: list[Path], count: int, on_cluster: bool) -> _Spent:
    runs = [_grade(folder, archive, on_cluster) for archive in inputs]
    marks, families = [], {run.pid: psutil.Process(run.pid) for run, _ in runs}
    times: dict[int, float] = {}
    while any(run.poll() is None for run, _ in runs):
        done = sum(rows.read_bytes().count(b"\n") for _, rows in runs if rows.exists())
        for process in families.values():
            with contextlib.suppress(psutil.Error):
                for one in (process, *process.children(recursive=True)):
                    with contextlib.suppress(psutil.Error):
                        spent = one.cpu_times()
                        times[one.pid] = spent.user + spent.system
        if _FROM * count <= done <= _TO * count and (not marks or done > marks[-1][0]):  # when a batch came
            marks.append((done, time.perf_counter(), sum(times.values())))
        time.sleep(0.2)
    for run, _ in runs:
        if run.returncode:
            raise subprocess.CalledProcessError(run.returncode, run.args)
    (first, *begin), (last, *end) = marks[0], marks[-1]
    return _Spent(*((after - before) / (last - first) for before, after in zip(begin, end, strict=True)))


def measure_ceilings(count: int = 2000) -> dict[str, dict]:
    """Processor time of what a model on many machines may come to wait for.

    Returns:
        Milliseconds to read a film of 3000x2400 pixels (PNG), and for the one writer to keep the row of an X-ray and
        to put the whole table in its place.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        file = folder / "film.png"
        draw_knee(2, "L", 1, 2400).resize((3000, 2400)).save(file)
        reading = _processor_time(lambda: read_radiograph(file), 5)
        views = (0.05, 0.2, 0.5, 0.2, 0.05)
        named = [str(folder / f"{number:07d}.png") for number in range(count)]
        for name in named:
            os.link(file, name)
        with GrowingTable(folder / "grades.parquet") as table:
            table.begin(named, "model=0123456789abcdef code=0123456789abcdef level=0.9")

            def keep():
                for waiting in table.batches(BATCH_SIZE):
                    grade = Grade(2, "KL2 mild", "definite", views, views, views, confidence_set=(1, 2))
                    table.add(waiting, entries_of([GradedXray(xray.file, grade, "L")] for xray in waiting))
                table.finish()

            writing = _processor_time(keep, 1) / count
    return {"milliseconds of a core": {"a film read": 1000 * reading, "a row kept and written": 1000 * writing}}


def _processor_time(action: Callable, rounds: int) -> float:
    times = []
    for _ in range(rounds):
        started = time.process_time()
        action()
        times.append(time.process_time() - started)
    return statistics.median(times)
