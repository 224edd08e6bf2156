"""What is known of released weights and stands in no run folder: figures of the official test split, training's cost.

Kept under the digest of the weights, so that it is told of no others.
"""

import json
from dataclasses import dataclass, field
from pathlib import Path

from clip_koa.evaluation.loading import weights_digest

RECORDS = Path(__file__).parent / "templates" / "measured_apart.json"
# Lannelongue, Grealey & Inouye 2021, doi 10.1002/advs.202100707: what to assume of a machine that nobody metered.
WATTS_OF_CORE = 12.0
WATTS_OF_GIB = 0.3725
OVERHEAD = 1.67  # of a data centre: all that it draws over what its computers draw


@dataclass(frozen=True)
class TrainingCost:
    """How long training took on CPU cores, and what that is reckoned to have drawn."""

    minutes: tuple[float, ...]  # of each run
    cores: int
    memory_gib: float
    teachers: tuple[float, ...] = ()  # minutes of each model whose answers were taught

    @property
    def hours(self) -> float:
        """Of all runs together, those of the teachers too."""
        return sum(self.minutes + self.teachers) / 60

    @property
    def kilowatt_hours(self) -> float:
        """Runtime times the power of cores and memory times the data centre's overhead (Lannelongue et al. 2021)."""
        watts = self.cores * WATTS_OF_CORE + self.memory_gib * WATTS_OF_GIB
        return self.hours * watts * OVERHEAD / 1000


@dataclass(frozen=True)
class MeasuredApart:
    """What is known of some weights; both are empty where nothing is."""

    test: dict[str, dict[str, float]] = field(default_factory=dict)  # of each head the figures of the test split
    cost: TrainingCost | None = None


def measured_apart(folder: Path) -> MeasuredApart:
    """What is known of the weights in a model folder, out of `RECORDS`."""
    known = json.loads(RECORDS.read_text(encoding="utf-8")).get(weights_digest(str(folder)))
    if known is None:
        return MeasuredApart()
    cost = known["training"]
    minutes, teachers = tuple(cost["minutes"]), tuple(cost.get("teachers", ()))
    return MeasuredApart(known["test"], TrainingCost(minutes, cost["cores"], cost["memory_gib"], teachers))
