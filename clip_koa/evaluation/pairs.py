"""Both knees of a person: who has two, what the grades become together, and whether that is better than each alone."""

from collections import defaultdict

import numpy as np
import torch
from datasets import Dataset

from clip_koa.evaluation.heads import Predictions, grading
from metrics.kl_grading.kl_grading import known_person
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa import CLIPKOAError
from modeling_clip_koa.calibration_clip_koa import PairPrior

# The head that grades are read from, and so the one whose probabilities are combined.
PAIRED_HEAD = "text_flip_averaged"


class NoPairsError(CLIPKOAError, ValueError):
    """A split in which nobody has two X-rays; the message says so."""


def find_pairs(people: list[str | None], sides: list[str] | None = None) -> np.ndarray:
    """Places of the two X-rays of each person who has just two, (P, 2), the one that comes first in the list first.

    A person of one X-ray, or of more (other visits), is in no pair.

    Args:
        people: N names; X-rays of equal name are one person's, and each unknown one is a person of its own.
        sides: N of "L", "R" or ""; where both are known and alike, the two are no pair.
    """
    places = defaultdict(list)
    for place, person in enumerate(people):
        if (name := known_person(person)) is not None:
            places[name].append(place)
    pairs = [two for two in places.values() if len(two) == 2]
    if sides is not None:
        pairs = [(one, other) for one, other in pairs if not sides[one] or sides[one] != sides[other]]
    return np.array(pairs, dtype=int).reshape(-1, 2)


def combine_pairs(probabilities: np.ndarray, pairs: np.ndarray, prior: PairPrior) -> np.ndarray:
    """Probabilities (N, K) of which those in `pairs` (P, 2) were combined; the others stay."""
    combined = np.array(probabilities, dtype=float)
    one, other = prior.combine(*(torch.from_numpy(combined[pairs[:, place]]) for place in (0, 1)))
    combined[pairs[:, 0]], combined[pairs[:, 1]] = one.numpy(), other.numpy()
    return combined


def compare_pairs(alone: np.ndarray, together: np.ndarray, labels: np.ndarray, people: list[str]) -> dict:
    """`compare_kl_gradings` of each knee alone, first, and of both of a person together, second; each (N, K)."""
    first, second = (
        {"predictions": probabilities.argmax(1).tolist(), "probabilities": probabilities}
        for probabilities in (alone, together)
    )
    return compare_kl_gradings(first, second, np.asarray(labels).tolist(), people)


def pairs_of_split(split: Dataset) -> np.ndarray:
    """`find_pairs` of a split of the `KneeXray` builder.

    Raises:
        NoPairsError: nobody in it has two X-rays.
    """
    pairs = find_pairs(list(split["person_id"]), list(split["laterality"]))
    if not len(pairs):
        raise NoPairsError("--pairs: nobody in the split has just two X-rays, one of each knee.")
    return pairs


def measure_pairs(predictions: Predictions, people: list[str], pairs: np.ndarray, prior: PairPrior) -> dict:
    """What a checkpoint's pair prior gives on a split, of the head that grades are read from.

    Args:
        predictions: of N X-rays, whose `people` (N) are.
        pairs: (P, 2), of `pairs_of_split`.

    Returns:
        `num_pairs`, `weight`, and the dictionary of `compare_kl_gradings`.
    """
    alone = grading(predictions, PAIRED_HEAD)["probabilities"]
    compared = compare_pairs(alone, combine_pairs(alone, pairs, prior), predictions.labels.numpy(), people)
    return {"num_pairs": len(pairs), "weight": prior.weight, **compared}
