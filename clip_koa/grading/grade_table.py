"""The table that `clip-koa grade` writes: a row for each X-ray, in its order, as CSV, JSON lines or Parquet."""

import csv
import json
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from clip_koa.files import as_text
from clip_koa.grading.grader import GradedXray
from modeling_clip_koa import GRADE_LABELS, CLIPKOAError

FORMATS = (".csv", ".jsonl", ".parquet")
EDGES = ("left", "top", "right", "bottom")
COLUMNS = {
    "file": pyarrow.string(),
    "grade": pyarrow.int8(),
    "name": pyarrow.string(),
    **{f"probability_{grade}": pyarrow.float64() for grade in range(len(GRADE_LABELS))},
    "expected_grade": pyarrow.float64(),
    "osteoarthritis_probability": pyarrow.float64(),
    "set_low": pyarrow.int8(),
    "set_high": pyarrow.int8(),
    "flip_agreement": pyarrow.bool_(),
    "entropy": pyarrow.float64(),
    "combined": pyarrow.bool_(),
    **{f"single_probability_{grade}": pyarrow.float64() for grade in range(len(GRADE_LABELS))},
    "paired_with": pyarrow.string(),
    "laterality": pyarrow.string(),
    "laterality_assumed": pyarrow.bool_(),
    **{f"box_{edge}": pyarrow.int64() for edge in EDGES},
    "inverted": pyarrow.bool_(),
    "atypicality": pyarrow.float64(),
    "ways": pyarrow.string(),
    "warning": pyarrow.string(),
    "error": pyarrow.string(),
    "file_bytes": pyarrow.int64(),
    "file_modified": pyarrow.string(),
    "made_by": pyarrow.string(),
}
# Who gives a name with such an ending does not mean a folder.
_OTHER_TABLES = (*FORMATS, ".json", ".tsv", ".txt", ".xls", ".xlsx")
_ROWS_AT_ONCE = 1000


class GradeTableError(CLIPKOAError, ValueError):
    """A table that cannot be written or gone on with; the message names the file and what would be right."""


def table_row(xray: GradedXray) -> dict:
    """A row of the table; of an X-ray that could not be read, only `file` and `error` are filled.

    An image that has no KL grade has its reason in `error`, and besides only what is known of it without a grade.

    Both are written by `as_text`, so that a name of any bytes is one cell and can be found again. The last three
    columns are left to `GrowingTable`: size and time of the file that was graded, and what graded it.

    `probability_*`, `expected_grade` (mean grade), `osteoarthritis_probability` (grade 2 and above) and `entropy`
    (nats) are of both views averaged. `set_low` and `set_high` bound the confidence set. `flip_agreement`: X-ray and
    mirror image alone would get the same grade. `combined`: grade and probabilities are of both knees of the person
    together, and `single_probability_*` the knee's own. `paired_with`: the file with the person's other knee.
    `laterality_assumed`: the knee's side is only that of films as they are usually shown. `box_*` bound the knee that
    was found, in pixels of the upright X-ray. `inverted`: the X-ray was taken to show bone dark, and was inverted
    before it was graded. `atypicality`: share of unseen knees more like the training X-rays. `ways`: codes, a blank
    between them, of how the X-ray was taken or stored otherwise than those.
    """
    row = dict.fromkeys(COLUMNS) | {"file": as_text(xray.file), "error": as_text(xray.reason) or None}
    row["paired_with"] = as_text(xray.paired_with) or None
    if xray.grade is None:
        return row
    grade = xray.grade
    row |= {
        "laterality": xray.laterality or None,
        "laterality_assumed": grade.side_assumed,
        **(dict(zip((f"box_{edge}" for edge in EDGES), grade.box, strict=True)) if grade.box else {}),
        "inverted": grade.inverted,
        "atypicality": grade.atypicality,
        "ways": " ".join(grade.ways) or None,
    }
    if xray.reason:
        return row
    row |= {f"probability_{number}": value for number, value in enumerate(grade.probabilities)}
    row |= {f"single_probability_{number}": value for number, value in enumerate(grade.single_probabilities)}
    return row | {
        "grade": grade.grade,
        "name": grade.name,
        "expected_grade": grade.expected_grade,
        "osteoarthritis_probability": grade.osteoarthritis_probability,
        "set_low": grade.confidence_set[0] if grade.confidence_set else None,
        "set_high": grade.confidence_set[-1] if grade.confidence_set else None,
        "flip_agreement": grade.flip_agreement,
        "entropy": grade.entropy,
        "combined": grade.combined,
        "warning": " ".join(xray.warnings) or None,
    }


_ABOUT = "clip_koa"  # the entry of a Parquet table's metadata that says which inputs it is of


def write_rows(path: Path, kind: str, rows: Iterable[dict], about: str = "") -> None:
    """Writes a table of one of the `FORMATS`, row by row.

    Args:
        about: kept by a Parquet table beside its rows.
    """
    if kind == ".parquet":
        rows = iter(rows)
        with pyarrow.parquet.ParquetWriter(path, pyarrow.schema(COLUMNS, metadata={_ABOUT: about})) as writer:
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pyarrow.Table.from_pylist(some, writer.schema))
        return
    with open(path, "w", encoding="utf-8", newline="") as file:
        if kind == ".csv":
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(rows)
        else:
            file.writelines(json.dumps(row) + "\n" for row in rows)


def read_rows(path: Path, kind: str) -> Iterator[dict]:
    """The rows of a table as `write_rows` wrote them, one after the other.

    Raises:
        GradeTableError: other columns, or a row that this version does not write.
    """
    number = 0
    try:
        for row in _READERS[kind](path):
            if row.keys() != COLUMNS.keys():
                raise ValueError("its columns are others")
            number += 1
            yield row
    except (ValueError, LookupError, TypeError, AttributeError, OSError, csv.Error, pyarrow.ArrowException) as error:
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise GradeTableError(
            f"{as_text(path)} is no table that this version wrote (after row {number}: {reason}): give another name."
        ) from error


def _read_csv(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8", newline="") as file:
        reader = csv.DictReader(file)
        if reader.fieldnames != list(COLUMNS):
            raise ValueError("its columns are others")
        for row in reader:
            yield {name: _CELLS[COLUMNS[name]](cell) if cell else None for name, cell in row.items()}


def _read_lines(path: Path) -> Iterator[dict]:
    with open(path, encoding="utf-8") as file:
        yield from map(json.loads, file)


def _read_parquet(path: Path) -> Iterator[dict]:
    with pyarrow.parquet.ParquetFile(path) as table:
        if table.schema_arrow.names != list(COLUMNS):
            raise ValueError("its columns are others")
        for batch in table.iter_batches(_ROWS_AT_ONCE):
            yield from batch.to_pylist()


_READERS = {".csv": _read_csv, ".jsonl": _read_lines, ".parquet": _read_parquet}
# What a CSV cell of each type holds.
_CELLS = {
    pyarrow.string(): str,
    pyarrow.int8(): int,
    pyarrow.int64(): int,
    pyarrow.float64(): float,
    pyarrow.bool_(): {"True": True, "False": False}.__getitem__,
}


def table_at(output: Path) -> Path:
    """The table that is meant by a name, which in a folder is `grades.parquet`.

    Raises:
        GradeTableError: the name is that of another file, or the folder has parts that an earlier version wrote.
    """
    if output.suffix in FORMATS:
        return output
    is_missing = not output.exists()
    if output.suffix.lower() in _OTHER_TABLES if is_missing else not output.is_dir():
        raise GradeTableError(
            f"--output {as_text(output)}: a table ends in {', '.join(FORMATS)}; any other name is a folder's."
        )
    if part := next(output.glob("part-*-of-*.parquet"), None):
        raise GradeTableError(f"{as_text(part)} is a part, as earlier versions wrote them: give another folder.")
    return output / "grades.parquet"


def read_about(table: Path) -> str:
    """What a Parquet table says of its inputs; empty where it is not there, or says nothing."""
    try:
        return (pyarrow.parquet.read_schema(table).metadata or {}).get(_ABOUT.encode(), b"").decode()
    except (FileNotFoundError, pyarrow.ArrowException):
        return ""


def rows_of(table: Path) -> Path:
    """The hidden file beside a table that keeps the rows of a run on its way."""
    return table.with_name(f".{table.name}.rows")
