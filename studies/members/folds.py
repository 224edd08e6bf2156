"""Which fifth of the people a member leaves out."""

from collections.abc import Sequence

import numpy as np


def assign_folds(people: Sequence[str], labels: Sequence[int], count: int, seed: int = 0) -> np.ndarray:
    """The fold of each X-ray, by person and stratified by the grades of the person's X-rays.

    The people of each stratum are shuffled and dealt out in turn, each stratum from where the one before it ended. So
    folds differ by one person at most, in each stratum and in all. The order of the X-rays changes nothing.
    (`split_by_person` balances the grades one by one, for shares of any size, but not who has which two.)

    Args:
        people: whose X-ray it is, N names.
        labels: the grades, N.
        count: of folds.
        seed: of the shuffling.

    Returns:
        (N,) int, 0 to `count` - 1.

    Raises:
        ValueError: fewer people than folds.
    """
    grades = {}
    for person, label in zip(people, labels, strict=True):
        grades.setdefault(person, []).append(int(label))
    if len(grades) < count:
        raise ValueError(f"{count} folds of {len(grades)} people: each fold needs a person at least.")
    strata = {}
    for person in sorted(grades):
        strata.setdefault(tuple(sorted(grades[person])), []).append(person)
    generator = np.random.default_rng(seed)
    dealt = [person for stratum in sorted(strata) for person in generator.permutation(strata[stratum]).tolist()]
    fold = {person: place % count for place, person in enumerate(dealt)}
    return np.array([fold[person] for person in people])
