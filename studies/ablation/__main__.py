"""The ablation of the paper's claim: train the same model with and without each of its losses, and compare.

    python -m studies.ablation --config configs/ablation.yaml --data_dir FOLDER --seeds 0 1 2 --output runs/ablation
    python -m studies.ablation --config configs/ablation.yaml --data_dir FOLDER --cells all --devices 0 1 2 3

Each cell and seed is a run of `clip-koa train` under the output folder. What is trained stays: start it again after a
stop and it goes on. After each run ablation.md, ablation.csv and ablation.png are written anew, and those of
`--equal epochs` as ablation_epochs.md and so on. `--kept` keeps in a small file what each run said, from which tables
are made without a training. The figures are of the validation split. Research only, no medical device.
"""

import argparse
import sys
from itertools import product
from pathlib import Path

from accelerate import Accelerator

from clip_koa.interruption import work_is_kept
from clip_koa.locks import WriterLock
from clip_koa.training.preparation import load_run_corpus
from clip_koa.training.run_config import read_run_config
from dataset_script.exit_status import main_of
from studies.ablation.grid import EQUALS, Cell, cell_config, find_cells, folder_name, table_name
from studies.ablation.kept import ValidationXrays
from studies.ablation.runner import Job, check_jobs, run_jobs
from studies.ablation.summary import load_results, write_summary


def parse_options(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Train with and without each loss of CLIP-KOA, and compare."
    )
    parser.add_argument("--config", required=True, help="what all runs share: a configuration of clip-koa train")
    parser.add_argument("--data_dir", help="folder of knee X-rays (default: the configuration's, or KNEE_XRAY_DIR)")
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2], help="default: 0 1 2")
    parser.add_argument(
        "--cells", nargs="+", default=["corners"], metavar="CELL",
        help="corners (default): the four corners and random flips; all; or names of cells",
    )  # fmt: skip
    parser.add_argument(
        "--equal", nargs="+", choices=EQUALS, default=EQUALS[:1],
        help="compute (default): cells with one view have twice the epochs; epochs: all have as many; or both",
    )  # fmt: skip
    parser.add_argument("--output", type=Path, default=Path("runs/ablation"), help="default: runs/ablation")
    parser.add_argument(
        "--kept", type=Path,
        help="folder of what each run said, one small file each; a run that has one is not trained again",
    )  # fmt: skip
    parser.add_argument(
        "--devices", nargs="+", default=["cpu"], help="numbers of GPUs, a run at a time on each (default: cpu)"
    )
    options = parser.parse_args(arguments)
    if len(set(options.seeds)) < len(options.seeds):
        parser.error("--seeds: name each seed once.")
    if wrong := [device for device in options.devices if device != "cpu" and not device.isdecimal()]:
        parser.error(f"--devices {wrong[0]}: give cpu, or numbers of GPUs.")
    return options


Runs = dict[tuple[str, int], Job]  # by name of the cell and seed


def plan(options: argparse.Namespace) -> tuple[list[Cell], list[Job], dict[str, Runs]]:
    """The cells, the trainings, every seed of all cells before the next, and which of them each table is of."""
    shared = read_run_config(options.config)
    if options.data_dir:
        shared = shared.changed({"data.corpus": options.data_dir})
    cells = find_cells(shared, options.cells)
    # Built once, so that runs side by side find it.
    train_size = len(load_run_corpus(shared, Accelerator(cpu=True))["train"])
    jobs, tables = {}, {equal: {} for equal in options.equal}  # tables share the trainings that are alike
    for seed, cell, equal in product(options.seeds, cells, tables):
        name = folder_name(cell, equal)
        folder = options.output / name / f"seed-{seed}"
        config = cell_config(shared, cell, seed, str(folder), train_size, equal)
        kept = options.kept / f"{name}_seed{seed}.parquet" if options.kept else None
        jobs[folder] = tables[equal][cell.name, seed] = Job(f"{name}, seed {seed}", config, kept)
    return cells, list(jobs.values()), tables


def run(arguments: list[str] | None, prog: str) -> None:
    """Trains what is not trained, and writes the table."""
    options = parse_options(arguments, prog)
    with work_is_kept("Start it again to go on."), WriterLock(options.output, inside=True):
        train_cells(options)


def train_cells(options: argparse.Namespace) -> None:
    """Trains what is not trained under the output folder, and writes the tables after each run."""
    cells, jobs, tables = plan(options)
    check_jobs(jobs)
    xrays = ValidationXrays.of_corpus(jobs[0].config.data.corpus) if options.kept else None
    graded = {}  # by folder, what each finished run said

    def take(job: Job) -> None:
        graded[job.folder] = job.predictions(xrays)
        job.keep(graded[job.folder], xrays)

    left = [job for job in jobs if not job.finished]
    for job in jobs:
        if job.finished:  # a file that cannot be used is told before anything is trained
            take(job)
    print(f"{len(jobs)} runs, {len(jobs) - len(left)} of them done. Logs: {options.output}/*/seed-*.log", flush=True)

    def summarise(job: Job | None = None) -> None:
        if job:
            take(job)
        done = f"{job.title} done, {len(graded)} of {len(jobs)}: " if job else ""
        for equal, runs in tables.items():
            said = {key: graded[other.folder] for key, other in runs.items() if other.folder in graded}
            if said and (job is None or job in runs.values()):
                table = write_summary(options.output, load_results(cells, said), table_name(equal))
                print(f"{done}{table}" if job else f"Table: {table}", flush=True)

    run_jobs(left, options.devices, summarise)
    summarise()


main = main_of("studies.ablation", run)


if __name__ == "__main__":
    sys.exit(main())
