"""What `clip-koa calibrate` keeps beside the weights: rules of confidence sets, and how training X-rays look."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from .appearance_clip_koa import WAYS
from .preprocessing_clip_koa import CLIPKOAError
from .prompts_clip_koa import GRADE_MEANINGS
from .tensors_clip_koa import all_finite

if TYPE_CHECKING:
    from .configuration_clip_koa import CLIPKOAConfig

CALIBRATION_FILE = "calibration.json"
TYPICALITY_FILE = "typicality.safetensors"
# Images less like the training data than this share of knees that it was not trained on are taken for no knee.
ATYPICAL = 0.99
_OPTIONAL = ("bounds", "direction", "offset")  # of a typicality; a file has all of them or none
NO_PAIRS = (
    "This checkpoint keeps no pair prior: calibrate it anew (clip-koa calibrate --model FOLDER --data_dir XRAYS) with "
    "both knees of people in the train split and in the one that it is calibrated on."
)
_LARGEST_WEIGHT = 2.0
_SUM_TOLERANCE = 1e-3
# A limit is a probability that an X-ray had: a hair below, it has it by whatever runtime in fp32.
_HAIR = 1e-5
# Levels of confidence for which a calibrated checkpoint keeps what its sets need.
LEVELS = tuple(round(0.5 + step / 100, 2) for step in range(50))


class CalibrationError(CLIPKOAError, ValueError):
    """A calibration that is missing or cannot give what is asked; the message says what would be right."""


@dataclass(frozen=True)
class Typicality:
    """How like the training X-rays an image is: Mahalanobis distance of a block's patches (Lee et al. 2018).

    arXiv 1807.03888. Of both views, so that X-ray and mirror image are equally typical.

    Mean, covariance and distances are of X-rays that were varied as other machines and archives vary them, `bounds` of
    X-rays as they are. Along `direction` knees are told from such as no frontal X-ray shows, upside down or on their
    side: there distances grow. A file of an earlier version has none of these, and nothing in it was varied: so it
    cannot tell another machine's knee from what is no knee.
    """

    block: int  # of the vision tower, from 0, whose patch tokens are averaged
    mean: torch.Tensor  # (D,), over training X-rays
    precision: torch.Tensor  # (D, D), inverse of their covariance
    distances: torch.Tensor  # sorted distances of X-rays the model was not trained on
    bounds: torch.Tensor | None = None  # (W, 2), for each of `WAYS` the lowest and the highest that is usual
    direction: torch.Tensor | None = None  # (D,)
    offset: torch.Tensor | None = None  # (1,): along the direction, from here on distances grow

    def shares(self, features: torch.Tensor) -> list[float]:
        """For features (N, D) the share of the unseen X-rays that are more typical, each in 0..1."""
        return (torch.searchsorted(self.distances, self.measure(features)) / len(self.distances)).tolist()

    def measure(self, features: torch.Tensor) -> torch.Tensor:
        """Squared distances (N,) of features (N, D), times how far they lie on the other side of the direction."""
        features = features.double()
        centred = features - self.mean.double()
        distances = (centred @ self.precision.double() * centred).sum(-1)
        if self.direction is not None:
            distances = distances * (1 + (features @ self.direction.double() - self.offset.double()).clamp(min=0))
        return distances.float()


def mean_patch(tokens: torch.Tensor) -> torch.Tensor:
    """The mean patch token (V, D) of tokens (V, T, D); of both views averaged it is what `Typicality` takes."""
    return tokens[:, 1:].float().mean(1)


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
        if not 0 <= self.weight <= _LARGEST_WEIGHT:
            raise ValueError(f"weight={self.weight}: it must lie between 0 and {_LARGEST_WEIGHT:g}.")

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


def pair_prior(calibration: dict | None) -> PairPrior:
    """The pair prior that a checkpoint keeps in its calibration, under `pairs`.

    Args:
        calibration: as `read_calibration` gives it.

    Raises:
        CalibrationError: it keeps none, as when it was calibrated before there were any.
    """
    if not calibration or "pairs" not in calibration:
        raise CalibrationError(NO_PAIRS)
    pairs = calibration["pairs"]
    if len(pairs["joint"]) != len(GRADE_MEANINGS):
        raise ValueError(f"joint is of {len(pairs['joint'])} grades: it must be of {len(GRADE_MEANINGS)}.")
    return PairPrior(torch.tensor(pairs["joint"], dtype=torch.float64), float(pairs["weight"]))


SetRule = Callable[[torch.Tensor], list[tuple[int, ...]]]  # probabilities (N, K) -> N sets of neighbouring grades


def likely_sets(probabilities: torch.Tensor, least: Sequence[float]) -> list[tuple[int, ...]]:
    """For each row of (N, K) the grades whose probability is at least `least` (K,), and those between them.

    Sets of least ambiguity with a bound for each class (Sadinle et al. 2019, arXiv 1609.00451). The likeliest grade is
    always in, and what lies between two grades of a set is filled in, as grades are ordered and a reader understands
    "2 to 3"; both can only add to what a set holds.
    """
    taken = probabilities.double() >= torch.tensor(least, dtype=torch.float64, device=probabilities.device) - _HAIR
    taken.scatter_(1, probabilities.argmax(1, keepdim=True), True)
    first = taken.int().argmax(1)
    last = taken.shape[1] - 1 - taken.flip(1).int().argmax(1)
    return [tuple(range(low, high + 1)) for low, high in zip(first.tolist(), last.tolist(), strict=True)]


def grown_sets(probabilities: torch.Tensor, threshold: float) -> list[tuple[int, ...]]:
    """For each row of (N, K) the interval that grows from the likeliest grade while its probability is small enough.

    It takes in the likelier neighbour until the next one would bring its probability above the threshold. Sets of
    checkpoints that were calibrated before `least_probabilities` were kept.
    """
    count, grades = probabilities.shape
    padded = torch.nn.functional.pad(probabilities.double(), (1, 1), value=-1.0)  # a neighbour outside never joins
    rows = torch.arange(count, device=probabilities.device)
    low = high = probabilities.argmax(1) + 1
    mass = padded[rows, low]
    grown = [(low, high)]
    sizes = torch.ones_like(rows)
    for _ in range(grades - 1):
        down = padded[rows, low - 1] > padded[rows, high + 1]
        low, high = torch.where(down, low - 1, low), torch.where(down, high, high + 1)
        mass = mass + padded[rows, torch.where(down, low, high)]
        sizes += mass <= threshold + 1e-9  # a hair above, so that an interval whose mass is the threshold is taken
        grown.append((low, high))
    lows, highs = (torch.stack(edges, dim=1)[rows, sizes - 1] - 1 for edges in zip(*grown, strict=True))
    return [tuple(range(low, high + 1)) for low, high in zip(lows.tolist(), highs.tolist(), strict=True)]


def read_calibration(name: str, **hub_arguments) -> dict | None:
    """What `CALIBRATION_FILE` of a checkpoint holds; None where there is none.

    `set_rule` makes rules of it. One that was calibrated with people of two knees keeps `pairs` besides: `pair_prior`
    reads their `joint` and `weight`, and `set_rule` the rest.

    Args:
        name: model folder or Hub id.
        **hub_arguments: for a Hub id, such as `revision`.

    Raises:
        CalibrationError: a damaged file.
    """
    found = file_beside(name, CALIBRATION_FILE, **hub_arguments)
    if found is None:
        return None
    try:
        calibration = json.loads(found.read_text(encoding="utf-8"))
        kept = {"": calibration}
        if "pairs" in calibration:
            pair_prior(calibration)
            kept["pairs, "] = calibration["pairs"]
        limits = [
            (f"{of}{key}", limit)
            for of, part in kept.items()
            for key, value in _limits(part).items()
            for limit in (value if isinstance(value, list) else [value])
        ]
        wrong = [(key, limit) for key, limit in limits if not (math.isfinite(float(limit)) and float(limit) >= 0)]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CalibrationError(f"{found} is damaged ({type(error).__name__}): run clip-koa calibrate anew.") from error
    if wrong:
        key, limit = wrong[0]
        raise CalibrationError(f"{found} is damaged (the threshold of {key} is {limit}): run clip-koa calibrate anew.")
    return calibration


def _limits(kept: dict) -> dict[str, float | list[float]]:
    """By level, what a grade's probability must at least be; or the threshold of `grown_sets`.

    Raises:
        KeyError, TypeError, ValueError: there is no such thing.
    """
    if "least_probabilities" not in kept:
        return {key: float(value) for key, value in kept["thresholds"].items()}
    limits = kept["least_probabilities"]
    for value in limits.values():
        if not isinstance(value, list) or len(value) != len(GRADE_MEANINGS):
            raise ValueError("not one for each grade")
    return limits


def set_rule(calibration: dict, level: float) -> SetRule:
    """The rule of the sets that hold the true grade as often as `level` says.

    Args:
        calibration: as `read_calibration` gives it, or its `pairs`.

    Raises:
        CalibrationError: a level for which none is kept.
    """
    limits = _limits(calibration)
    if f"{level:.2f}" not in limits or not math.isclose(level, round(level, 2)):
        raise CalibrationError(f"level {level}: use one of {LEVELS[0]:.2f}, {LEVELS[1]:.2f} ... {LEVELS[-1]:.2f}.")
    limit = limits[f"{level:.2f}"]
    return partial(likely_sets, least=limit) if isinstance(limit, list) else partial(grown_sets, threshold=limit)


def read_typicality(name: str, config: CLIPKOAConfig | None = None, **hub_arguments) -> Typicality | None:
    """What a checkpoint knows of its training X-rays; None where it was never calibrated with them at hand.

    Args:
        name: model folder or Hub id.
        config: of its model, which it must fit.
        **hub_arguments: for a Hub id, such as `revision`.

    Raises:
        CalibrationError: a damaged file, or another model's.
    """
    found = file_beside(name, TYPICALITY_FILE, **hub_arguments)
    if found is None:
        return None
    try:
        with safe_open(found, framework="pt") as file:
            tensors = {key: file.get_tensor(key) for key in ("mean", "precision", "distances")}
            if "bounds" in file.keys():  # noqa: SIM118
                tensors |= {key: file.get_tensor(key) for key in _OPTIONAL}
            typicality = Typicality(block=int(file.metadata()["block"]), **tensors)
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise CalibrationError(f"{found} is damaged ({type(error).__name__}): run clip-koa calibrate anew.") from error
    if wrong := _fault(typicality, config):
        raise CalibrationError(f"{found} is damaged ({wrong}): run clip-koa calibrate anew.")
    return typicality


def _fault(typicality: Typicality, config: CLIPKOAConfig | None) -> str:
    """What is wrong with it, in itself or for a model; empty where nothing is."""
    mean, precision, distances = typicality.mean, typicality.precision, typicality.distances
    width = len(mean) if mean.ndim == 1 else 0
    if not width or precision.shape != (width, width) or distances.ndim != 1 or not len(distances):
        return "its tensors do not fit each other"
    shapes = {"bounds": (len(WAYS), 2), "direction": (width,), "offset": (1,)}
    optional = {key: found for key in _OPTIONAL if (found := getattr(typicality, key)) is not None}
    if any(found.shape != shapes[key] for key, found in optional.items()):
        return "its tensors are not those that this version writes"
    tensors = (mean, precision, distances, *optional.values())
    if not all(tensor.is_floating_point() and all_finite(tensor) for tensor in tensors):
        return "it holds values that are no finite numbers"
    if (distances.diff() < 0).any():
        return "its distances are not sorted"
    if "bounds" in optional and (typicality.bounds.diff() < 0).any():
        return "its bounds are crossed"
    if config is None:
        return ""
    vision = config.vision_config
    if width != vision.hidden_size or not 0 <= typicality.block < vision.num_hidden_layers:
        return f"block {typicality.block} of width {width} is not in this model"
    return ""


def typicality_file(typicality: Typicality) -> bytes:
    """The content of `TYPICALITY_FILE`."""
    tensors = {name: getattr(typicality, name) for name in ("mean", "precision", "distances", *_OPTIONAL)}
    tensors = {name: tensor.contiguous() for name, tensor in tensors.items() if tensor is not None}
    return save(tensors, metadata={"block": str(typicality.block)})


def file_beside(name: str, file: str, subfolder: str = "", **hub_arguments) -> Path | None:
    """A file of a model folder or Hub repository; None where it has none."""
    found = Path(name, subfolder, file)
    if not Path(name).is_dir():
        from transformers.utils import cached_file  # here: a folder is graded without transformers

        found = cached_file(
            name, file, subfolder=subfolder, _raise_exceptions_for_missing_entries=False, **hub_arguments
        )
    return Path(found) if found and Path(found).is_file() else None
