"""What two hundred labelled X-rays of another style win back: the figures of docs/your_own.md.

    python -m studies.your_own --model models/clip-koa-small --data_dir FOLDER --output runs/your_own_study

X-rays of the corpus are changed to a style that the model does not know. Those of some people are labelled: the model
is fine-tuned and calibrated on them by the commands that a user types. X-rays of other people tell what that gave, in
the new style and as they were. What is in OUTPUT already is not done again.
"""

import argparse
import json
import subprocess
import sys
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from clip_koa.data.loader import sample_images
from clip_koa.evaluation.heads import grading
from clip_koa.evaluation.loading import load_checkpoint
from clip_koa.evaluation.predictions import read_predictions
from clip_koa.files import write_file
from clip_koa.grading.precision import set_precision
from dataset_script.exit_status import main_of
from dataset_script.files import new_folder
from dataset_script.knee_xray import KneeXray, read_ahead, read_xray
from dataset_script.layouts import list_files, resolve_data_dir
from dataset_script.listing import Xray
from dataset_script.names import CorpusError
from dataset_script.splitter import split_by_person, write_table
from metrics.kl_grading.kl_grading import GradedSample, interval, plain
from modeling_clip_koa import CLIPKOAError
from modeling_clip_koa.calibration_clip_koa import read_typicality
from studies.other_images import OTHER_IMAGES, SIDE
from studies.typicality_check import Judge
from studies.xray_changes import in_foreign_style

_HEAD = "text_flip_averaged"
_RESAMPLES = 2000
_SHOWN = ("accuracy", "quadratic_weighted_kappa", "mae", "log_loss", "expected_calibration_error")
_SHARES = (0.75, 0.25)  # of the labelled X-rays: to learn from, and to calibrate on
_JUDGED = 100  # knees in the style of which it is asked whether they are refused or warned of
_OTHERS = 6  # of them, that other images are made of, and images of each kind


class StudyError(CLIPKOAError, RuntimeError):
    """A study that cannot go on; the message says why."""


@dataclass(frozen=True)
class Study:
    """What is asked; kept beside what is found, so that two studies never mix."""

    model: str
    data_dir: str
    config: str
    learn_from: str  # the split of the labelled people
    labelled: int  # X-rays
    people: int  # of validation that are graded; 0: all
    seed: int  # of the people that are labelled, and of the training
    precision: str  # of evaluations


def choose(study: Study) -> dict[str, list[Xray]]:
    """X-rays by split: `train` and `validation` of the labelled people, `test` of other people of validation.

    Raises:
        CorpusError: fewer X-rays than are to be labelled.
    """
    listing = list_files(Path(study.data_dir))
    labelled = []
    for xrays in _in_turn(listing[study.learn_from], study.seed):
        if len(labelled) < study.labelled:
            labelled += xrays
    known = {xray.person_id for xray in labelled}
    others = [xray for xray in listing["validation"] if xray.person_id not in known]
    test = [xray for xrays in _in_turn(others, study.seed)[: study.people or None] for xray in xrays]
    if len(labelled) < study.labelled or not test:
        raise CorpusError(f"{study.data_dir}: {study.learn_from} has too few X-rays to label {study.labelled}.")
    numbers = split_by_person([xray.person_id for xray in labelled], [xray.grade for xray in labelled], _SHARES)
    parts = [[xray for xray, own in zip(labelled, numbers, strict=True) if own == part] for part in (0, 1)]
    return {"train": parts[0], "validation": parts[1], "test": test}


def _in_turn(xrays: list[Xray], seed: int) -> list[list[Xray]]:
    """The X-rays of each person, in a random order of people."""
    people = {}
    for xray in xrays:
        people.setdefault(xray.person_id, []).append(xray)
    names = sorted(people)
    return [people[names[place]] for place in np.random.default_rng(seed).permutation(len(names))]


def write_in_style(splits: dict[str, list[Xray]], folder: Path) -> None:
    """Writes X-rays in the foreign style as `{split}/{grade}/{file}`.

    Raises:
        WriteError, RadiographError: a full disk, an X-ray that cannot be read.
    """
    with new_folder(folder) as temporary:
        for split, xrays in splits.items():
            pictures = read_ahead(lambda xray, content: (xray, read_xray(xray, content).image), xrays)
            for xray, picture in tqdm(pictures, split, total=len(xrays), unit="X-ray"):
                path = temporary / split / str(xray.grade) / f"{Path(xray.file).stem}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                in_foreign_style(picture).save(path)


def _clip_koa(*arguments) -> None:
    """Runs a command as a user does.

    Raises:
        StudyError: it failed; it has said why.
    """
    print("clip-koa", *arguments, flush=True)
    if status := subprocess.run([sys.executable, "-m", "clip_koa", *map(str, arguments)]).returncode:
        raise StudyError(f"clip-koa {arguments[0]} ended with status {status}.")


def _evaluate(study: Study, model, data_dir, output: Path) -> Path:
    """The predictions of a model on the test split."""
    if not (output / "metrics.json").is_file():
        options = ("--mixed_precision", study.precision, "--no_thumbnails", "--output", output)
        _clip_koa("evaluate", "--model", model, "--data_dir", data_dir, "--split", "test", *options)
    return output / "predictions_test.jsonl"


def carry_out(study: Study, output: Path) -> dict:
    """Writes the X-rays, runs the commands, and returns the figures."""
    keep = output / "study.json"
    if keep.is_file() and json.loads(keep.read_text()) != asdict(study):
        raise StudyError(f"{output} holds another study: name a new folder.")
    output.mkdir(parents=True, exist_ok=True)
    write_file(keep, json.dumps(asdict(study), indent=1).encode())
    splits, xrays, tuned = choose(study), output / "xrays", output / "calibrated"
    if not xrays.exists():
        write_in_style(splits, xrays)
    official = (output / "official.csv").absolute()  # the same people's X-rays as they are
    write_table(splits["test"], ["test"] * len(splits["test"]), official)
    if not tuned.exists():
        run = output / "run"
        options = ("--resume", "latest") if run.exists() else ()
        start = ("--model.start", study.model, "--run.seed", study.seed, "--run.output_dir", run)
        _clip_koa("train", "--config", study.config, "--data.corpus", xrays, *start, *options)
        _clip_koa("calibrate", "--model", run / "best", "--data_dir", xrays, "--output", tuned)
    samples = {
        (name, kind): _sample(_evaluate(study, model, data, output / f"{name}_on_{kind}"))
        for kind, data in {"style": xrays, "official": official}.items()
        for name, model in {"tuned": tuned, "released": study.model}.items()
    }
    counts = {split: len(listed) for split, listed in splits.items()}
    return {"xrays": counts, **compare(samples), "warnings": judge(study, xrays, tuned)}


def _sample(path: Path) -> GradedSample:
    """What a prediction file says of the X-rays, in the order of their names."""
    graded = read_predictions(path)
    places = sorted(range(len(graded.files)), key=lambda place: Path(graded.files[place]).stem)
    columns = {name: values[places] for name, values in grading(graded.predictions, _HEAD).items()}
    people = [graded.people[place] for place in places]
    labels = graded.predictions.labels[places].tolist()
    return GradedSample(columns["predictions"], labels, probabilities=columns["probabilities"], people=people)


def compare(samples: dict[tuple[str, str], GradedSample]) -> dict:
    """Figures of each model on each kind of X-rays, what was lost, won back and lost elsewhere, with intervals.

    Every resample draws the same people for all four.
    """
    figures = {name: sample.unweighted_figures() for name, sample in samples.items()}
    spreads = {name: sample.bootstrap(_RESAMPLES, seed=0) for name, sample in samples.items()}

    def with_interval(value, spread):
        return {"value": plain(value), "interval": interval(spread, value)}

    def difference(second, first):
        return {
            metric: with_interval(
                figures[second][metric] - figures[first][metric], spreads[second][metric] - spreads[first][metric]
            )
            for metric in _SHOWN
        }

    def share(values):
        gap = values["released", "official"]["accuracy"] - values["released", "style"]["accuracy"]
        won = values["tuned", "style"]["accuracy"] - values["released", "style"]["accuracy"]
        return np.where(gap == 0, np.nan, won / np.where(gap == 0, 1, gap))  # nothing was lost

    return {
        "figures": {
            f"{model}, {kind}": {
                metric: with_interval(figures[model, kind][metric], spreads[model, kind][metric]) for metric in _SHOWN
            }
            for model, kind in samples
        },
        "lost by the style": difference(("released", "style"), ("released", "official")),
        "won by fine-tuning": difference(("tuned", "style"), ("released", "style")),
        "lost on official crops": difference(("tuned", "official"), ("released", "official")),
        "share of accuracy won back": with_interval(share(figures), share(spreads)),
    }


def judge(study: Study, xrays: Path, tuned: Path) -> dict:
    """By model: which shares of X-rays in the style, and of other images, are refused or warned of."""
    builder = KneeXray("folder", data_dir=str(xrays))
    builder.download_and_prepare()
    knees = sample_images(builder.as_dataset(split="test"), _JUDGED)
    chosen = [knee.resize((SIDE, SIDE)) for knee in knees[:_OTHERS]]
    found = {}
    for name, folder in {"released": study.model, "tuned": tuned}.items():
        model, image_processor = load_checkpoint(folder, dtype=torch.float32)
        set_precision(model, "auto")
        judged = Judge(model, image_processor, read_typicality(folder, model.config))
        others = [
            picture
            for kind, make in OTHER_IMAGES.items()
            if kind != "blurred"  # a knee still
            for picture in make(chosen, np.random.default_rng(0))[:_OTHERS]
        ]
        found[name] = {"knees": judged(knees, name), "other images": judged(others, name)}
    return found


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the figures as JSON and keeps them in OUTPUT/figures.json; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="What a fine-tuning on another style's X-rays gives.")
    parser.add_argument("--model", default="models/clip-koa-small", help="a calibrated model (default: the released)")
    parser.add_argument("--data_dir", help="the corpus (default: $KNEE_XRAY_DIR)")
    parser.add_argument("--output", type=Path, required=True, help="folder for X-rays, models and figures")
    parser.add_argument("--config", default="configs/your_own.yaml", help="of the training")
    parser.add_argument(
        "--learn_from", choices=("train", "validation"), default="train",
        help="whose X-rays are labelled; the others of validation are graded (default: train, which the released "
        "model has seen in their own style)",
    )  # fmt: skip
    parser.add_argument("--labelled", type=int, default=200, help="labelled X-rays (default: 200)")
    parser.add_argument("--people", type=int, default=0, help="people of validation to grade (default: all)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--precision", choices=("no", "bf16"), default="no", help="of evaluations (default: no, fp32)")
    options = parser.parse_args(arguments)
    study = Study(
        options.model, str(resolve_data_dir(options.data_dir)), options.config, options.learn_from, options.labelled,
        options.people, options.seed, options.precision,
    )  # fmt: skip
    figures = carry_out(study, options.output)
    text = json.dumps(figures, indent=1)
    write_file(options.output / "figures.json", text.encode())
    print(text)
    return 0


main = main_of("studies.your_own", run)


if __name__ == "__main__":
    sys.exit(main())
