"""Kill training runs at random moments, go on, and compare with an uninterrupted run, bit by bit.

    python tests/kill_and_resume.py --kills 24

Every third kill comes while a checkpoint is being written; with two processes every second one hits one of them only.
The exit status is 0 where all runs end with the weights, optimizer and averages of the uninterrupted run.
"""

import argparse
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

ROOT = Path(__file__).parents[1]
TRAINING = (
    "--model.start", "tiny", "--data.corpus", "synthetic:24", "--optimisation.epochs", "6",
    "--optimisation.batch_size", "8", "--optimisation.new_learning_rate", "1e-3", "--compute.mixed_precision", "no",
    "--run.checkpoint_steps", "2", "--optimisation.ema_decay", "0.9", "--model.drop_path", "0.2",
    "--model.patch_dropout", "0.3", "--data.class_balance", "0.5", "--losses.ordinal_smoothing", "0.5",
    "--resume", "latest",
)  # fmt: skip
DEADLINE = 300  # seconds


def launch(folder: Path, processes: int, log) -> subprocess.Popen:
    """Starts train.py."""
    command = [sys.executable]
    if processes > 1:
        # Port 0 lets torchrun choose a free one.
        command += ["-m", "torch.distributed.run", "--nproc_per_node", str(processes), "--rdzv_backend", "c10d"]
        command += ["--rdzv_endpoint", "localhost:0"]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1", "TQDM_DISABLE": "1"}
    return subprocess.Popen(
        [*command, "train.py", *TRAINING, "--run.output_dir", str(folder)],
        cwd=ROOT, env=environment, stdout=log, stderr=subprocess.STDOUT,
    )  # fmt: skip


def wait_for(ready, process: subprocess.Popen) -> bool:
    """Waits until `ready()`; False where the process ended before."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and time.monotonic() < deadline:
        if ready():
            return True
        time.sleep(0.002)
    return False


def kill(folder: Path, process: subprocess.Popen, rng: random.Random, number: int, processes: int) -> str:
    """Kills a run with SIGKILL at a random moment; returns which, or nothing where it ended before."""
    begun = time.time()
    checkpoints, status = folder / "checkpoints", folder / "status.json"
    if not wait_for(lambda: status.exists() and status.stat().st_mtime > begun, process):
        return ""
    if number % 3 == 2:
        if not wait_for(lambda: any(checkpoints.glob(".step_*.writing/*")), process):
            return ""
        time.sleep(rng.uniform(0, 0.02))
        moment = "while saving"
    else:
        time.sleep(rng.uniform(0, 3.0))
        moment = "while training"
    if process.poll() is not None:
        return ""
    workers = subprocess.run(["pgrep", "-P", str(process.pid)], capture_output=True, text=True).stdout.split()
    one_only = processes > 1 and number % 2 and workers
    # torchrun gives each worker a session of its own, so that killing its group would leave them alive.
    for worker in [rng.choice(workers)] if one_only else [process.pid, *workers]:
        os.kill(int(worker), signal.SIGKILL)
    process.wait(DEADLINE)
    return f"{moment}, one process" if one_only else moment


def newest_checkpoint(folder: Path) -> Path:
    """The run's last training checkpoint."""
    return sorted((folder / "checkpoints").glob("step_*"))[-1]


def differing(folder: Path, expected: Path) -> list[str]:
    """What differs between two finished runs, by name; empty where they are bit-identical."""
    ours, theirs = newest_checkpoint(folder), newest_checkpoint(expected)
    found = [] if ours.name == theirs.name else [f"last checkpoint: {ours.name}, {theirs.name}"]
    for name in ("best/model.safetensors", f"checkpoints/{ours.name}/model.safetensors"):
        got, wanted = load_file(folder / name), load_file(expected / name)
        found += [f"{name}: {key}" for key in wanted if not torch.equal(got[key], wanted[key])]
    for name in ("optimizer.bin", *(f"custom_checkpoint_{number}.pkl" for number in range(3))):
        got, wanted = (torch.load(path / name, weights_only=False) for path in (ours, theirs))
        if not _equal(got, wanted):
            found.append(name)
    return found


def _equal(one, other) -> bool:
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_equal, one, other))
    return one == other


def survive(folder: Path, processes: int, kills: int, rng: random.Random, log) -> list[str]:
    """Runs a training to its end through `kills` kills; returns the moments they came at."""
    moments = []
    for number in range(kills):
        process = launch(folder, processes, log)
        moment = kill(folder, process, rng, number, processes)
        if not moment:
            break  # it had finished
        moments.append(moment)
    process = launch(folder, processes, log)
    if process.wait(DEADLINE) != 0:
        raise SystemExit(f"{folder} did not go on: see {log.name}")
    return moments


def main() -> int:
    """Prints a line for each run; returns the exit status."""
    parser = argparse.ArgumentParser(description="Kill training runs at random moments and go on.")
    parser.add_argument("--kills", type=int, default=24, help="kills in all, over four runs (default: 24)")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 1, 2, 2], help="processes of each run")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    rng, failed, done = random.Random(options.seed), False, 0
    with tempfile.TemporaryDirectory() as name:
        expected = {}
        for number, processes in enumerate(options.processes):
            with open(Path(name) / f"{number}.log", "w", encoding="utf-8") as log:
                if processes not in expected:
                    expected[processes] = Path(name) / f"uninterrupted_{processes}"
                    survive(expected[processes], processes, 0, rng, log)
                moments = survive(
                    Path(name) / f"run_{number}", processes, options.kills // len(options.processes), rng, log
                )
            found = differing(Path(name) / f"run_{number}", expected[processes])
            failed, done = failed or bool(found), done + len(moments)
            counts = ", ".join(f"{moments.count(moment)} {moment}" for moment in sorted(set(moments)))
            print(f"{processes} process(es), kills: {counts or 'none'}: {found or 'bit-identical'}", flush=True)
    print(f"{done} kills, {'NOT all' if failed else 'all'} runs bit-identical to the uninterrupted one")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
