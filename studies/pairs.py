"""Do a person's two knees help each other? How their grades go together, and what that gives on people left out.

    clip-koa evaluate --model models/clip-koa-small --data_dir FOLDER --output EVALUATION
    python -m studies.pairs --predictions EVALUATION/predictions_validation.jsonl --data_dir FOLDER

The bond is counted on the train split. How far to trust it is fitted on nine tenths of the people of the predictions,
and measured on the others. docs/studies.md says what was found.
"""

import argparse
import sys
from collections import defaultdict
from dataclasses import dataclass

import numpy as np
import torch
from scipy.optimize import minimize_scalar

from clip_koa.calibration.temperatures import FOLDS, assign_folds
from clip_koa.evaluation.comparison import describe_comparison
from clip_koa.evaluation.heads import HEADS, grading
from clip_koa.evaluation.predictions import read_predictions
from dataset_script.exit_status import main_of
from dataset_script.layouts import find_files, resolve_data_dir
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa import CalibrationError

# People that each cell of the table is given besides those counted, so that no pair of grades is impossible.
_PSEUDO_COUNT = 0.5
_LARGEST_WEIGHT = 2.0
_SUM_TOLERANCE = 1e-3


@dataclass(frozen=True)
class PairPrior:
    """How the grades of a person's two knees go together, as counted on training people, and how far to trust it.

    Attributes:
        joint: (K, K), share of people whose two knees have grades a and b; symmetric, all above 0, adds up to 1.
        weight: 0 leaves each knee alone; 1 takes what the X-rays show for independent, given the two grades.
    """

    joint: torch.Tensor
    weight: float

    def __post_init__(self):
        joint = self.joint
        if joint.ndim != 2 or joint.shape[0] != joint.shape[1] or not bool((joint > 0).all()):
            raise ValueError(f"joint is of shape {tuple(joint.shape)}: it must be (K, K), each share above 0.")
        if abs(joint.sum().item() - 1) > _SUM_TOLERANCE or not torch.allclose(joint, joint.T, atol=1e-6):
            raise ValueError("joint must be symmetric and add up to 1.")
        if not 0 <= self.weight <= 2:
            raise ValueError(f"weight={self.weight}: it must lie between 0 and 2.")

    def combine(self, one: torch.Tensor, other: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Probabilities of each knee's grades, given the X-rays of both.

        p(a, b) is proportional to p(a | x) p(b | y) (J(a, b) / (J(a) J(b)))^weight, and each knee's probabilities are
        its marginals. Which knee comes first makes no difference.

        Args:
            one, other: probabilities (..., K) of the two knees, each seen alone.

        Returns:
            The same, each seen with the other: (..., K) in double precision, adding up to 1.
        """
        joint = self.joint.double()
        share = joint.sum(0)
        lift = (joint / (share[:, None] * share)).pow(self.weight)
        one, other = one.double(), other.double()
        # By one formula for both, so that swapping the knees swaps the results to the bit.
        first, second = one * (other @ lift), other * (one @ lift)
        return first / first.sum(-1, keepdim=True), second / second.sum(-1, keepdim=True)


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


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints what the bond gives; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument(
        "--predictions", required=True, help="of clip-koa evaluate, on people of whom both knees are there"
    )
    parser.add_argument("--data_dir", help="the corpus whose train split is counted (default: KNEE_XRAY_DIR)")
    parser.add_argument("--head", choices=HEADS, default="text_flip_averaged")
    options = parser.parse_args(arguments)
    training = [
        xray for xray in find_files(resolve_data_dir(options.data_dir)).get("train", ()) if xray.person_id is not None
    ]
    people, labels = [xray.person_id for xray in training], np.array([xray.grade for xray in training])
    graded = read_predictions(options.predictions)
    probabilities = grading(graded.predictions, options.head)["probabilities"]
    joint = count_joint(labels, find_pairs(people), probabilities.shape[1])
    prior, report = fit_pair_prior(probabilities, graded.predictions.labels.numpy(), graded.people, joint)
    print("People per thousand by the grades of their two knees:")
    print("\n".join("  ".join(f"{share:5.0f}" for share in row) for row in (1000 * joint).tolist()))
    print(f"weight {prior.weight:.3f}, {report['num_pairs']} people; first: each knee alone, second: both together")
    print(describe_comparison(report))
    return 0


main = main_of("studies.pairs", run)


if __name__ == "__main__":
    sys.exit(main())
