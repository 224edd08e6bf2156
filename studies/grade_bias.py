"""What a bias for each grade beside the temperature gives, on people that it was not fitted on.

    clip-koa evaluate --model models/clip-koa-small --data_dir FOLDER --split validation --output evaluation
    python -m studies.grade_bias evaluation/predictions_validation.jsonl

or, of the X-rays as they are in a file of studies.readings:

    python -m studies.grade_bias runs/readings.npz

The text head, averaged over both views, is read as softmax(logits / T) or as softmax(logits / T + b), with five biases
b that are fitted together with T. Each tenth of the people is graded by what the other nine gave. Printed are the
figures, and the differences to the temperature alone with 95 % intervals over people (docs/calibration.md).
"""

import argparse
import sys
from pathlib import Path

import numpy as np
import torch
from scipy.optimize import minimize

from clip_koa.calibration.temperatures import cross_fitted_temperatures, tenths_of_people
from clip_koa.evaluation.predictions import GradedSplit, read_predictions
from dataset_script.exit_status import main_of
from metrics.kl_grading.paired import compare_kl_gradings
from studies.readings import as_it_is

# Of the biases' squares, summed, beside the mean log loss.
PENALTIES = (0.0, 0.01, 0.1)
FIGURES = {
    "log_loss": "log loss",
    "accuracy": "accuracy",
    "quadratic_weighted_kappa": "QWK",
    "macro_f1": "macro-F1",
    "recall_per_grade": "KL1 recall",
    "expected_calibration_error": "ECE",
}
_SHOWN_GRADE = 1  # of the figures by grade


def fit_bias(logits: np.ndarray, labels: np.ndarray, penalty: float) -> tuple[float, np.ndarray]:
    """The factor 1 / T and the biases (K,) under which labels (N,) are likeliest, given logits (N, K).

    Args:
        penalty: of the sum of the biases' squares, added to the mean log loss.
    """
    rows, own = np.arange(len(labels)), np.eye(logits.shape[1])[labels]

    def loss(values: np.ndarray) -> tuple[float, np.ndarray]:
        factor, bias = values[0], values[1:]
        scores = factor * logits + bias
        log_shares = scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)
        slope = (np.exp(log_shares) - own) / len(labels)  # of the mean log loss in each score
        gradient = [(slope * logits).sum(), *(slope.sum(0) + 2 * penalty * bias)]
        return -log_shares[rows, labels].mean() + penalty * (bias**2).sum(), np.array(gradient)

    start = np.array([1.0, *np.zeros(logits.shape[1])])
    fitted = minimize(
        loss, start, jac=True, method="L-BFGS-B", bounds=[(0.05, 20.0)] + [(None, None)] * (len(start) - 1)
    )
    return float(fitted.x[0]), fitted.x[1:] - fitted.x[1:].mean()


def cross_fit(graded: GradedSplit, penalty: float | None) -> np.ndarray:
    """Probabilities (N, K), of each tenth of the people by a fit on the others; None: by the temperature alone.

    Raises:
        CalibrationError: fewer people than folds.
    """
    logits, labels = graded.predictions.of_head("text_flip_averaged")[0].double(), graded.predictions.labels
    if penalty is None:
        return (logits / cross_fitted_temperatures(logits, labels, graded.people)).softmax(-1).numpy()
    probabilities = np.zeros(tuple(logits.shape))
    for held in tenths_of_people(graded.people):
        factor, bias = fit_bias(logits.numpy()[~held], labels.numpy()[~held], penalty)
        probabilities[held] = (factor * logits[torch.from_numpy(held)] + torch.from_numpy(bias)).softmax(-1).numpy()
    return probabilities


def measure(graded: GradedSplit, penalties: tuple[float, ...] = PENALTIES) -> dict[float, dict]:
    """For each penalty the comparison of the temperature alone (first) with biases beside it (second)."""
    labels = graded.predictions.labels.tolist()

    def grading(penalty):
        probabilities = cross_fit(graded, penalty)
        return {"predictions": probabilities.argmax(1).tolist(), "probabilities": probabilities.tolist()}

    alone = grading(None)
    return {penalty: compare_kl_gradings(alone, grading(penalty), labels, graded.people) for penalty in penalties}


def describe(compared: dict[float, dict]) -> str:
    """The figures, and under them the differences, as a table in Markdown."""

    def row(name, values, intervals=None):
        cells = []
        for figure in FIGURES:
            value, bounds = values[figure], intervals and intervals[figure]
            if isinstance(value, list):
                value, bounds = value[_SHOWN_GRADE], bounds and bounds[_SHOWN_GRADE]
            told = f" ({bounds[0]:+.3f} to {bounds[1]:+.3f})" if bounds else ""
            cells.append(f"{value:{'+' if intervals else ''}.3f}{told}")
        return f"| {name} | {' | '.join(cells)} |"

    lines = [f"| text head | {' | '.join(FIGURES.values())} |", "|---|" + "---|" * len(FIGURES)]
    lines.append(row("temperature alone", next(iter(compared.values()))["first"]))
    for penalty, found in compared.items():
        lines.append(row(f"with biases, penalty {penalty:g}", found["second"]))
    for penalty, found in compared.items():
        lines.append(row(f"difference, penalty {penalty:g}", found["difference"], found["intervals"]))
    return "\n".join(lines)


def run(arguments: list[str] | None, prog: str) -> None:
    """Prints what the biases give."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    told = "of a split never trained on: .jsonl of clip-koa evaluate, or .npz of studies.readings"
    parser.add_argument("predictions", type=Path, help=told)
    path = parser.parse_args(arguments).predictions
    print(describe(measure(as_it_is(path) if path.suffix == ".npz" else read_predictions(path))))


main = main_of("studies.grade_bias", run)


if __name__ == "__main__":
    sys.exit(main())
