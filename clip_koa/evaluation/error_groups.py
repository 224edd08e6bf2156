"""Where a model errs: its figures by grade, side, contrast, and how the X-rays are stored.

    python -m clip_koa.evaluation.error_groups EVALUATION/predictions_validation.jsonl --data_dir FOLDER

EVALUATION is a folder that clip-koa evaluate wrote, FOLDER the corpus it was of, in any layout. Prints Markdown, and
keeps the figures in EVALUATION/error_groups.json, from where clip-koa publish takes them to a model's card.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
from tqdm.auto import tqdm

from clip_koa.evaluation.heads import HEADS, grading
from clip_koa.evaluation.predictions import GradedSplit, PredictionsError, read_predictions
from clip_koa.files import file_digest, write_file
from dataset_script.exit_status import main_of
from dataset_script.knee_xray import read_xray
from dataset_script.layouts import find_files, read_contents, resolve_data_dir
from metrics.kl_grading.kl_grading import kl_grading_metrics
from modeling_clip_koa import GRADE_LABELS

_SIDES = {"L": "left knees", "R": "right knees", "B": "both knees", None: "side unknown"}
_QUARTERS = ("lowest", "second", "third", "highest")
FILE = "error_groups.json"
# All groups that there may be, in their order.
GROUPS = (
    *GRADE_LABELS, *_SIDES.values(), "stored bone bright", "stored bone dark",
    *(f"contrast: {name} quarter" for name in _QUARTERS),
)  # fmt: skip


def find_groups(graded: GradedSplit, data: Path) -> dict[str, np.ndarray]:
    """Which X-rays belong to each group, (N,) bool; groups without any are left out.

    Args:
        data: the corpus that the predictions are of, as `resolve_data_dir` gives it.

    Raises:
        PredictionsError: an X-ray that the corpus does not hold.
        CorpusError, RadiographError: no corpus, or an X-ray that cannot be read.
    """
    listed = {xray.file: xray for xrays in find_files(data).values() for xray in xrays}
    if missing := [file for file in graded.files if file not in listed]:
        raise PredictionsError(f"{data} does not hold {missing[0]}, which the predictions are of.")
    found = read_contents(listed[file] for file in tqdm(graded.files, desc="reading", unit="X-ray"))
    radiographs = [read_xray(xray, content) for xray, content in found]
    sides = np.array([_SIDES[radiograph.laterality] for radiograph in radiographs])
    inverted = np.array([radiograph.inverted for radiograph in radiographs])
    contrast = np.array([np.asarray(radiograph.image).std() for radiograph in radiographs])
    quarter = np.searchsorted(np.quantile(contrast, (0.25, 0.5, 0.75)), contrast)
    labels = graded.predictions.labels.numpy()
    groups = {name: labels == grade for grade, name in enumerate(GRADE_LABELS)}
    groups |= {side: sides == side for side in _SIDES.values()}
    groups |= {"stored bone bright": ~inverted, "stored bone dark": inverted}
    groups |= {f"contrast: {name} quarter": quarter == number for number, name in enumerate(_QUARTERS)}
    return {name: members for name, members in groups.items() if members.any()}


def measure_groups(graded: GradedSplit, groups: dict[str, np.ndarray], head: str) -> dict[str, dict]:
    """Of each group the number of X-rays, accuracy with its interval over people, MAE, and the mean error (signed)."""
    named, labels = grading(graded.predictions, head)["predictions"], graded.predictions.labels.numpy()
    people = np.array(graded.people)
    figures = {}
    for name, members in groups.items():
        metrics = kl_grading_metrics(named[members], labels[members], people=people[members].tolist())
        figures[name] = {
            "number": int(members.sum()),
            "accuracy": metrics["accuracy"],
            "interval": metrics["intervals"]["accuracy"],
            "mae": metrics["mae"],
            "mean_error": float((named - labels)[members].mean()),
        }
    return figures


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Where a model errs: figures by grade, side, contrast and storage."
    )
    parser.add_argument("predictions", type=Path, help="predictions_SPLIT.jsonl of clip-koa evaluate")
    parser.add_argument("--data_dir", help="the corpus, in any layout (default: KNEE_XRAY_DIR)")
    parser.add_argument("--head", choices=HEADS, default="text_flip_averaged", help="default: text_flip_averaged")
    options = parser.parse_args(arguments)
    graded = read_predictions(options.predictions)
    figures = measure_groups(graded, find_groups(graded, resolve_data_dir(options.data_dir)), options.head)
    about = {"predictions": file_digest(options.predictions), "head": options.head}
    write_file(options.predictions.with_name(FILE), json.dumps({**about, "groups": figures}, indent=1).encode())
    print("| X-rays | number | accuracy (95 % interval) | MAE | mean error, grades |\n|---|---|---|---|---|")
    for name, row in figures.items():
        interval = "" if row["interval"] is None else " ({:.3f} to {:.3f})".format(*row["interval"])
        errors = f"{row['mae']:.3f} | {row['mean_error']:+.2f}"
        print(f"| {name} | {row['number']} | {row['accuracy']:.3f}{interval} | {errors} |")
    return 0


main = main_of("clip_koa.evaluation.error_groups", run)


if __name__ == "__main__":
    sys.exit(main())
