"""The table that predict.py writes: a row for each X-ray, in its order, as CSV, JSON lines or Parquet."""

import csv
import json
import os
from collections.abc import Iterable, Iterator
from itertools import islice
from pathlib import Path

import pyarrow
import pyarrow.parquet

from clip_koa.grading.grader import GradedXray
from modeling_clip_koa import GRADE_LABELS

FORMATS = (".csv", ".jsonl", ".parquet")
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
    "laterality": pyarrow.string(),
    "inverted": pyarrow.bool_(),
    "atypicality": pyarrow.float64(),
    "warning": pyarrow.string(),
    "error": pyarrow.string(),
}
_ROWS_AT_ONCE = 1000


class GradeTableError(ValueError):
    """A table that cannot be written or gone on with; the message names the file and what would be right."""


def table_row(xray: GradedXray) -> dict:
    """A row of the table; of an X-ray that was not graded, only `file` and `error` are filled.

    `probability_*`, `expected_grade` (mean grade), `osteoarthritis_probability` (grade 2 and above) and `entropy`
    (nats) are of both views averaged. `set_low` and `set_high` bound the confidence set. `flip_agreement`: X-ray and
    mirror image alone would get the same grade. `inverted`: the X-ray was taken to show bone dark, and was inverted
    before it was graded. `atypicality`: share of unseen knees more like the training X-rays.
    """
    row = dict.fromkeys(COLUMNS) | {"file": xray.file, "error": xray.error or None}
    if xray.error:
        return row
    grade = xray.grade
    row |= {f"probability_{number}": value for number, value in enumerate(grade.probabilities)}
    return row | {
        "grade": grade.grade,
        "name": grade.name,
        "expected_grade": grade.expected_grade,
        "osteoarthritis_probability": grade.osteoarthritis_probability,
        "set_low": grade.confidence_set[0] if grade.confidence_set else None,
        "set_high": grade.confidence_set[-1] if grade.confidence_set else None,
        "flip_agreement": grade.flip_agreement,
        "entropy": grade.entropy,
        "laterality": xray.laterality or None,
        "inverted": grade.inverted,
        "atypicality": grade.atypicality,
        "warning": " ".join(xray.warnings) or None,
    }


_ABOUT = "clip_koa"  # the entry of a Parquet table's metadata that says what its rows depend on


def part_of(folder: Path, process: int, processes: int) -> Path:
    """The table that one of several processes writes into a folder, which together hold every X-ray once.

    Raises:
        GradeTableError: the folder has parts of another number of processes.
    """
    for part in folder.glob("*part-*-of-*"):
        if f"-of-{processes:05d}." not in part.name:
            raise GradeTableError(f"{part} is of another number of processes than {processes}: give another folder.")
    return folder / f"part-{process:05d}-of-{processes:05d}.parquet"


def check_part(part: Path, about: dict) -> None:
    """Holds what a part that is whole was made of against what it should be.

    Raises:
        GradeTableError: the part was made of something else.
    """
    found = (pyarrow.parquet.read_schema(part).metadata or {}).get(_ABOUT.encode(), b"").decode()
    if found != json.dumps(about):
        raise GradeTableError(f"{part} was made with {found or 'something else'}, now it is {json.dumps(about)}.")


def whole_parts(folder: Path) -> list[Path]:
    """The parts in a folder that are whole, each as `part_of` names it."""
    return sorted(folder.glob("part-*-of-*.parquet"))


def count_ungraded(part: Path) -> int:
    """How many X-rays of a part that is whole were not graded."""
    return pyarrow.parquet.ParquetFile(part).read(["grade"])["grade"].null_count


def share_of(count: int, process: int, processes: int) -> range:
    """The X-rays of `count` that one of several processes grades: neighbours, so that the parts keep the order."""
    return range(count * process // processes, count * (process + 1) // processes)


class GradeTable:
    """A table in the making. Rows are kept on disk as they come, so that a stopped run goes on where it was.

    Args:
        path: ending in one of `FORMATS`; it appears when the table is whole.
        about: what the rows depend on, such as the model; a table begun otherwise is not gone on with.

    Raises:
        GradeTableError: another ending, a table that is there already, or one that was begun with something else.
    """

    def __init__(self, path: str | Path, about: dict):
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise GradeTableError(f"--output {path}: its name must end in {', '.join(FORMATS)}.")
        if self.path.exists():
            raise GradeTableError(f"--output {path} exists: remove it or give another name.")
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.rows = self.path.with_name(f".{self.path.name}.rows")
        self.about = json.dumps(about)
        self.done = self._go_on() if self.rows.exists() else self._begin()

    def _begin(self) -> int:
        self.rows.write_text(self.about + "\n", encoding="utf-8")
        return 0

    def _go_on(self) -> int:
        """Cuts off a row that a kill left half-written; returns the number of whole ones."""
        whole, lines = 0, 0
        with open(self.rows, "rb+") as file:
            for line in file:
                if not line.endswith(b"\n"):
                    break
                if not lines and line.decode().rstrip("\n") != self.about:
                    raise GradeTableError(
                        f"{self.rows} was begun with {line.decode().strip()}, now it is {self.about}: remove it to "
                        "begin anew."
                    )
                whole, lines = whole + len(line), lines + 1
            file.truncate(whole)
        return lines - 1 if lines else self._begin()

    def add(self, rows: Iterable[dict]) -> None:
        """Adds rows, each a `table_row`."""
        with open(self.rows, "a", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in rows)

    def read(self) -> Iterator[dict]:
        """The rows so far."""
        with open(self.rows, encoding="utf-8") as file:
            next(file)
            for line in file:
                yield json.loads(line)

    def finish(self) -> Path:
        """Puts the whole table in its place."""
        temporary = self.path.with_name(f".{self.path.name}.writing")
        {".csv": self._write_csv, ".jsonl": self._write_lines, ".parquet": self._write_parquet}[self.path.suffix](
            temporary
        )
        os.replace(temporary, self.path)
        self.rows.unlink()
        return self.path

    def _write_csv(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(self.read())

    def _write_lines(self, path: Path) -> None:
        with open(path, "w", encoding="utf-8") as file:
            file.writelines(json.dumps(row) + "\n" for row in self.read())

    def _write_parquet(self, path: Path) -> None:
        schema = pyarrow.schema(COLUMNS, metadata={_ABOUT: self.about})
        rows = self.read()
        with pyarrow.parquet.ParquetWriter(path, schema) as writer:
            while some := list(islice(rows, _ROWS_AT_ONCE)):
                writer.write_table(pyarrow.Table.from_pylist(some, schema))
