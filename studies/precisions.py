"""What a published model's ONNX graphs say of a split, against PyTorch: the table of docs/publishing.md.

    python -m studies.precisions --model RELEASE --predictions EVALUATION/predictions_validation.jsonl --output FOLDER

RELEASE is a folder that `clip-koa publish --onnx` wrote, EVALUATION one that `clip-koa evaluate` wrote of the same
weights. What each graph said is kept in FOLDER, so that a stopped measurement goes on with the next graph.
"""

import argparse
import json
import sys
from pathlib import Path

import numpy as np
import torch
from tqdm.auto import tqdm

from clip_koa.evaluation.predictions import GradedSplit, PredictionsError, read_predictions
from clip_koa.files import write_file
from clip_koa.grading.onnx_network import RELEASE_FILES, ExportedModel
from dataset_script.exit_status import main_of
from dataset_script.knee_xray import read_xray
from dataset_script.layouts import find_files, read_contents, resolve_data_dir
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa.calibration_clip_koa import confidence_sets, threshold_at

_BATCH_SIZE = 16
_LEVEL = 0.9


def grade_split(exported: ExportedModel, files: list[str], data: Path, title: str) -> list[list[float]]:
    """Probabilities (N, K) of both views, averaged, for files of a corpus."""
    listed = {xray.file: xray for xrays in find_files(data).values() for xray in xrays}
    if missing := [file for file in files if file not in listed]:
        raise PredictionsError(f"{data} does not hold {missing[0]}, which the predictions are of.")
    rows, waiting = [], []
    for xray, content in tqdm(read_contents(listed[file] for file in files), desc=title, total=len(files)):
        waiting.append(read_xray(xray, content).image)
        if len(waiting) == _BATCH_SIZE or len(rows) + len(waiting) == len(files):
            rows += [list(grade.probabilities) for grade in exported.grade(waiting, keep_polarity=True)]
            waiting = []
    return rows


def compare(graded: GradedSplit, probabilities: np.ndarray, threshold: float) -> dict:
    """How (N, K) probabilities differ from what PyTorch gave the same X-rays, both views averaged."""
    logits, _ = graded.predictions.of_head("text_flip_averaged")
    ours = logits.double().softmax(-1).numpy()
    differences = np.abs(ours - probabilities)
    sets = [confidence_sets(torch.from_numpy(part), threshold) for part in (ours, probabilities)]
    sides = [{"predictions": part.argmax(-1), "probabilities": part} for part in (ours, probabilities)]
    paired = compare_kl_gradings(*sides, graded.predictions.labels.tolist(), graded.people)
    return {
        "same_grade": float((ours.argmax(-1) == probabilities.argmax(-1)).mean()),
        "same_set": float(np.mean([one == other for one, other in zip(*sets, strict=True)])),
        "largest": float(differences.max()),
        "of_99_percent": float(np.quantile(differences.max(-1), 0.99)),
        **{name: paired["second"][name] for name in ("accuracy", "quadratic_weighted_kappa", "mae")},
        "accuracy_difference": paired["difference"]["accuracy"],
        "accuracy_interval": paired["intervals"]["accuracy"],
    }


def as_table(figures: dict[str, dict]) -> str:
    """The figures as Markdown."""
    lines = [
        "| graph | same grade as PyTorch | same confidence set | largest difference of a probability | 99 % differ by "
        "less than | accuracy | its difference | QWK | MAE |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for name, row in figures.items():
        spread = "{:+.3f} to {:+.3f}".format(*row["accuracy_interval"])
        lines.append(
            f"| `{RELEASE_FILES[name]}` | {row['same_grade']:.1%} | {row['same_set']:.1%} | {row['largest']:.2g} | "
            f"{row['of_99_percent']:.2g} | {row['accuracy']:.3f} | {row['accuracy_difference']:+.3f} ({spread}) | "
            f"{row['quadratic_weighted_kappa']:.3f} | {row['mae']:.3f} |"
        )
    return "\n".join(lines)


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the table; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--model", type=Path, required=True, help="a published model's folder, with its graphs")
    parser.add_argument("--predictions", type=Path, required=True, help="of clip-koa evaluate, of the same weights")
    parser.add_argument("--data_dir", help="the corpus, in any layout (default: KNEE_XRAY_DIR)")
    parser.add_argument("--output", type=Path, required=True, help="folder that keeps what each graph said")
    options = parser.parse_args(arguments)
    graded, data = read_predictions(options.predictions), resolve_data_dir(options.data_dir)
    options.output.mkdir(parents=True, exist_ok=True)
    figures = {}
    for name, file in RELEASE_FILES.items():
        kept = options.output / f"{name}.json"
        exported = ExportedModel(options.model, file)
        if not kept.is_file():
            write_file(kept, json.dumps(grade_split(exported, graded.files, data, name)).encode())
        probabilities = np.array(json.loads(kept.read_text(encoding="utf-8")))
        figures[name] = compare(graded, probabilities, threshold_at(exported.beside.calibration, _LEVEL))
    print(as_table(figures))
    return 0


main = main_of("studies.precisions", run)


if __name__ == "__main__":
    sys.exit(main())
