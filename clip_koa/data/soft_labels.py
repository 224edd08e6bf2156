"""Labels that are shares of the grades, such as a teacher's, out of a file that knows X-rays by their pixels."""

import hashlib
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from datasets import Dataset, Image
from PIL import Image as Pictures
from tqdm.auto import tqdm

from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import GRADE_NAMES, CLIPKOAError

KEY = "xray"
SHARES = tuple(f"share_{grade}" for grade in range(len(GRADE_NAMES)))
_TOLERANCE = 1e-3  # of a sum of shares


class SoftLabelsError(CLIPKOAError, ValueError):
    """A file of soft labels that cannot be used; the message names it and what is wrong."""


def xray_key(image: Pictures.Image) -> str:
    """SHA-256 of an X-ray's pixels, row by row, as `read_radiograph` gives them (a PIL image in mode L).

    Whatever keeps the pixels keeps the key: another name, another place, a lossless format.
    """
    return hashlib.sha256(image.tobytes()).hexdigest()


def soft_label_table(keys: list[str], shares: np.ndarray) -> pa.Table:
    """The table of a file of soft labels, ordered by key, so that neighbours tell nothing.

    Args:
        keys: N of `xray_key`. shares: (N, K), rows add up to 1.
    """
    order = sorted(range(len(keys)), key=keys.__getitem__)
    columns = {name: pa.array(shares[order, grade], pa.float32()) for grade, name in enumerate(SHARES)}
    return pa.table({KEY: [keys[row] for row in order], **columns})


def read_soft_labels(path: str | Path, split: Dataset, show_progress: bool = True) -> torch.Tensor:
    """The soft labels of a split's X-rays, (N, K) fp32.

    Args:
        path: a Parquet file of `soft_label_table`; it may hold more X-rays than the split.
        split: of the `KneeXray` builder.

    Raises:
        SoftLabelsError: no such file, another kind of file, shares that are none, or X-rays that it does not hold.
    """
    try:
        table = pq.read_table(path, columns=[KEY, *SHARES])
    except (OSError, pa.ArrowException) as error:
        raise SoftLabelsError(
            f"data.soft_labels={path}: it is no Parquet file with the columns {KEY} and {SHARES[0]} to {SHARES[-1]} "
            "(`python -m studies.members teacher` writes one)."
        ) from error
    if not all(pa.types.is_floating(table.schema.field(name).type) for name in SHARES):
        raise SoftLabelsError(f"data.soft_labels={path}: it holds shares that are no numbers.")
    shares = np.stack([table[name].to_numpy() for name in SHARES], axis=1).astype(np.float64)
    wrong = ~((shares >= 0).all(1) & (np.abs(shares.sum(1) - 1) <= _TOLERANCE))  # NaN is wrong, too
    if wrong.any():
        row = int(np.flatnonzero(wrong)[0])
        raise SoftLabelsError(f"data.soft_labels={path}: the shares of row {row} do not add up to 1, each 0 or more.")
    places = {key: place for place, key in enumerate(table[KEY].to_pylist())}
    undecoded = split.cast_column("image", Image(decode=False))
    rows = tqdm(undecoded, desc="soft labels", unit="X-ray", disable=not show_progress)
    found = [places.get(xray_key(read_stored_image(row["image"]))) for row in rows]
    if missing := found.count(None):
        raise SoftLabelsError(
            f"data.soft_labels={path} lacks {missing} of the {len(found)} X-rays, such as "
            f"{split['file'][found.index(None)]}: it knows X-rays by their pixels, so give those that it was made of."
        )
    return torch.from_numpy((shares / shares.sum(1, keepdims=True))[found]).float()
