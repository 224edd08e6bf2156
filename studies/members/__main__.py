"""Members of an ensemble, each of which leaves out a fifth of the training people, and what they say together.

    python -m studies.members train --model lite1 --fold 0 --data_dir FOLDER --output runs/lite1_fold0
    python -m studies.members report --data_dir FOLDER
    python -m studies.members teacher --share 0.5 --output runs/teacher.parquet

`train` needs the extra `studies`; with `--resume` it goes on from its last checkpoint. It writes what the member said
of the X-rays that it never saw to studies/members/. docs/studies.md tells more.
"""

import argparse
import sys
from dataclasses import asdict
from functools import partial
from pathlib import Path

from clip_koa.interruption import work_is_kept
from clip_koa.memory import keep_freed_memory
from dataset_script.exit_status import main_of
from studies.members.folds import assign_folds
from studies.members.member_files import FOLDER, member_table, read_members, write_member_file
from studies.members.networks import ARCHITECTURES, StudyError
from studies.members.report import describe_members, find_people
from studies.members.teacher import write_teacher
from studies.members.training import MemberSettings, MemberTraining
from studies.members.xrays import load_splits, read_xrays

FOLDS = 5


def run(arguments: list[str] | None, prog: str) -> None:
    """Trains a member or reports on all."""
    options = _parse(arguments, prog)
    options.run(options)


def train_member(options: argparse.Namespace) -> Path:
    """Trains a member, or goes on with it, and writes its file."""
    architecture = ARCHITECTURES[options.model]
    settings = MemberSettings(options.model, options.fold, FOLDS, options.seed, options.epochs or architecture.epochs)
    folder = Path(options.output)
    if (folder / "checkpoint").exists() and not options.resume:
        raise StudyError(f"{folder} holds a run: pass --resume to go on with it, or another --output.")
    splits = load_splits(options.data_dir)
    xrays, validation = (read_xrays(splits[name], architecture.image_size) for name in ("train", "validation"))
    fold = assign_folds(xrays.people, xrays.labels.tolist(), FOLDS)
    unseen = xrays.take(fold == options.fold)
    folder.mkdir(parents=True, exist_ok=True)
    training = MemberTraining(settings, xrays.take(fold != options.fold), folder)
    if options.resume and training.load():
        print(f"{folder}: goes on after step {training.step}.", flush=True)
    with work_is_kept("Start it again with --resume."):
        training.train(validation)
    parts = [
        ("train", options.fold, unseen, training.predict(unseen.gray)),
        ("validation", None, validation, training.predict(validation.gray)),
    ]
    name = f"{options.model}_fold{options.fold}" + (f"_seed{options.seed}" if options.seed else "")
    table = member_table(parts, {"name": name, "family": architecture.family, **asdict(settings)})
    path = write_member_file(Path(options.members) / f"{name}.parquet", table)
    print(f"Member file: {path}")
    return path


def report(options: argparse.Namespace) -> None:
    """Prints what all member files say, alone and together."""
    members = read_members(Path(options.members))
    people = find_people(options.data_dir, members) if options.data_dir else None
    print(describe_members(members, people, options.against or members[0].name))


def teacher(options: argparse.Namespace) -> None:
    """Writes what a student is taught."""
    count = write_teacher(
        Path(options.output), read_members(Path(options.members)), options.share, options.class_balance
    )
    print(f"{options.output}: labels of {count} training X-rays, each by members that never saw it.")


def _share(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no number from 0 to 1")
    return value


def _whole(text: str, least: int = 0) -> int:
    if not (text.isascii() and text.isdigit() and int(text) >= least):
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number from {least} on")
    return int(text)


def _parse(arguments: list[str] | None, prog: str) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    train = commands.add_parser("train", help="train one member, or go on with it")
    train.set_defaults(run=train_member)
    train.add_argument("--model", required=True, choices=sorted(ARCHITECTURES))
    train.add_argument("--fold", required=True, type=int, choices=range(FOLDS), help="the fold that it never sees")
    train.add_argument("--data_dir", help="the corpus; default: the environment's KNEE_XRAY_DIR")
    train.add_argument("--output", required=True, help="folder of the run")
    train.add_argument("--resume", action="store_true", help="go on from the last checkpoint, where there is one")
    train.add_argument("--seed", type=_whole, default=0, help="of the order, the augmentation and the new head")
    train.add_argument("--epochs", type=partial(_whole, least=1), help="default: what the model's recipe says")
    table = commands.add_parser("report", help="print the figures of all members, alone and together")
    table.set_defaults(run=report)
    table.add_argument("--data_dir", help="the corpus; with it the figures have intervals over people")
    table.add_argument("--against", help="the member that the others are compared with; default: the first by name")
    taught = commands.add_parser("teacher", help="write the labels of a student: grades, mixed with what members say")
    taught.set_defaults(run=teacher)
    taught.add_argument("--share", required=True, type=_share, help="of the members' mean in a label, 0 to 1")
    taught.add_argument(
        "--class_balance", type=_share, default=0.0, help="the student's data.class_balance, 0 to 1 (default: 0)"
    )
    taught.add_argument("--output", required=True, help="Parquet file that a run names as data.soft_labels")
    for command in (train, table, taught):
        command.add_argument("--members", default=FOLDER, help="folder of member files; default: studies/members")
    return parser.parse_args(arguments)


main = main_of("studies.members", run)


if __name__ == "__main__":
    keep_freed_memory()
    sys.exit(main())
