"""Member files: what a member said of the X-rays that it never saw, one small Parquet file each."""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_koa.files import write_file
from metrics.kl_grading.kl_grading import NUM_GRADES
from studies.members.networks import StudyError
from studies.members.xrays import Xrays

FOLDER = Path(__file__).parent
VIEWS = ("image", "mirror")
_METADATA = b"member"


def member_table(parts: list[tuple[str, int | None, Xrays, torch.Tensor]], settings: dict) -> pa.Table:
    """The rows of a member file, ordered by key, so that neighbours tell nothing.

    Args:
        parts: of each split its name, the fold of its X-rays (None in validation), the N X-rays, and the member's
            probabilities (N, 2, 5) for them and their mirror images.
        settings: what the member is; kept as JSON in the file's metadata.
    """
    rows = []
    for split, fold, xrays, probabilities in parts:
        for key, grade, values in zip(
            xrays.keys, xrays.labels.tolist(), probabilities.flatten(1).tolist(), strict=True
        ):
            rows.append((key, split, fold, grade, *values))
    columns = list(zip(*sorted(rows, key=lambda row: row[0]), strict=True))
    schema = member_schema().with_metadata({_METADATA: json.dumps(settings).encode()})
    return pa.table(
        [pa.array(column, field.type) for column, field in zip(columns, schema, strict=True)], schema=schema
    )


def member_schema() -> pa.Schema:
    """The columns of a member file."""
    return pa.schema(
        [
            ("xray", pa.string()),
            ("split", pa.string()),
            ("fold", pa.int8()),
            ("grade", pa.int8()),
            *((f"{view}_{grade}", pa.float32()) for view in VIEWS for grade in range(NUM_GRADES)),
        ]
    )


def write_member_file(path: Path, table: pa.Table) -> Path:
    """Writes a member file, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, parquet_bytes(table))


def parquet_bytes(table: pa.Table) -> bytes:
    """A Parquet file's content."""
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd", use_dictionary=False)  # no two numbers are the same
    return buffer.getvalue()


@dataclass(frozen=True)
class Member:
    """What a member file holds.

    `name` and `family` of the member; by row `keys` of the X-rays, `splits`, `grades`, and `probabilities` (N, 2, 5)
    for the X-ray and its mirror image.
    """

    name: str
    family: str
    keys: list[str]
    splits: list[str]
    grades: list[int]
    probabilities: np.ndarray

    def rows_of(self, split: str) -> Iterator[tuple[str, int, np.ndarray]]:
        """Key, grade and probabilities (5,), the mean over both views, of each X-ray of a split."""
        rows = zip(self.keys, self.splits, self.grades, self.probabilities.mean(axis=1), strict=True)
        return ((key, grade, values) for key, where, grade, values in rows if where == split)


def read_members(folder: Path) -> list[Member]:
    """Reads all member files of a folder, by name.

    Raises:
        StudyError: no member file, or a file that is none.
    """
    members = [_read_member(path) for path in sorted(folder.glob("*.parquet"))]
    if not members:
        raise StudyError(f"{folder} holds no member file: `python -m studies.members train` writes one.")
    return members


def _read_member(path: Path) -> Member:
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise StudyError(f"{path} is damaged or no Parquet file: {error}") from error
    if not table.schema.equals(member_schema()) or _METADATA not in (table.schema.metadata or {}):
        raise StudyError(f"{path} is no member file: it must hold {', '.join(member_schema().names)}.")
    columns = table.to_pydict()
    if len(set(columns["xray"])) < table.num_rows:
        raise StudyError(f"{path} holds an X-ray more than once: write it anew with `train --resume`.")
    values = [columns[f"{view}_{grade}"] for view in VIEWS for grade in range(NUM_GRADES)]
    probabilities = np.array(values).T.reshape(-1, len(VIEWS), NUM_GRADES)
    settings = json.loads(table.schema.metadata[_METADATA])
    return Member(
        settings["name"], settings["family"], columns["xray"], columns["split"], columns["grade"], probabilities
    )
