"""Calibration: a temperature for each head, and sets of neighbouring grades that hold the true one as asked."""

import math
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from scipy.optimize import minimize_scalar

from metrics.kl_grading.kl_grading import kl_grading_metrics, person_numbers
from modeling_clip_koa import GRADE_LABELS, CalibrationError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import LEVELS, likely_sets
from modeling_clip_koa.modeling_clip_koa import MAX_LOGIT_SCALE

FOLDS = 10
# Temperatures are sought between these.
_LOWEST, _HIGHEST = 0.05, 20.0


def fit_temperature(logits: torch.Tensor, labels: torch.Tensor, lowest: float = _LOWEST) -> float:
    """The temperature that divides logits (N, K) so that labels (N,) are likeliest (Guo et al. 2017).

    Args:
        lowest: what it may be at least.
    """
    logits, labels = logits.double(), labels.long()

    def log_loss(log_temperature: float) -> float:
        return F.cross_entropy(logits / math.exp(log_temperature), labels).item()

    bounds = (math.log(max(lowest, _LOWEST)), math.log(_HIGHEST))
    return math.exp(minimize_scalar(log_loss, bounds=bounds, method="bounded").x)


def lowest_text_temperature(model: CLIPKOAForImageClassification) -> float:
    """The text temperature at which the logit scale comes to CLIP's bound of 100, which `fold_temperatures` keeps."""
    return math.exp(model.logit_scale.clamp(max=MAX_LOGIT_SCALE).item() - MAX_LOGIT_SCALE)


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
    model.forget_calibration()
    before = model.config.calibration or {}
    model.config.calibration = {
        "text_temperature": text * before.get("text_temperature", 1.0),
        "linear_temperature": linear * before.get("linear_temperature", 1.0),
    }


def least_probabilities(probabilities: np.ndarray, labels: np.ndarray, level: float) -> list[float]:
    """What each grade's probability must at least be, so that X-rays of that grade are held as often as `level` says.

    Split conformal prediction (Vovk et al. 2005), label-conditional (Vovk 2012, arXiv 1209.2673): for a grade with N
    X-rays the largest value that ceil((N + 1) level) of them reach. Where N is too small for that, no such promise can
    be made: the lowest of its X-rays then counts, or the value of all X-rays together, whichever is lower.

    Args:
        probabilities: (N, K). labels: (N,).
    """
    own = probabilities[np.arange(len(labels)), labels]
    of_all = _reached(own, level)
    of_all = 0.0 if of_all is None else of_all
    least = []
    for grade in range(probabilities.shape[1]):
        of_grade = own[labels == grade]
        reached = _reached(of_grade, level)
        least.append(float(min([of_all, *of_grade])) if reached is None else reached)
    return least


def _reached(values: np.ndarray, level: float) -> float | None:
    """The largest value that ceil((N + 1) level) of the N reach; None where N is too small."""
    rank = math.ceil((len(values) + 1) * level - 1e-9)
    return float(np.sort(values)[len(values) - rank]) if rank <= len(values) else None


def tenths_of_people(people: list[str]) -> Iterator[np.ndarray]:
    """Which X-rays, (N,) of bool, are of each tenth of the people in turn; X-rays of equal name are one person's.

    Raises:
        CalibrationError: fewer people than folds.
    """
    person = person_numbers(people)
    count = int(person.max()) + 1
    if count < FOLDS:
        raise CalibrationError(f"{count} people are too few to calibrate on: it takes at least {FOLDS}.")
    fold_of = np.empty(count, dtype=int)
    fold_of[np.random.default_rng(0).permutation(count)] = np.arange(count) % FOLDS
    for fold in range(FOLDS):
        yield fold_of[person] == fold


def cross_fitted_temperatures(logits: torch.Tensor, labels: torch.Tensor, people: list[str]) -> torch.Tensor:
    """The temperature of each X-ray, (N, 1), fitted on the logits (N, K) and labels (N,) of the other tenths' people.

    Raises:
        CalibrationError: fewer people than folds.
    """
    temperatures = torch.ones(len(labels), 1, dtype=torch.float64)
    for held in map(torch.from_numpy, tenths_of_people(people)):
        temperatures[held] = fit_temperature(logits[~held], labels[~held])
    return temperatures


def cross_fitted(
    logits: torch.Tensor,
    labels: torch.Tensor,
    people: list[str],
    level: float,
    temperature: float | None = None,
    lowest: float = _LOWEST,
) -> dict:
    """What calibration gives on people it was not fitted on: each tenth of the people by a fit on the others.

    Args:
        logits: (N, K). labels: (N,). people: N names; X-rays of equal name are one person's, and each unknown one is a
            person of its own.
        temperature: what logits are divided by; None: what each fit gives.
        lowest: what a fit may give at least.

    Returns:
        `probabilities` (N, K); `before` and `after` with `expected_calibration_error` (15 bins), `log_loss` and
        `brier`; `coverage`, `coverage_per_grade` and `mean_set_size` of the sets at `level`.

    Raises:
        CalibrationError: fewer people than folds.
    """
    probabilities = np.zeros(tuple(logits.shape))
    sets: list[tuple[int, ...]] = [()] * len(people)
    for held in tenths_of_people(people):
        rest = torch.from_numpy(~held)
        fitted = temperature or fit_temperature(logits[rest], labels[rest], lowest)
        calibrated = (logits.double() / fitted).softmax(-1).numpy()
        probabilities[held] = calibrated[held]
        least = least_probabilities(calibrated[~held], labels[rest].numpy(), level)
        found = likely_sets(torch.from_numpy(calibrated[held]), least)
        for place, grades_of_set in zip(np.flatnonzero(held), found, strict=True):
            sets[place] = grades_of_set
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


def least_by_level(probabilities: np.ndarray, labels: np.ndarray) -> dict[str, list[float]]:
    """For each of `LEVELS` the `least_probabilities` of its sets, from calibrated probabilities (N, K)."""
    return {f"{level:.2f}": least_probabilities(probabilities, labels, level) for level in LEVELS}


def describe(report: dict) -> str:
    """The report of `clip-koa calibrate` as lines to print."""
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
