"""Members, teacher, student and the test of the paper's claim, one after another, within a given time.

    python -m studies.whole_plan --data_dir FOLDER --output runs/whole_plan --minutes 10
    python -m studies.whole_plan --output runs/rehearsal --rehearsal

It is made for ten minutes of a machine with one GPU. Every stage has a share of the time that is left; what it does
not use goes to the next. A stage that is cut off leaves what it has. What is small lies in the output folder as soon
as it is there: member files, the teacher's labels, figures and tables. The student's weights come last. Start it again
to go on: what is there is not made again. The rehearsal runs all stages on drawn X-rays with the smallest models.
"""

import argparse
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch

from clip_koa.files import write_file
from clip_koa.interruption import work_is_kept
from clip_koa.locks import WriterLock
from clip_koa.training.checkpoints import written_whole
from clip_koa.training.run_config import RunConfig, read_run_config
from clip_koa.training.status import read_status
from dataset_script import synthetic
from dataset_script.exit_status import main_of
from studies.members.__main__ import FOLDS
from studies.members.member_files import FOLDER as KEPT_MEMBERS
from studies.members.member_files import read_members
from studies.members.networks import ARCHITECTURES, REHEARSAL, StudyError
from studies.members.report import describe_members, find_people
from studies.members.teacher import write_teacher

_ROOT = Path(__file__).resolve().parents[1]
# Of the time that is left, relative to the shares of the stages that follow.
SHARES = {"members": 0.45, "teacher": 0.03, "student": 0.27, "result": 0.1, "claim": 0.15}
SEEDS = (0, 1)
CELLS = ("random_flips", "symmetry", "consistency", "both", "weight_0.5", "weight_2", "consistency_similarity")
# Seconds that a command has to save what it has, once its time is over.
GRACE = 20


@dataclass(frozen=True)
class Setting:
    """What is run: in earnest, or in rehearsal.

    Args:
        data_dir: the corpus; None: the environment's KNEE_XRAY_DIR.
        models: of `ARCHITECTURES`, members of all folds of the first before the next.
        start: model folder that the student and the cells go on from.
        image_size: that the student reads.
        share: of the teacher in a label.
        at_once: how many trainings share the device.
        members: folder of member files that are there already; None: none.
        changes: fields that every run of clip-koa train has otherwise than configs/ says.
        cells, seeds: of the claim.
    """

    data_dir: str | None
    models: tuple[str, ...]
    start: Path
    image_size: int
    share: float
    at_once: int
    members: Path | None
    changes: dict
    cells: tuple[str, ...] = CELLS
    seeds: tuple[int, ...] = (0, 1, 2)

    @property
    def corpus(self) -> list[str]:
        return ["--data_dir", self.data_dir] if self.data_dir else []

    def config(self, name: str, **changes) -> RunConfig:
        """A configuration of configs/, with this setting's changes; `__` stands for the dot in a field's name."""
        named = {field.replace("__", "."): value for field, value in changes.items()}
        corpus = {"data.corpus": self.data_dir} if self.data_dir else {}
        return read_run_config(_ROOT / "configs" / name).changed({**corpus, **named, **self.changes})


class Plan:
    """The stages, each of which leaves what it has by its deadline.

    Args:
        output: folder of what is to be kept.
        work: folder of the runs.
    """

    def __init__(self, setting: Setting, output: Path, work: Path):
        self.setting, self.output, self.work = setting, output, work
        self.members_folder, self.teacher_file = output / "members", output / "teacher.parquet"
        self.student_folder = work / "student"

    def carry_out(self, ends: float) -> None:
        """Runs all stages; `ends` is in seconds of `time.monotonic`."""
        left = dict(SHARES)
        for name in SHARES:
            now = time.monotonic()
            if now >= ends:
                print(f"{name}: no time is left for it.", flush=True)
                continue
            deadline = now + (ends - now) * left[name] / sum(left.values())
            getattr(self, name)(deadline)
            del left[name]
            print(f"{name}: {time.monotonic() - now:.0f} s, until {deadline - now:.0f} s were over.", flush=True)
        # A copy keeps the time at which a file was written.
        if _written(self.student_folder) != _written(self.output / "model"):
            with written_whole(self.output / "model") as folder:
                shutil.copytree(self.student_folder, folder, dirs_exist_ok=True)
        print(f"All there is lies in {self.output}.", flush=True)

    def run(self, deadline: float, **commands: list) -> set[str]:
        """Runs commands of Python by name, see `run_until`."""
        return run_until(commands, deadline, self.setting.at_once, self.work / "logs")

    def members(self, deadline: float) -> None:
        """Trains a member of each model for each fold that has none."""
        self.members_folder.mkdir(parents=True, exist_ok=True)
        for path in self.setting.members.glob("*.parquet") if self.setting.members else ():
            shutil.copy(path, self.members_folder)
        commands = {}
        for model in self.setting.models:
            for fold in range(FOLDS):
                name = f"{model}_fold{fold}"
                if not (self.members_folder / f"{name}.parquet").exists():
                    options = ["--model", model, "--fold", fold, "--output", self.work / name, "--resume"]
                    options += ["--members", self.members_folder, *self.setting.corpus]
                    commands[name] = ["-m", "studies.members", "train", *options]
        self.run(deadline, **commands)

    def teacher(self, deadline: float) -> None:
        """Writes the report on the members, and the labels of the student where each fold has a member."""
        if len(self._uncovered()) == FOLDS:
            return
        members = read_members(self.members_folder)
        report = describe_members(members, find_people(self.setting.data_dir, members), members[0].name)
        write_file(self.output / "members.md", report.encode())
        if not self._uncovered():
            balance = self.setting.config("student.yaml").data.class_balance
            write_teacher(self.teacher_file, members, self.setting.share, balance)

    def _uncovered(self) -> list[int]:
        found = "".join(path.stem + "_" for path in self.members_folder.glob("*.parquet"))
        return [fold for fold in range(FOLDS) if f"_fold{fold}_" not in found]

    def student(self, deadline: float) -> None:
        """Trains the student with each seed, from a start of its image size."""
        start = self.work / "start"
        if not start.exists():
            options = ["--model", self.setting.start, "--image_size", self.setting.image_size, "--output", start]
            self.run(deadline, start=["-m", "studies.resized_start", *options])
        labels = {"data__soft_labels": str(self.teacher_file)}
        if not self.teacher_file.exists():
            print(f"student: folds {self._uncovered()} have no member, so it learns the grades alone.", flush=True)
            labels = {"data__soft_labels": "", "losses__ordinal_smoothing": 0.5}
        commands = {}
        for seed in SEEDS:
            folder = self._seed_folder(seed)
            if read_status(folder).state == "finished":
                continue
            given = folder.with_name(f"{folder.name}.yaml")
            changes = {"run__output_dir": str(folder), "run__seed": seed, "model__start": str(start), **labels}
            write_file(given, self.setting.config("student.yaml", **changes).to_yaml().encode())
            resume = ["--resume", "latest"] if (folder / "config.yaml").exists() else []
            commands[folder.name] = [_ROOT / "train.py", "--config", given, *resume]
        self.run(deadline, **commands)
        for seed in SEEDS:
            self._keep(self._seed_folder(seed) / "metrics.jsonl", f"student_seed{seed}.jsonl")

    def _seed_folder(self, seed: int) -> Path:
        return self.work / f"student_seed{seed}"

    def result(self, deadline: float) -> None:
        """Averages the seeds, or takes the one there is; calibrates and evaluates."""
        best = [folder for folder in (self._seed_folder(seed) / "best" for seed in SEEDS) if folder.exists()]
        figures = self.output / "evaluation" / "metrics.json"
        if not best or (figures.exists() and figures.stat().st_mtime > max(map(_written, best))):
            return
        if len(best) > 1:
            self.run(deadline, average=["-m", "clip_koa", "average", *best, "--output", self.student_folder])
        else:
            shutil.copytree(best[0], self.student_folder, dirs_exist_ok=True)
        model = ["--model", self.student_folder, *self.setting.corpus, "--split", "validation"]
        self.run(deadline, calibrate=["-m", "clip_koa", "calibrate", *model, "--typical_xrays", 0])
        self._keep(self.student_folder / "calibration.json", "calibration.json")
        evaluated = ["--output", self.output / "evaluation", "--no_thumbnails"]
        self.run(deadline, evaluate=["-m", "clip_koa", "evaluate", *model, *evaluated])

    def claim(self, deadline: float) -> None:
        """Runs the cells of the claim; those there is no time for are left out of its tables."""
        folder, given = self.work / "claim", self.work / "claim.yaml"
        write_file(given, self.setting.config("claim.yaml", model__start=str(self.setting.start)).to_yaml().encode())
        devices = ["0" if torch.cuda.is_available() else "cpu"] * self.setting.at_once
        options = ["--config", given, "--output", folder, "--equal", "compute", "epochs", "--devices", *devices]
        options += ["--cells", *self.setting.cells, "--seeds", *self.setting.seeds]
        self.run(deadline, claim=["-m", "studies.ablation", *options])
        for table in folder.glob("ablation*.*"):
            self._keep(table, f"claim/{table.name}")

    def _keep(self, path: Path, name: str) -> None:
        if path.is_file():
            (self.output / name).parent.mkdir(parents=True, exist_ok=True)
            write_file(self.output / name, path.read_bytes())


def _written(model: Path) -> float:
    """When a model folder's weights were written; 0 where there are none."""
    weights = model / "model.safetensors"
    return weights.stat().st_mtime if weights.is_file() else 0.0


def run_until(commands: dict[str, list], deadline: float, at_once: int, logs: Path) -> set[str]:
    """Runs commands of Python, `at_once` at a time, each with a log of its name; returns the names of those that ended
    well. At the deadline, and when this process is stopped, those that still run are told to end, and then killed.
    """
    logs.mkdir(parents=True, exist_ok=True)
    waiting, running, done = dict(commands), {}, set()
    try:
        while (waiting or running) and time.monotonic() < deadline:
            while waiting and len(running) < at_once:
                name = next(iter(waiting))
                arguments = [str(argument) for argument in waiting.pop(name)]
                with open(logs / f"{name}.log", "wb") as log:
                    running[name] = subprocess.Popen(
                        [sys.executable, *arguments], cwd=_ROOT, stdout=log, stderr=log, start_new_session=True
                    )
            time.sleep(0.1)
            for name, process in list(running.items()):
                if process.poll() is not None:
                    del running[name]
                    done |= {name} if process.returncode == 0 else set()
                    if process.returncode:
                        print(f"{name} ended with status {process.returncode}: {logs / name}.log", flush=True)
    finally:
        for process in running.values():
            process.terminate()
        for process in running.values():
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
    if cut := [*running, *waiting]:
        print(f"cut off by the time: {', '.join(cut)}", flush=True)
    return done


def rehearse(work: Path) -> Setting:
    """Drawn X-rays, a tiny start, a network that learns nothing for the members, and two cells."""
    corpus, start = work / "corpus", work / "tiny" / "best"
    for seed, (split, people) in enumerate({"train": 24, "validation": 12}.items()):
        if not (corpus / split).exists():
            drawn = work / f"drawn_{split}"
            shutil.rmtree(drawn, ignore_errors=True)
            synthetic.write_corpus(drawn, people, seed, 96, 0.15, split)
            corpus.mkdir(parents=True, exist_ok=True)
            (drawn / split).rename(corpus / split)
    small = {
        "optimisation.epochs": 1, "optimisation.max_steps": 2, "optimisation.batch_size": 8,
        "model.freeze_layers": 0, "compute.num_workers": 0, "compute.mixed_precision": "no",
    }  # fmt: skip
    setting = Setting(str(corpus), (REHEARSAL,), start, 144, 0.5, 2, None, small, ("random_flips", "both"), (0,))
    if not start.exists():
        options = {"model__start": "tiny", "run__output_dir": str(start.parent)}
        given = work / "tiny.yaml"
        write_file(given, setting.config("claim.yaml", **options).to_yaml().encode())
        if not run_until({"tiny": [_ROOT / "train.py", "--config", given]}, time.monotonic() + 600, 1, work / "logs"):
            raise StudyError(f"The rehearsal's start could not be trained: {work / 'logs' / 'tiny.log'} says why.")
    return setting


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    known = [name for name in ARCHITECTURES if name != REHEARSAL]
    parser.add_argument("--data_dir", help="the corpus; default: the environment's KNEE_XRAY_DIR")
    parser.add_argument("--output", required=True, type=Path, help="folder of what is to be kept")
    parser.add_argument("--work", type=Path, help="folder of the runs; default: OUTPUT/work")
    parser.add_argument("--minutes", type=float, default=10.0, help="for all stages together; default: 10")
    parser.add_argument(
        "--models", nargs="+", choices=known, default=known, metavar="MODEL",
        help=f"members, all folds of the first before the next; default: {' '.join(known)}",
    )  # fmt: skip
    parser.add_argument("--start", default=_ROOT / "models" / "clip-koa-small", type=Path, help="model folder")
    parser.add_argument("--image_size", type=int, default=336, help="that the student reads, in pixels; default: 336")
    parser.add_argument("--share", type=float, default=0.5, help="of the teacher in a label; default: 0.5")
    parser.add_argument("--at_once", type=int, help="trainings that share the device; default: 8 on a GPU, else 1")
    parser.add_argument("--rehearsal", action="store_true", help="run all stages with the smallest models")
    options = parser.parse_args(arguments)
    if not options.minutes > 0:
        parser.error(f"--minutes {options.minutes:g}: give more than 0.")
    return options


def run(arguments: list[str] | None, prog: str) -> None:
    """Carries out the plan."""
    options = _parse(arguments, prog)
    ends = time.monotonic() + 60 * options.minutes
    output = options.output.resolve()
    work = (options.work or output / "work").resolve()
    with work_is_kept("Start it again to go on."), WriterLock(output, inside=True):
        work.mkdir(parents=True, exist_ok=True)
        if options.rehearsal:
            setting = rehearse(work)
        else:
            at_once = options.at_once or (8 if torch.cuda.is_available() else 1)
            data_dir = options.data_dir and str(Path(options.data_dir).resolve())
            setting = Setting(
                data_dir, tuple(options.models), options.start.resolve(), options.image_size, options.share, at_once,
                KEPT_MEMBERS, {},
            )  # fmt: skip
        Plan(setting, output, work).carry_out(ends)


main = main_of("studies.whole_plan", run)


if __name__ == "__main__":
    sys.exit(main())
