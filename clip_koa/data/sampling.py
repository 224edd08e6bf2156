"""Which X-rays an epoch sees, and in which order."""

from collections.abc import Iterator, Sequence

import numpy as np
from torch.utils.data import Sampler

from clip_koa.data.randomness import stream


class EpochSampler(Sampler[int]):
    """Shuffled indices of an epoch, always `epoch_size` of them, which depend only on the seed and the epoch.

    So a resume, the number of processes and accumulation change nothing, and every batch is whole.

    Args:
        labels: the grade of each X-ray of the split, (N,).
        epoch_size: X-rays an epoch sees, at most N.
        balance: 0 draws every X-ray alike; 1 draws every grade alike often; between them a grade of share p is drawn
            in proportion to p^(1 - balance). An X-ray is seen again only after all others of its grade.
        seed: of the run.

    Raises:
        ValueError: an epoch size above N.
    """

    def __init__(self, labels: Sequence[int], epoch_size: int, balance: float, seed: int):
        if epoch_size > len(labels):
            raise ValueError(f"epoch_size={epoch_size} is more than the {len(labels)} X-rays of the split.")
        self.labels = np.asarray(labels)
        self.epoch_size, self.balance, self.seed = epoch_size, balance, seed
        self.epoch = 0

    def set_epoch(self, epoch: int) -> None:
        """Chooses the epoch of the next pass; the accelerator's loaders call it."""
        self.epoch = epoch

    def __len__(self) -> int:
        return self.epoch_size

    def __iter__(self) -> Iterator[int]:
        rng = stream("order", self.seed, self.epoch)
        if self.balance == 0:
            return iter(rng.permutation(len(self.labels))[: self.epoch_size].tolist())
        drawn = [self._cycled(grade, count) for grade, count in self.draws_per_grade()]
        return iter(rng.permutation(np.concatenate(drawn)).tolist())

    def draws_per_grade(self) -> list[tuple[int, int]]:
        """(grade, X-rays drawn of it in an epoch) for each grade that the split has; they add up to the epoch."""
        grades, counts = np.unique(self.labels, return_counts=True)
        weights = counts.astype(float) ** (1 - self.balance)
        bounds = np.rint(np.cumsum(weights) / weights.sum() * self.epoch_size).astype(int)
        return list(zip(grades.tolist(), np.diff(bounds, prepend=0).tolist(), strict=True))

    def _cycled(self, grade: int, count: int) -> np.ndarray:
        """`count` X-rays of a grade: going on, epoch after epoch, through one shuffled order after the other."""
        indices = np.flatnonzero(self.labels == grade)
        start = self.epoch * count
        rounds = range(start // len(indices), (start + count - 1) // len(indices) + 1) if count else ()
        shuffled = [stream("turns", self.seed, round, grade).permutation(indices) for round in rounds]
        line = np.concatenate([*shuffled, indices[:0]])
        return line[start % len(indices) :][:count]
