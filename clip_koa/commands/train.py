"""`clip-koa train`."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from clip_koa.commands import HANDED_ON
from clip_koa.memory import importing, keep_freed_memory

SETTINGS = HANDED_ON


def train(
    arguments: Annotated[list[str] | None, Argument(metavar="[--config FILE] [--GROUP.FIELD VALUE]...")] = None,
) -> None:
    """Train a model, or go on with a run.

    `clip-koa train --help` lists every field. `accelerate launch train.py` with the same options spreads over devices.
    """
    with importing():
        from clip_koa.interruption import work_is_kept
        from clip_koa.locks import WriterLock, only_writer
        from clip_koa.reporting.report import hardest_pictures, write_report
        from clip_koa.training.engine import train as train_run
        from clip_koa.training.preparation import build_accelerator, load_run_corpus, prepare_run
        from clip_koa.training.run_config import parse_run_config
        from clip_koa.training.validation import evaluate_best
        from dataset_script.exit_status import signals_as_exceptions

    config = parse_run_config(arguments or [])
    keep_freed_memory()
    accelerator = build_accelerator(config)
    folder = Path(config.run.output_dir)
    locks = WriterLock(folder, inside=True), WriterLock(folder / "best")
    with work_is_kept("Start it again with --resume latest."), only_writer(accelerator, *locks):
        corpus = load_run_corpus(config, accelerator)
        run = prepare_run(config, corpus, accelerator)
        train_run(run)
        with signals_as_exceptions():  # training hears them by itself
            evaluate_best(run, corpus)
        if accelerator.is_main_process:
            run.recorder.show("hardest X-rays", hardest_pictures(run.folder, corpus), run.state.step)
            print(f"Report: {write_report(run.folder, corpus)}\nModel:  {run.folder / 'best'}")
    # The last collective must carry no tensor: gloo frees its tensors in a thread of its own that needs Python's lock,
    # which ending the process group may hold while it waits for that thread.
    accelerator.wait_for_everyone()
    accelerator.end_training()
