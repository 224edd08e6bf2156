"""A machine whose cores others use too: what waiting of threads for each other costs, under each setting."""

import contextlib
import json
import multiprocessing
import os
import subprocess
import sys
import time
from collections.abc import Iterator

from clip_koa.threads import SPINS
from studies.benchmark.measure import ratio

# libgomp, which computes for torch, reads them once, when it is loaded.
SETTINGS = {
    "threads that wait awake": {"OMP_WAIT_POLICY": "", "GOMP_SPINCOUNT": ""},
    "threads that wait asleep": {"OMP_WAIT_POLICY": "passive"},
    "threads that soon sleep": {"GOMP_SPINCOUNT": str(SPINS), "OMP_WAIT_POLICY": ""},
    "one thread": {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": ""},
}

KINDS = ("grading", "training", "training in bf16")


def measure_busy(name: str, batch_size: int, rounds: int, others: int | None = None) -> dict[str, dict]:
    """Seconds, and processor seconds, of a call under each setting, over those with one thread.

    Each setting has a process of its own; they take turns, so that drift of the load hits all alike.

    Args:
        name: of `MODELS`; its weights are random.
        others: processes that only compute, for the figures of a busy machine; default: as many as cores.

    Returns:
        For grading and a training step, alone and beside others: `time` is the ratio of seconds (with two threads on
        an idle machine about .5), `work` that of processor seconds (1 where nobody waits awake).
    """
    cores = len(os.sched_getaffinity(0))
    figures = {}
    for kind in KINDS[:2]:
        with serving(SETTINGS, kind, name, batch_size) as calls:
            for beside in (0, cores if others is None else others):
                with _others(beside):
                    spent = _take_turns(calls, rounds)
                for setting in list(SETTINGS)[:-1]:
                    for figure, place in (("time", 0), ("work", 1)):
                        one, these = ([each[place] for each in spent[key]] for key in ("one thread", setting))
                        figures[f"{kind} beside {beside}, {setting}: {figure}"] = ratio(these, one)
    return figures


@contextlib.contextmanager
def serving(
    settings: dict[str, dict[str, str]], kind: str, name: str, batch_size: int
) -> Iterator[dict[str, subprocess.Popen]]:
    """A process for each setting, changes of its environment, which makes one call each time it is asked to.

    Args:
        kind: of `KINDS`.
        name: of `MODELS`.
    """
    calls = {}
    try:
        for setting, changes in settings.items():
            environment = {
                key: value for key, value in (os.environ | {"OMP_NUM_THREADS": ""} | changes).items() if value
            }
            command = [sys.executable, "-m", "studies.benchmark.busy", kind, name, str(batch_size)]
            calls[setting] = subprocess.Popen(
                command, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
            )
            ask(calls[setting])  # warms up, before the next one starts
            answer(calls[setting])
        yield calls
    finally:
        for process in calls.values():
            process.kill()
            process.wait()


def _take_turns(calls: dict[str, subprocess.Popen], rounds: int) -> dict[str, list[tuple[float, float]]]:
    spent = {setting: [] for setting in calls}
    for _ in range(rounds):
        for setting, process in calls.items():
            ask(process)
            spent[setting].append(answer(process))
    return spent


def ask(process: subprocess.Popen) -> None:
    """Has a process of `serving` make one call."""
    process.stdin.write("\n")
    process.stdin.flush()


def answer(process: subprocess.Popen) -> tuple[float, float]:
    """Waits for the call's end; returns its seconds and processor seconds."""
    return tuple(json.loads(process.stdout.readline()))


@contextlib.contextmanager
def _others(count: int) -> Iterator[None]:
    hogs = [multiprocessing.get_context("spawn").Process(target=_compute, daemon=True) for _ in range(count)]
    try:
        for hog in hogs:
            hog.start()
        time.sleep(count and 1)
        yield
    finally:
        for hog in hogs:
            hog.kill()
            hog.join()


def _compute() -> None:
    while True:
        sum(range(10_000))


def _serve(kind: str, name: str, batch_size: int) -> None:
    """Makes one call for each line, and prints what it took."""
    import torch

    from clip_koa.memory import keep_freed_memory
    from studies.benchmark.measure import build_model
    from studies.benchmark.training import clip_koa_step

    keep_freed_memory()  # as the commands do
    model = build_model(name, "standard")
    if kind != "grading":
        call = clip_koa_step(model.train(), batch_size, "bf16" if kind == "training in bf16" else "fp32")
    else:
        model.eval()
        size = model.config.vision_config.image_size
        pixel_values = torch.randn(batch_size, 3, size, size)

        def call():
            model.grade_pixels(pixel_values)

    for _ in sys.stdin:
        started, before = time.perf_counter(), time.process_time()
        call()
        print(json.dumps([time.perf_counter() - started, time.process_time() - before]), flush=True)


if __name__ == "__main__":
    _serve(sys.argv[1], sys.argv[2], int(sys.argv[3]))
