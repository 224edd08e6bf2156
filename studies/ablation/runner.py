"""Runs the cells of an ablation, each a `train.py` of its own, several at once where there are several devices."""

import os
import queue
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from clip_koa.evaluation.predictions import GradedSplit, read_predictions
from clip_koa.files import write_file
from clip_koa.training.recording import differences_from
from clip_koa.training.run_config import RunConfig, RunConfigError
from clip_koa.training.status import read_status
from modeling_clip_koa import CLIPKOAError
from studies.ablation.kept import ValidationXrays, read_kept_run, write_kept_run

_TRAIN = Path(__file__).resolve().parents[2] / "train.py"


class CellError(CLIPKOAError, RuntimeError):
    """A cell whose training failed; the message names it and its log."""


@dataclass(frozen=True)
class Job:
    """One training of the ablation; `kept` is the file that its predictions are kept in, if they are."""

    title: str
    config: RunConfig
    kept: Path | None = None

    @property
    def folder(self) -> Path:
        return Path(self.config.run.output_dir)

    @property
    def trained(self) -> bool:
        """It was trained to its end here."""
        return read_status(self.folder).state == "finished"

    @property
    def finished(self) -> bool:
        """Its predictions are known: it was trained here, or they were kept."""
        return self.trained or (self.kept is not None and self.kept.is_file())

    def predictions(self, xrays: ValidationXrays | None) -> GradedSplit:
        """Of a finished run; `xrays` are needed where it was kept.

        Raises:
            PredictionsError, KeptRunError: files that cannot be used.
        """
        if self.trained:
            return read_predictions(self.folder / "report" / "predictions_validation.jsonl")
        return read_kept_run(self.kept, self.config, xrays)

    def keep(self, graded: GradedSplit, xrays: ValidationXrays | None) -> None:
        """Keeps its predictions, where they have a place and are not kept yet.

        Raises:
            KeptRunError: those of other X-rays.
        """
        if self.kept and not self.kept.is_file():
            write_kept_run(self.kept, self.config, graded, xrays)


def check_jobs(jobs: list[Job]) -> None:
    """Refuses runs on disk that were trained otherwise than asked now, before anything is trained.

    Raises:
        RunConfigError: the first such run, with what differs.
    """
    for job in jobs:
        if (job.folder / "config.yaml").is_file() and (differences := differences_from(job.folder, job.config)):
            raise RunConfigError(f"{job.folder} holds another run ({'; '.join(differences)}): give another --output.")


def run_jobs(jobs: list[Job], devices: list[str], done: Callable[[Job], None]) -> None:
    """Trains what is not trained yet, going on where a run was cut off.

    SIGTERM and an interrupt are passed on: each run saves a checkpoint and ends.

    Args:
        devices: a run at a time on each: `cpu`, or the number of a GPU.
        done: called after each run.

    Raises:
        CellError: a training that failed; the others that had begun go on to their end.
        KeyboardInterrupt: stopped; start it again to go on.
    """
    free, running, stop, one_at_a_time = queue.SimpleQueue(), set(), threading.Event(), threading.Lock()
    for device in devices:
        free.put(device)

    def train(job: Job) -> None:
        if stop.is_set():
            return
        device = free.get()
        try:
            _train(job, device, running, stop)
        except CellError:
            stop.set()
            raise
        finally:
            free.put(device)
        if job.finished:
            shutil.rmtree(job.folder / "checkpoints", ignore_errors=True)  # three times the model that stays in best/
            with one_at_a_time:
                done(job)

    def interrupt(*_):
        stop.set()
        for process in tuple(running):
            process.terminate()

    # A run that is told to end saves first.
    before = {number: signal.signal(number, interrupt) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        with ThreadPoolExecutor(len(devices)) as pool:
            futures = [pool.submit(train, job) for job in jobs]
        errors = [future.exception() for future in futures if future.exception()]
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    if errors:
        raise errors[0]
    if stop.is_set():
        raise KeyboardInterrupt


def _train(job: Job, device: str, running: set, stop: threading.Event) -> None:
    job.folder.parent.mkdir(parents=True, exist_ok=True)
    given = job.folder.with_name(f"{job.folder.name}.yaml")
    write_file(given, job.config.to_yaml().encode())
    command = [sys.executable, str(_TRAIN), "--config", str(given)]
    if (job.folder / "config.yaml").exists():
        command += ["--resume", "latest"]
    environment = dict(os.environ)
    if device == "cpu":
        environment["ACCELERATE_USE_CPU"] = "true"
    else:
        environment["CUDA_VISIBLE_DEVICES"] = device
    log = job.folder.with_name(f"{job.folder.name}.log")
    with open(log, "ab") as output:
        process = subprocess.Popen(command, stdout=output, stderr=output, env=environment, start_new_session=True)
        running.add(process)
        if stop.is_set():
            process.terminate()
        status = process.wait()
        running.discard(process)
    if status and not stop.is_set():
        last = [line for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()][-1:]
        raise CellError(f"{job.title} failed with status {status}: {''.join(last)[-300:]}\nIts log: {log}")
