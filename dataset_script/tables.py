"""Graded X-rays in .csv tables, and what the cells of tables and of Parquet columns say."""

import csv
import math
import os
from collections.abc import Iterator, Set
from pathlib import Path, PurePosixPath
from typing import TextIO

from dataset_script.listing import Xray
from dataset_script.names import SPLIT_FOLDERS, CorpusError, GradeNames, how_to_map, short, split_of

EXPECTED = "Expected a .csv with the columns file,label and, where there are any, person_id,laterality,split."
_MAX_LINE = 1 << 20
# How tables write that there is nothing to say.
_NOTHING = {"", "nan", "none", "null", "na", "n/a", "<na>"}


def list_table(
    table: Path, file_column: str, names: GradeNames, split: str = "", data: Path | None = None
) -> dict[str, list[Xray]]:
    """X-rays of a .csv; files are relative to it.

    Columns: file (or file_name, as ImageFolder has it), label, and where there are any person_id, laterality, split.
    Without `split` it is told by the first folder of the file's name, and is train where that is none.

    Raises:
        CorpusError: a table that cannot be read or lacks a column, a file that is not there, or a cell.
    """
    splits, seen = {}, set()
    for line, row in read_table(table, {file_column, "label"}):
        place = f"{table} line {line}"
        name = (row.get(file_column) or "").strip()
        path = table.parent / name
        if not name or not os.path.isfile(path):
            raise CorpusError(f"{place}: there is no file {short(name)} in {table.parent}.")
        if path in seen:
            raise CorpusError(f"{place}: {short(name)} is there twice.")
        seen.add(path)
        laterality = laterality_of_cell(row.get("laterality"), place)
        told = split or _split_of_row(row, name, place)
        file = path.relative_to(data).as_posix() if data and path.is_relative_to(data) else name
        grade, person = grade_of_cell(row.get("label"), place, names), text_of_cell(row.get("person_id"))
        splits.setdefault(told, []).append(Xray(told, grade, file, path, None, person, laterality))
    if not splits:
        raise CorpusError(f"{table} names no X-rays.")
    return splits


def _split_of_row(row: dict, name: str, place: str) -> str:
    given = text_of_cell(row.get("split"))
    if given is None:
        parts = PurePosixPath(name).parts
        return (len(parts) > 1 and split_of(parts[0])) or "train"
    split = split_of(given)
    if split is None:
        known = ", ".join(name for names in SPLIT_FOLDERS.values() for name in names)
        raise CorpusError(f"{place}: split {short(given)} must be one of {known}.")
    return split


def read_table(table: Path, needed: Set[str]) -> Iterator[tuple[int, dict]]:
    """The rows of a .csv, with the numbers of their lines.

    Raises:
        CorpusError: it cannot be read, or lacks a column that is needed.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(_bounded_lines(file, table))
            missing = needed - set(reader.fieldnames or ())
            if missing:
                found = ", ".join(map(short, (reader.fieldnames or ())[:20])) or "nothing"
                raise CorpusError(f"{table} has no column {sorted(missing)[0]!r}, but {found}. {EXPECTED}")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{table} cannot be read as a UTF-8 .csv: {error}") from error


def _bounded_lines(file: TextIO, table: Path) -> Iterator[str]:
    number = 0
    while line := file.readline(_MAX_LINE):
        number += 1
        if len(line) == _MAX_LINE:
            raise CorpusError(
                f"{table} line {number} has {_MAX_LINE:,} characters or more: no row of X-rays is so long."
            )
        yield line


def text_of_cell(value) -> str | None:
    """What a cell says, as text; None where it is empty, or says that it is (None, NaN, "nan")."""
    if isinstance(value, float) and value.is_integer():
        value = int(value)  # numbers with gaps become floats
    text = "" if value is None else str(value).strip()
    return None if text.casefold() in _NOTHING else text


def laterality_of_cell(value, place: str) -> str | None:
    """L, R or None.

    Raises:
        CorpusError: another side.
    """
    laterality = (text_of_cell(value) or "").upper() or None
    if laterality not in ("L", "R", None):
        raise CorpusError(f"{place}: laterality {short(laterality)} must be L or R, or empty.")
    return laterality


def grade_of_cell(value, place: str, names: GradeNames) -> int:
    """A grade as a number, also as spreadsheets write whole ones ("2.0"), or by a name that tells it.

    Raises:
        CorpusError: no grade of 0 to 4, or a name that tells none or two.
    """
    text = value.strip() if isinstance(value, str) else value
    grade = names.grade(text) if isinstance(text, str) and text else None
    if grade is None and not isinstance(text, bool):
        try:
            number = float(text)
            grade = names.grade(str(int(number))) if math.isfinite(number) and number == int(number) else None
        except (TypeError, ValueError):
            pass
    if grade is None:
        hint = f" {how_to_map([text])}" if isinstance(text, str) and 0 < len(text) < 40 and text.isascii() else ""
        raise CorpusError(f"{place}: label {short(value)} must be a Kellgren-Lawrence grade, 0 to 4.{hint}")
    return grade
