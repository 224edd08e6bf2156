"""Train CLIP-KOA on knee X-rays.

    accelerate launch train.py --config configs/small.yaml --data.corpus FOLDER
    python train.py --config configs/demo.yaml --run.output_dir runs/demo

`python train.py --help` lists every field. Exit status: 0 finished, 1 an error, 2 another process writes the run
folder, 75 stopped by SIGTERM or SIGUSR1 with a checkpoint saved: start it again with `--resume latest`. How a run
stands, `python -m clip_koa.training.status RUN` tells.
"""

import sys
from pathlib import Path

from clip_koa.files import WriteError
from clip_koa.locks import InUseError, WriterLock
from clip_koa.memory import keep_freed_memory
from clip_koa.reporting.report import write_report
from clip_koa.training.checkpoints import SaveError
from clip_koa.training.engine import train
from clip_koa.training.preemption import RESUME_ME, Preempted
from clip_koa.training.preparation import build_accelerator, load_run_corpus, prepare_run
from clip_koa.training.recording import only_writer
from clip_koa.training.run_config import RunConfigError, parse_run_config
from clip_koa.training.validation import evaluate_best
from dataset_script.knee_xray import CorpusError
from dataset_script.radiograph import RadiographError

IN_USE = 2
EXPECTED = (
    RunConfigError, CorpusError, RadiographError, FloatingPointError, SaveError, WriteError, InUseError, Preempted,
)  # fmt: skip


def main(arguments: list[str] | None = None) -> int:
    """Runs a training; returns the exit status."""
    config = parse_run_config(arguments)
    keep_freed_memory()
    accelerator = build_accelerator(config)
    folder = Path(config.run.output_dir)
    with only_writer(accelerator, WriterLock(folder, inside=True), WriterLock(folder / "best")):
        corpus = load_run_corpus(config, accelerator)
        run = prepare_run(config, corpus, accelerator)
        train(run)
        evaluate_best(run, corpus)
        if accelerator.is_main_process:
            print(f"Report: {write_report(run.folder, corpus)}\nModel:  {run.folder / 'best'}")
    # The last collective must carry no tensor: gloo frees its tensors in a thread of its own that needs Python's lock,
    # which ending the process group may hold while it waits for that thread.
    accelerator.wait_for_everyone()
    accelerator.end_training()
    return 0


def report_and_exit(error: Exception) -> None:
    """Ends with one or two lines on what went wrong, and 75 where the run only waits to be started again."""
    print(f"train.py: {error}", file=sys.stderr)
    if isinstance(error, Preempted):
        print("Start it again with --resume latest.", file=sys.stderr)
    sys.exit(RESUME_ME if isinstance(error, Preempted) else IN_USE if isinstance(error, InUseError) else 1)


if __name__ == "__main__":
    try:
        sys.exit(main())
    except EXPECTED as error:
        report_and_exit(error)
