"""Member files: what a member said of the X-rays that it never saw, one small Parquet file each."""

import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_koa.files import write_file
from metrics.kl_grading.kl_grading import NUM_GRADES
from studies.xrays import Xrays

FOLDER = Path(__file__).parent / "members"
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
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    path.parent.mkdir(parents=True, exist_ok=True)
    return write_file(path, buffer.getvalue())
