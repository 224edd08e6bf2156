"""The corpus of a run: the X-rays it names, in any layout, or drawn ones."""

import re

from accelerate import Accelerator
from datasets import DatasetDict

from dataset_script.knee_xray import CorpusError, KneeXray

NEEDED_SPLITS = ("train", "validation")
_DRAWN = "synthetic:"


def is_drawn(corpus: str) -> bool:
    """Whether `corpus` asks for drawn X-rays, as `synthetic:40` does for those of 40 people."""
    return corpus.startswith(_DRAWN)


def _drawn_people(corpus: str) -> int:
    people = corpus.removeprefix(_DRAWN)
    if not re.fullmatch("[1-9][0-9]{0,8}", people):
        raise CorpusError(f"{corpus}: name a number of people, at least 1, such as {_DRAWN}40.")
    return int(people)


def load_corpus(corpus: str, accelerator: Accelerator, *, seed: int, drawn_size: int) -> DatasetDict:
    """Builds the corpus on the main process first, so that the others find it in the cache.

    Args:
        corpus: a folder, archive or table; `synthetic:40` for drawn X-rays of 40 people; empty: KNEE_XRAY_DIR's.
        seed: of the drawings.
        drawn_size: their side, in pixels.

    Raises:
        CorpusError: no corpus, a damaged one, one without train and validation, or no number of people to draw.
    """
    people = _drawn_people(corpus) if is_drawn(corpus) else 0
    with accelerator.main_process_first():
        if people:
            builder = KneeXray("synthetic", people=people, image_size=drawn_size, seed=seed)
        else:
            builder = KneeXray("folder", data_dir=corpus)
        builder.download_and_prepare()
        splits = builder.as_dataset()
    missing = [split for split in NEEDED_SPLITS if split not in splits]
    if missing:
        raise CorpusError(
            f"{corpus or 'KNEE_XRAY_DIR'} has no {missing[0]} split: training needs one. "
            "`python -m dataset_script.splitter` splits by person."
        )
    return splits
