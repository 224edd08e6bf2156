"""What a published model's ONNX graphs say of X-rays, against PyTorch: the table of docs/publishing.md.

    python -m studies.precisions --model RELEASE --data_dir FOLDER --output FILE

RELEASE is a folder that `clip-koa publish --onnx` wrote. People of the split come in a drawn order, each with both
knees, and FILE keeps what was said of each X-ray. So a measurement that was stopped goes on where it was, and what is
there by then is a fair sample. The table is of all X-rays in FILE.
"""

import argparse
import json
import random
import sys
from itertools import groupby
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from clip_koa.evaluation.loading import load_checkpoint, split_name
from clip_koa.grading.onnx_network import RELEASE_FILES, ExportedModel
from dataset_script.exit_status import main_of
from dataset_script.knee_xray import read_xray
from dataset_script.layouts import find_files, read_contents, resolve_data_dir
from dataset_script.listing import Xray
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa.calibration_clip_koa import SetRule, read_calibration, set_rule

_BATCH_SIZE = 16
_LEVEL = 0.9
_REFERENCE = "pytorch"


def draw_order(xrays: list[Xray], seed: int = 0) -> list[Xray]:
    """All X-rays, people in a drawn order, each with all of theirs."""

    def person(xray: Xray) -> str:
        return xray.person_id or xray.file

    people = [list(theirs) for _, theirs in groupby(sorted(xrays, key=lambda xray: (person(xray), xray.file)), person)]
    random.Random(seed).shuffle(people)
    return [xray for theirs in people for xray in theirs]


def measure(models: dict, xrays: list[Xray], output: Path) -> list[dict]:
    """Adds to a file what each model says of the X-rays that are not in it; gives all its rows."""
    rows = []
    if output.is_file():
        lines = output.read_text(encoding="utf-8").splitlines(keepends=True)
        rows = [json.loads(line) for line in lines if line.endswith("\n")]
    known = {row["file"] for row in rows}
    rest = [xray for xray in xrays if xray.file not in known]
    output.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    for start in tqdm(range(0, len(rest), _BATCH_SIZE), unit="batch"):
        batch = list(read_contents(rest[start : start + _BATCH_SIZE]))
        images = [read_xray(xray, content).image for xray, content in batch]
        said = {name: model.grade(images, keep_polarity=True) for name, model in models.items()}
        with open(output, "a", encoding="utf-8") as file:
            for place, (xray, _) in enumerate(batch):
                row = {"file": xray.file, "person": xray.person_id or xray.file, "label": xray.grade}
                row |= {name: list(grades[place].probabilities) for name, grades in said.items()}
                rows.append(row)
                file.write(json.dumps(row) + "\n")
    return rows


def compare(rows: list[dict], name: str, sets_of: SetRule) -> dict:
    """How what one graph said differs from PyTorch, both views averaged."""
    ours, theirs = (np.array([row[which] for row in rows]) for which in (_REFERENCE, name))
    differences = np.abs(ours - theirs).max(-1)
    sets = [sets_of(torch.from_numpy(part)) for part in (ours, theirs)]
    sides = [{"predictions": part.argmax(-1), "probabilities": part} for part in (ours, theirs)]
    paired = compare_kl_gradings(*sides, [row["label"] for row in rows], [row["person"] for row in rows])
    return {
        "same_grade": float((ours.argmax(-1) == theirs.argmax(-1)).mean()),
        "same_set": float(np.mean([one == other for one, other in zip(*sets, strict=True)])),
        "largest": float(differences.max()),
        "of_99_percent": float(np.quantile(differences, 0.99)),
        **{figure: paired["second"][figure] for figure in ("accuracy", "quadratic_weighted_kappa")},
        "accuracy_difference": paired["difference"]["accuracy"],
        "accuracy_interval": paired["intervals"]["accuracy"],
    }


def as_table(rows: list[dict], sets_of: SetRule) -> str:
    """The figures as Markdown."""
    people = len({row["person"] for row in rows})
    lines = [
        f"{len(rows)} X-rays of {people} people",
        "",
        "| graph | same grade as PyTorch | same confidence set | largest difference of a probability | 99 % differ by "
        "less than | accuracy less PyTorch's | accuracy | QWK |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, file in RELEASE_FILES.items():
        row = compare(rows, name, sets_of)
        spread = "{:+.3f} to {:+.3f}".format(*row["accuracy_interval"])
        lines.append(
            f"| `{file}` | {row['same_grade']:.1%} | {row['same_set']:.1%} | {row['largest']:.1g} | "
            f"{row['of_99_percent']:.1g} | {row['accuracy_difference']:+.3f} ({spread}) | {row['accuracy']:.3f} | "
            f"{row['quadratic_weighted_kappa']:.3f} |"
        )
    return "\n".join(lines)


def run(arguments: list[str] | None, prog: str) -> int:
    """Measures and prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a published model's folder, with its graphs")
    parser.add_argument("--data_dir", help="the corpus, in any layout (default: KNEE_XRAY_DIR)")
    parser.add_argument("--split", default="validation", help="validation, test, auto_test or train")
    parser.add_argument("--xrays", type=int, help="so many at most (default: all)")
    parser.add_argument("--output", type=Path, required=True, help="JSON lines that keep what was said")
    options = parser.parse_args(arguments)
    xrays = find_files(resolve_data_dir(options.data_dir))[split_name(options.split)]
    model, _ = load_checkpoint(str(options.model), dtype=torch.float32)
    graphs = {name: ExportedModel(options.model, file) for name, file in RELEASE_FILES.items()}
    rows = measure({_REFERENCE: model, **graphs}, draw_order(xrays)[: options.xrays], options.output)
    print(as_table(rows, set_rule(read_calibration(str(options.model)), _LEVEL)))
    return 0


main = main_of("studies.precisions", run)


if __name__ == "__main__":
    sys.exit(main())
