"""The X-rays of a split, decoded once and held in memory, each with the key that member files know it by."""

import hashlib
from dataclasses import dataclass

import numpy as np
import torch
from datasets import Dataset, Image

from clip_koa.grading.predictions import pseudonyms
from dataset_script.knee_xray import CorpusError, load_knee_xray
from dataset_script.radiograph import read_stored_image


@dataclass
class Xrays:
    """The N X-rays of a split.

    `gray` (N, H, W) uint8, `labels` (N,) the grades, `keys` as `xray_key` gives them, `people` the pseudonyms of
    whose X-rays they are.
    """

    gray: torch.Tensor
    labels: torch.Tensor
    keys: list[str]
    people: list[str]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, chosen: np.ndarray) -> "Xrays":
        """Those at which `chosen` (N,) bool is true."""
        places = np.flatnonzero(chosen)
        return Xrays(
            self.gray[places], self.labels[places], [self.keys[i] for i in places], [self.people[i] for i in places]
        )

    @property
    def digest(self) -> str:
        """Tells other X-rays, grades or another order."""
        lines = (f"{key} {label}\n" for key, label in zip(self.keys, self.labels.tolist(), strict=True))
        return hashlib.sha256("".join(lines).encode()).hexdigest()


def xray_key(image) -> str:
    """SHA-256 of an X-ray's pixels, row by row, as `read_radiograph` gives them (a PIL image in mode L).

    Whatever keeps the pixels keeps the key: another name, another place, a lossless format.
    """
    return hashlib.sha256(image.tobytes()).hexdigest()


def load_splits(data_dir: str | None) -> dict[str, Dataset]:
    """The train and the validation split of a corpus, `data_dir` or the environment's KNEE_XRAY_DIR.

    Raises:
        CorpusError: no corpus, a damaged one, or one without these splits.
    """
    corpus = load_knee_xray(data_dir)
    for split in ("train", "validation"):
        if split not in corpus:
            raise CorpusError(
                f"{data_dir or 'KNEE_XRAY_DIR'} has no {split} split: members need train and validation."
            )
    return {split: corpus[split].cast_column("image", Image(decode=False)) for split in ("train", "validation")}


def read_xrays(split: Dataset, image_size: int) -> Xrays:
    """Decodes a split of `load_splits`, each X-ray at `image_size` pixels a side.

    Raises:
        CorpusError: two X-rays of the same pixels, which one key can't tell apart.
    """
    gray = torch.empty(len(split), image_size, image_size, dtype=torch.uint8)
    places = {}
    for index, row in enumerate(split):
        image = read_stored_image(row["image"])
        key = xray_key(image)
        if key in places:
            raise CorpusError(
                f"{row['file']} has the same pixels as {split[places[key]]['file']}: remove one of them."
            )
        places[key] = index
        if image.size != (image_size, image_size):
            image = image.resize((image_size, image_size), resample=3)
        gray[index] = torch.frombuffer(bytearray(image.tobytes()), dtype=torch.uint8).view(image_size, image_size)
    people = pseudonyms(list(split["file"]), list(split["person_id"]))
    return Xrays(gray, torch.tensor(split["label"]), list(places), people)
