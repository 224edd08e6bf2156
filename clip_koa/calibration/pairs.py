"""How the grades of a person's two knees go together: counted on training people, weighed on others, and measured.

docs/calibration.md says what calibration.json keeps of it, and what it gives.
"""

import numpy as np
import torch
from datasets import Dataset
from scipy.optimize import minimize_scalar

from clip_koa.calibration.temperatures import least_by_level, tenths_of_people
from clip_koa.evaluation.pairs import combine_pairs, compare_pairs, find_pairs
from modeling_clip_koa import CalibrationError
from modeling_clip_koa.calibration_clip_koa import PairPrior

# People that each cell of the table is given besides those counted, so that no pair of grades is impossible.
_PSEUDO_COUNT = 0.5
_LARGEST_WEIGHT = 2.0


def count_joint(labels: np.ndarray, pairs: np.ndarray, num_grades: int) -> torch.Tensor:
    """The share of people whose knees have grades a and b, (K, K): symmetric, none of it 0.

    Args:
        labels: (N,), grades. pairs: (P, 2), as `find_pairs` gives them.

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


def fit_weight(probabilities: np.ndarray, labels: np.ndarray, pairs: np.ndarray, joint: torch.Tensor) -> float:
    """The weight under which the true grades (N,) of the pairs are likeliest, between 0 and 2.

    Raises:
        CalibrationError: no pair to fit it on.
    """
    if not len(pairs):
        raise CalibrationError(
            "Too few people of the split have two X-rays: how far to trust their bond is fitted on some of them and "
            "measured on others."
        )
    true = np.asarray(labels)

    def log_loss(weight: float) -> float:
        combined = combine_pairs(probabilities, pairs, PairPrior(joint, weight))
        paired = pairs.ravel()
        return -float(np.log(combined[paired, true[paired]].clip(min=1e-12)).mean())

    return float(minimize_scalar(log_loss, bounds=(0, _LARGEST_WEIGHT), method="bounded").x)


def fit_pair_prior(
    probabilities: np.ndarray,
    labels: np.ndarray,
    people: list[str],
    joint: torch.Tensor,
    sides: list[str] | None = None,
) -> tuple[PairPrior, dict]:
    """The prior, and what it gives on people that its weight was not fitted on.

    Args:
        probabilities: (N, K), calibrated, each knee seen alone. labels: (N,).
        people, sides: see `find_pairs`.
        joint: of `count_joint`, from the train split.

    Returns:
        The prior, its weight fitted on all pairs; and `num_pairs` and the dictionary of `compare_kl_gradings`, each
        knee alone against both together, by weights fitted on the other nine tenths of the people.

    Raises:
        CalibrationError: no pair, all pairs in one tenth of the people, or fewer people than folds.
    """
    pairs, labels = find_pairs(people, sides), np.asarray(labels)
    if not len(pairs):
        raise CalibrationError(
            "No person of the split has two X-rays, so how far to trust their bond can't be fitted."
        )
    combined = np.array(probabilities, dtype=float)
    for tenth in tenths_of_people(people):
        held = tenth[pairs[:, 0]]
        prior = PairPrior(joint, fit_weight(probabilities, labels, pairs[~held], joint))
        combined = combine_pairs(combined, pairs[held], prior)
    prior = PairPrior(joint, fit_weight(probabilities, labels, pairs, joint))
    return prior, {"num_pairs": len(pairs), **compare_pairs(probabilities, combined, labels, people)}


def pairs_entry(training: Dataset, split: Dataset, probabilities: np.ndarray, people: list[str]) -> dict:
    """What `calibration.json` keeps under `pairs`, of which `pair_prior` makes a `PairPrior` again.

    Args:
        training: the train split, of which `label`, `person_id` and `laterality` are read.
        split: the one that is calibrated on; N X-rays.
        probabilities: (N, K), calibrated, each knee seen alone.
        people: N pseudonyms of `split`.

    Returns:
        `num_training_pairs`, `joint`, `weight`, `least_probabilities` of the combined sets, and
        `cross_fitted`, the comparison of `fit_pair_prior`. Nothing in it names a person.

    Raises:
        CalibrationError: nobody in one of the splits has two X-rays, or too few people or pairs.
    """
    counted = find_pairs(list(training["person_id"]), list(training["laterality"]))
    joint = count_joint(np.array(training["label"]), counted, probabilities.shape[1])
    labels, sides = np.array(split["label"]), list(split["laterality"])
    prior, compared = fit_pair_prior(probabilities, labels, people, joint, sides)
    pairs = find_pairs(people, sides)
    combined = combine_pairs(probabilities, pairs, prior)[pairs.ravel()]
    return {
        "num_training_pairs": len(counted),
        "joint": joint.tolist(),
        "weight": prior.weight,
        "least_probabilities": least_by_level(combined, labels[pairs.ravel()]),
        "cross_fitted": compared,
    }


def describe_pairs(entry: dict) -> str:
    """What `pairs_entry` gave, in a sentence."""
    compared = entry["cross_fitted"]
    gains = []
    for name, title in (("accuracy", "accuracy"), ("quadratic_weighted_kappa", "QWK"), ("log_loss", "log loss")):
        low, high = compared["intervals"][name] or (float("nan"),) * 2
        gains.append(f"{title} {compared['difference'][name]:+.4f} [{low:+.4f}, {high:+.4f}]")
    return (
        f"both knees of a person, weight {entry['weight']:.3f} of {compared['num_pairs']} people: {', '.join(gains)}"
    )
