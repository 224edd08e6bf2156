"""Every random draw of a training: each purpose, epoch and X-ray has a stream of its own.

Nothing is drawn from a state that a step before left behind. So what is drawn depends neither on the batch size, the
number of processes or workers, nor on a stop and a resume.
"""

import numpy as np

# A new purpose is added at the end: the place of a purpose is part of its streams.
PURPOSES = ("order", "turns", "augmentation", "flip", "drop path", "patch dropout", "variation", "view")
_WORD = 2**32


def stream(purpose: str, seed: int, epoch: int, index: int = 0) -> np.random.Generator:
    """The random numbers of one purpose, which no other purpose, seed, epoch or index has.

    Args:
        purpose: of `PURPOSES`: the order of an epoch; in which order the X-rays of a grade take turns; how an X-ray is
            augmented; whether it is mirrored; which blocks, and which patches, it goes without; how it is varied for
            typicality, and how a knee is shown as no frontal X-ray shows it.
        seed: of the run.
        epoch: of the training, from 0; of the turns, their round.
        index: of the X-ray in its split; of the turns, the grade.

    Raises:
        ValueError: another purpose, or a number below 0 or of more than 32 bits.
    """
    if purpose not in PURPOSES:
        raise ValueError(f"purpose={purpose!r}: use one of {', '.join(PURPOSES)}.")
    for name, number in (("seed", seed), ("epoch", epoch), ("index", index)):
        if not 0 <= number < _WORD:
            raise ValueError(f"{name}={number}: it must be at least 0 and below 2**32.")
    # Always four words of 32 bits: NumPy takes (1, 2) and (1, 2, 0) for the same key.
    return np.random.default_rng((PURPOSES.index(purpose), seed, epoch, index))
