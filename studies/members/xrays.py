"""The X-rays of a split, decoded once and held in memory, each with the key that member files know it by."""

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import numpy as np
import torch
from PIL import Image

from clip_koa.data.corpus import NEEDED_SPLITS
from clip_koa.data.soft_labels import xray_key
from clip_koa.evaluation.predictions import pseudonyms
from clip_koa.training.starting_points import IMAGENET_MEAN, IMAGENET_STD, build_image_processor
from dataset_script.knee_xray import CorpusError, load_knee_xray
from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import XrayPreprocessor


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


def load_splits(data_dir: str | None) -> dict[str, datasets.Dataset]:
    """The train and the validation split of a corpus, `data_dir` or the environment's KNEE_XRAY_DIR.

    Raises:
        CorpusError: no corpus, a damaged one, or one without these splits.
    """
    corpus = load_knee_xray(data_dir)
    missing = [split for split in NEEDED_SPLITS if split not in corpus]
    if missing:
        raise CorpusError(f"{data_dir or 'KNEE_XRAY_DIR'} has no {missing[0]} split: members need one.")
    return {split: corpus[split].cast_column("image", datasets.Image(decode=False)) for split in NEEDED_SPLITS}


def read_xrays(split: datasets.Dataset, image_size: int) -> Xrays:
    """Decodes a split of `load_splits`, each X-ray at `image_size` pixels a side.

    Raises:
        CorpusError: two X-rays of the same pixels, which one key can't tell apart.
    """
    gray = torch.empty(len(split), image_size, image_size, dtype=torch.uint8)
    preprocess = XrayPreprocessor(build_image_processor(image_size, IMAGENET_MEAN, IMAGENET_STD))
    keys = []
    for index, (key, image) in enumerate(_decode(split)):
        keys.append(key)
        gray[index] = torch.from_numpy(np.array(preprocess.square(image)))
    return Xrays(gray, torch.tensor(split["label"]), keys, _people(split))


def read_keys(split: datasets.Dataset) -> dict[str, str]:
    """By key of each X-ray of a split of `load_splits`, the pseudonym of whose it is.

    Raises:
        CorpusError: as `read_xrays`.
    """
    return dict(zip((key for key, _ in _decode(split)), _people(split), strict=True))


def _decode(split: datasets.Dataset) -> Iterator[tuple[str, Image.Image]]:
    """Each X-ray of a split, with its key."""
    files = {}
    for row in split:
        image = read_stored_image(row["image"])
        key = xray_key(image)
        if key in files:
            raise CorpusError(f"{row['file']} has the same pixels as {files[key]}: remove one of them.")
        files[key] = row["file"]
        yield key, image


def _people(split: datasets.Dataset) -> list[str]:
    return pseudonyms(list(split["file"]), list(split["person_id"]))
