"""Calibration: a temperature for each head, and sets of neighbouring grades that hold the true one as asked."""

import json
import math
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar
from transformers.utils import cached_file

from metrics.kl_grading.kl_grading import kl_grading_metrics
from modeling_clip_koa import GRADE_LABELS, CLIPKOAForImageClassification
from modeling_clip_koa.modeling_clip_koa import MAX_LOGIT_SCALE

CALIBRATION_FILE = "calibration.json"
# Levels of confidence for which thresholds are kept.
LEVELS = tuple(round(0.5 + step / 100, 2) for step in range(50))
FOLDS = 10
# Temperatures are sought between these.
_BOUNDS = (math.log(0.05), math.log(20.0))


class CalibrationError(ValueError):
    """A calibration that is missing or cannot give what is asked; the message says what would be right."""


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor) -> float:
    """The temperature that divides logits (N, K) so that labels (N,) are likeliest (Guo et al. 2017)."""
    logits, labels = logits.double(), labels.long()

    def log_loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    return math.exp(minimize_scalar(log_loss, bounds=_BOUNDS, method="bounded").x)


def fold_temperatures(model: CLIPKOAForImageClassification, text: float, linear: float) -> None:
    """Divides both heads' logits by their temperatures, in the weights, so that every way to load them is calibrated.

    `config.calibration` notes the temperatures, multiplied with those of earlier calibrations.

    Raises:
        CalibrationError: a text temperature so low that CLIP's bound on the logit scale would undo it.
    """
    with torch.no_grad():
        scale = model.logit_scale.clamp(max=MAX_LOGIT_SCALE) - math.log(text)
        if scale > MAX_LOGIT_SCALE + 1e-6:
            raise CalibrationError(
                f"The text temperature {text:.3g} would need a logit scale of {scale.exp():.0f}; CLIP's bound is 100."
            )
        model.logit_scale.copy_(scale)
        model.classifier.weight.div_(linear)
        model.classifier.bias.div_(linear)
    before = model.config.calibration or {}
    model.config.calibration = {
        "text_temperature": text * before.get("text_temperature", 1.0),
        "linear_temperature": linear * before.get("linear_temperature", 1.0),
    }


def grown_intervals(probabilities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """For each X-ray the nested intervals of grades that grow from the likeliest to its likelier neighbour.

    Args:
        probabilities: (N, K).

    Returns:
        order (N, K), the grades as they join, and mass (N, K), the interval's probability once they have.
    """
    count, grades = probabilities.shape
    padded = np.pad(probabilities, ((0, 0), (1, 1)), constant_values=-1.0)  # a neighbour outside never joins
    rows = np.arange(count)
    low = high = probabilities.argmax(1) + 1
    order = [low - 1]
    for _ in range(grades - 1):
        down = padded[rows, low - 1] > padded[rows, high + 1]
        low, high = np.where(down, low - 1, low), np.where(down, high, high + 1)
        order.append(np.where(down, low, high) - 1)
    order = np.stack(order, axis=1)
    return order, np.take_along_axis(probabilities, order, axis=1).cumsum(1)


def conformal_scores(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """For each X-ray the mass of the smallest grown interval that holds its true grade, (N,), in 0..1.

    Adaptive prediction sets (Romano et al. 2020) with the order of inclusion replaced by neighbourhood, as grades are
    ordered and a reader understands "2 to 3".
    """
    order, mass = grown_intervals(probabilities)
    return mass[order == np.asarray(labels)[:, None]]


def conformal_threshold(scores: np.ndarray, level: float) -> float:
    """The mass up to which intervals are taken, so that they hold the true grade with probability `level` or more.

    Split conformal prediction (Vovk et al. 2005): the smallest score that ceil((N + 1) level) of the N do not exceed;
    above 1, hence every grade, where N is too small for the level.
    """
    rank = math.ceil((len(scores) + 1) * level - 1e-9)
    return float(np.sort(scores)[rank - 1]) if rank <= len(scores) else 1.1


def confidence_sets(probabilities: np.ndarray, threshold: float) -> list[tuple[int, ...]]:
    """For each row of (N, K) the largest grown interval within the threshold, of at least the likeliest grade."""
    order, mass = grown_intervals(probabilities)
    # A hair above, so that an interval whose mass is the threshold itself is taken.
    sizes = np.maximum((mass <= threshold + 1e-9).sum(1), 1)
    return [tuple(sorted(row[:size].tolist())) for row, size in zip(order, sizes, strict=True)]


def cross_fitted(logits: torch.Tensor, labels: torch.Tensor, people: list[str], level: float) -> dict:
    """What calibration gives on people it was not fitted on: each tenth of the people by a fit on the others.

    Args:
        logits: (N, K). labels: (N,). people: N names; X-rays of equal name are one person's.

    Returns:
        `probabilities` (N, K); `before` and `after` with `expected_calibration_error` (15 bins), `log_loss` and
        `brier`; `coverage`, `coverage_per_grade` and `mean_set_size` of the sets at `level`.

    Raises:
        CalibrationError: fewer people than folds.
    """
    names = sorted(set(people))
    if len(names) < FOLDS:
        raise CalibrationError(f"{len(names)} people are too few to calibrate on: it takes at least {FOLDS}.")
    shuffled = np.random.default_rng(0).permutation(len(names))
    fold_of = {names[place]: number % FOLDS for number, place in enumerate(shuffled)}
    folds = np.array([fold_of[person] for person in people])
    probabilities = np.zeros(tuple(logits.shape))
    sets: list[tuple[int, ...]] = [()] * len(people)
    for fold in range(FOLDS):
        held = folds == fold
        rest = torch.from_numpy(~held)
        temperature = fit_temperature(logits[rest], labels[rest])
        calibrated = (logits.double() / temperature).softmax(-1).numpy()
        probabilities[held] = calibrated[held]
        threshold = conformal_threshold(conformal_scores(calibrated[~held], labels[rest].numpy()), level)
        for place, found in zip(np.flatnonzero(held), confidence_sets(calibrated[held], threshold), strict=True):
            sets[place] = found
    grades = labels.tolist()
    covered = np.array([grade in found for grade, found in zip(grades, sets, strict=True)])
    return {
        "probabilities": probabilities,
        "before": _figures(logits.double().softmax(-1).numpy(), grades, people),
        "after": _figures(probabilities, grades, people),
        "level": level,
        "coverage": float(covered.mean()),
        "coverage_per_grade": [
            float(covered[np.array(grades) == grade].mean()) if grade in grades else None
            for grade in range(logits.shape[1])
        ],
        "mean_set_size": float(np.mean([len(found) for found in sets])),
    }


def _figures(probabilities: np.ndarray, grades: list[int], people: list[str]) -> dict:
    measured = kl_grading_metrics(probabilities.argmax(1).tolist(), grades, probabilities=probabilities, people=people)
    names = ("expected_calibration_error", "log_loss", "brier_score")
    return {name: {"value": measured[name], "interval": measured["intervals"][name]} for name in names}


def thresholds_by_level(logits: torch.Tensor, labels: torch.Tensor) -> dict[str, float]:
    """For each of `LEVELS` the threshold of its sets, from calibrated logits (N, K)."""
    scores = conformal_scores(logits.double().softmax(-1).numpy(), labels.numpy())
    return {f"{level:.2f}": conformal_threshold(scores, level) for level in LEVELS}


def read_threshold(name: str, level: float) -> float | None:
    """The threshold that a checkpoint keeps for a level; None where it was never calibrated.

    Args:
        name: model folder or Hub id.

    Raises:
        CalibrationError: a level that is not kept, or a damaged file.
    """
    found = Path(name) / CALIBRATION_FILE
    if not Path(name).is_dir():
        found = cached_file(name, CALIBRATION_FILE, _raise_exceptions_for_missing_entries=False)
    if not found or not Path(found).is_file():
        return None
    try:
        thresholds = json.loads(Path(found).read_text(encoding="utf-8"))["thresholds"]
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise CalibrationError(f"{found} is damaged ({type(error).__name__}): run calibrate.py anew.") from error
    if f"{level:.2f}" not in thresholds or not math.isclose(level, round(level, 2)):
        raise CalibrationError(f"--level {level}: use one of {LEVELS[0]:.2f}, {LEVELS[1]:.2f} ... {LEVELS[-1]:.2f}.")
    return float(thresholds[f"{level:.2f}"])


def describe(report: dict) -> str:
    """The report of `calibrate.py` as lines to print."""
    lines = []
    for head, fitted in report["heads"].items():
        before, after = (fitted[side]["expected_calibration_error"] for side in ("before", "after"))
        low, high = after["interval"]
        lines.append(
            f"{head:7} temperature {fitted['temperature']:.3f}; ECE {before['value']:.4f} -> {after['value']:.4f} "
            f"[{low:.4f}, {high:.4f}], log loss {fitted['before']['log_loss']['value']:.4f} -> "
            f"{fitted['after']['log_loss']['value']:.4f}"
        )
    sets = report["heads"]["text"]
    per_grade = ", ".join(
        f"{label.split()[0]} {share:.2f}"
        for label, share in zip(GRADE_LABELS, sets["coverage_per_grade"], strict=True)
        if share is not None
    )
    lines.append(
        f"sets at {sets['level']:.0%}: they hold the grade of {sets['coverage']:.1%} ({per_grade}), "
        f"{sets['mean_set_size']:.2f} grades on average"
    )
    return "\n".join(lines + ["Each figure is of people that its calibration was not fitted on."])
