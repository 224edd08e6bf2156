"""How the grades of two knees go together: counted on training people, trusted as far as it helps on others."""

from collections import defaultdict

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from clip_koa.calibration.temperatures import FOLDS, assign_folds
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa import CalibrationError
from modeling_clip_koa.pairs_clip_koa import PairPrior

# People that each cell of the table is given besides those counted, so that no pair of grades is impossible.
_PSEUDO_COUNT = 0.5
_LARGEST_WEIGHT = 2.0


def find_pairs(people: list[str], sides: list[str] | None = None) -> np.ndarray:
    """Places of the two X-rays of each person who has just two, (P, 2), the one that comes first in the list first.

    A person of one X-ray, or of more (other visits), is in no pair.

    Args:
        people: N names; X-rays of equal name are one person's.
        sides: N of "L", "R" or ""; where both are known and alike, the two are no pair.
    """
    places = defaultdict(list)
    for place, person in enumerate(people):
        places[person].append(place)
    pairs = [two for two in places.values() if len(two) == 2]
    if sides is not None:
        pairs = [(one, other) for one, other in pairs if not sides[one] or sides[one] != sides[other]]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def count_joint(labels: np.ndarray, pairs: np.ndarray, num_grades: int) -> torch.Tensor:
    """The share of people whose knees have grades a and b, (K, K): symmetric, none of it 0.

    Raises:
        CalibrationError: no pair to count.
    """
    if not len(pairs):
        raise CalibrationError(
            "No person of the train split has two X-rays, so how their grades go together is not known."
        )
    counts = np.zeros((num_grades, num_grades))
    np.add.at(counts, tuple(np.asarray(labels)[pairs].T), 1)
    counts = (counts + counts.T) / 2 + _PSEUDO_COUNT
    return torch.from_numpy(counts / counts.sum())


def combine_pairs(probabilities: np.ndarray, pairs: np.ndarray, prior: PairPrior) -> np.ndarray:
    """Probabilities (N, K) of which those in `pairs` (P, 2) were combined; the others stay."""
    combined = np.array(probabilities, dtype=float)
    one, other = prior.combine(*(torch.from_numpy(combined[pairs[:, place]]) for place in (0, 1)))
    combined[pairs[:, 0]], combined[pairs[:, 1]] = one.numpy(), other.numpy()
    return combined


def fit_weight(probabilities: np.ndarray, labels: np.ndarray, pairs: np.ndarray, joint: torch.Tensor) -> float:
    """The weight under which the true grades (N,) of the pairs are likeliest, between 0 and 2."""
    true = np.asarray(labels)

    def log_loss(weight: float) -> float:
        combined = combine_pairs(probabilities, pairs, PairPrior(joint, weight))
        paired = pairs.ravel()
        return -float(np.log(combined[paired, true[paired]].clip(min=1e-12)).mean())

    return float(minimize_scalar(log_loss, bounds=(0, _LARGEST_WEIGHT), method="bounded").x)


def fit_pair_prior(
    probabilities: np.ndarray, labels: np.ndarray, people: list[str], joint: torch.Tensor
) -> tuple[PairPrior, dict]:
    """The prior, and what it gives on people that its weight was not fitted on.

    Args:
        probabilities: (N, K), calibrated, each knee seen alone. labels: (N,). people: N names.
        joint: of `count_joint`, from the train split.

    Returns:
        The prior, its weight fitted on all pairs; and `num_pairs` and the dictionary of `compare_kl_gradings`, each
        knee alone against both together, by weights fitted on the other nine tenths of the people.

    Raises:
        CalibrationError: no pair, or fewer people than folds.
    """
    pairs, labels = find_pairs(people), np.asarray(labels)
    if not len(pairs):
        raise CalibrationError(
            "No person of the split has two X-rays, so how far to trust their bond can't be fitted."
        )
    folds = assign_folds(people)
    combined = np.array(probabilities, dtype=float)
    for fold in range(FOLDS):
        held = folds[pairs[:, 0]] == fold
        prior = PairPrior(joint, fit_weight(probabilities, labels, pairs[~held], joint))
        combined = combine_pairs(combined, pairs[held], prior)
    prior = PairPrior(joint, fit_weight(probabilities, labels, pairs, joint))
    return prior, {"num_pairs": len(pairs), **compare_pairs(probabilities, combined, labels, people)}


def compare_pairs(alone: np.ndarray, together: np.ndarray, labels: np.ndarray, people: list[str]) -> dict:
    """`compare_kl_gradings` of each knee alone (N, K) and of both knees of a person together (N, K)."""
    first, second = (
        {"predictions": probabilities.argmax(1).tolist(), "probabilities": probabilities}
        for probabilities in (alone, together)
    )
    return compare_kl_gradings(first, second, labels.tolist(), people)
