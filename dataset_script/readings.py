"""Readings: the grades that readers gave to the knees of films, out of a study's table.

The table of the Osteoarthritis Initiative (kxr_sq_bu00.txt and its later visits, as text or .sas7bdat) is known as it
comes. Of other studies a .csv with the columns person, side, grade, and file or visit will do.
"""

import csv
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from dataset_script.names import GRADES, CorpusError, short

CENTRAL_READING = "15"  # the OAI's reading project of all films by the same readers
COLUMNS = ("person", "side", "grade", "visit", "file", "barcode")
_SIDES = {"1": "R", "r": "R", "right": "R", "2": "L", "l": "L", "left": "L"}
_OAI_GRADE = re.compile(r"v(\d\d)xrkl", re.IGNORECASE)
_OAI_BARCODE = re.compile(r"v(\d\d)barcdbu", re.IGNORECASE)
_LARGEST = 1 << 28  # bytes of a table; the OAI's largest is a hundredth of it


@dataclass(frozen=True, slots=True)
class Reading:
    """The grade of one knee at one visit.

    `side` is L or R; `visit`, `file` and `barcode` are "" where the table does not tell them; `place` says where in
    the table it stands.
    """

    person: str
    side: str
    grade: int
    visit: str = ""
    file: str = ""
    barcode: str = ""
    place: str = ""

    @property
    def knee(self) -> tuple[str, str, str, str]:
        """What tells the knee from all others: person, side, visit and, where no visit is known, the film."""
        return self.person, self.side, self.visit, "" if self.visit else self.file or self.barcode


@dataclass
class Readings:
    """The readings that can be used, and for every other row of the table why it can't."""

    used: list[Reading] = field(default_factory=list)
    left_out: list[tuple[str, str]] = field(default_factory=list)  # place in the table, reason


def read_readings(
    tables: Iterable[str | Path], columns: Mapping[str, str] | None = None, project: str = CENTRAL_READING
) -> Readings:
    """The readings of one or more tables.

    A knee that was read twice alike counts once; read twice with different grades, it is left out. Both are told.

    Args:
        tables: text with fields parted by |, commas, semicolons or tabs, or .sas7bdat.
        columns: what the table calls `COLUMNS`, where it calls them otherwise.
        project: the reading project (READPRJ) of an OAI table; others are left out.

    Raises:
        CorpusError: a table that cannot be read, or lacks a column; the message names it.
    """
    found = Readings()
    by_knee: dict[tuple, list[Reading]] = {}
    for table in map(Path, tables):
        rows = _read_rows(table)
        header = next(rows)
        read_row = _oai_reader(header, project) or _plain_reader(table, header, columns or {})
        for place, row in rows:
            try:
                reading = read_row(place, row)
            except _RowError as error:
                found.left_out.append((place, str(error)))
            else:
                by_knee.setdefault(reading.knee, []).append(reading)
    for readings in by_knee.values():
        first, *others = readings
        grades = sorted({reading.grade for reading in readings})
        if len(grades) > 1:
            reason = f"the knee was read as {' and '.join(f'KL{grade}' for grade in grades)}"
            found.left_out += [(reading.place, f"{reason}, so neither is taken") for reading in readings]
            continue
        found.used.append(first)
        found.left_out += [(other.place, f"the knee was read alike at {first.place}") for other in others]
    return found


class _RowError(CorpusError):
    """Why a row of a table is no reading that can be used."""


def _oai_reader(header: list[str], project: str):
    """Reads rows of an OAI table; None where the table is another."""
    place = {name.casefold(): index for index, name in enumerate(header)}
    grades = {match[1]: index for index, name in enumerate(header) if (match := _OAI_GRADE.fullmatch(name))}
    if not ({"id", "side"} <= set(place) and len(grades) == 1):
        return None
    barcodes = [index for index, name in enumerate(header) if _OAI_BARCODE.fullmatch(name)]
    (visit, grade_column), *_ = grades.items()

    def read(where: str, row: list[str]) -> Reading:
        if "readprj" in place and _code(row[place["readprj"]]) != project:
            raise _RowError(f"reading project {short(row[place['readprj']])} is not {project}")
        barcode = _code(row[barcodes[0]]) if barcodes else ""
        person, side = _person(row[place["id"]]), _side(row[place["side"]])
        return Reading(person, side, _grade(row[grade_column]), visit, barcode=barcode, place=where)

    return read


def _plain_reader(table: Path, header: list[str], columns: Mapping[str, str]):
    """Reads rows of a table with columns of its own."""
    if unknown := set(columns) - set(COLUMNS):
        raise CorpusError(f"--columns {sorted(unknown)[0]}: use {', '.join(COLUMNS)}.")
    place = {name.casefold(): index for index, name in enumerate(header)}
    named = {name: columns.get(name, name).casefold() for name in COLUMNS}
    missing = [name for name in ("person", "side", "grade") if named[name] not in place]
    missing += [name for name in columns if named[name] not in place]
    if missing or not {named["file"], named["visit"], named["barcode"]} & set(place):
        wanted = (
            f"column {columns.get(missing[0], missing[0])!r}" if missing else "column 'file', 'visit' or 'barcode'"
        )
        raise CorpusError(
            f"{table} has no {wanted}, but {', '.join(map(short, header[:20]))}. It must be an OAI table of readings "
            "(ID, SIDE, V00XRKL), or have person, side, grade, and file or visit: --columns person=ID,side=KNEE."
        )

    def cell(row: list[str], name: str) -> str:
        return row[place[named[name]]].strip() if named[name] in place else ""

    def read(where: str, row: list[str]) -> Reading:
        person, side, grade = _person(cell(row, "person")), _side(cell(row, "side")), _grade(cell(row, "grade"))
        return Reading(
            person, side, grade, _code(cell(row, "visit")), cell(row, "file"), _code(cell(row, "barcode")), where
        )

    return read


def _code(cell: str) -> str:
    """What stands before the words of a cell such as `1: Right`, "" where it is missing (`.`, `.A: Not expected`)."""
    text = cell.split(":")[0].strip()
    if text.startswith(".") and not text[1:2].isdigit():
        return ""
    whole = re.fullmatch(r"(\d+)\.0*", text)  # SAS holds every number as a float
    return whole[1] if whole else text


def _person(cell: str) -> str:
    if not _code(cell):
        raise _RowError("it names no person")
    return _code(cell)


def _side(cell: str) -> str:
    side = _SIDES.get(_code(cell).casefold())
    if side is None:
        raise _RowError(f"side {short(cell)} is neither 1 (right) nor 2 (left)")
    return side


def _grade(cell: str) -> int:
    text = _code(cell)
    if not text:
        raise _RowError("it has no grade" + (f" ({short(cell.strip())})" if cell.strip() not in ("", ".") else ""))
    if text not in map(str, GRADES):
        raise _RowError(f"grade {short(cell)} is no Kellgren-Lawrence grade of 0 to 4")
    return int(text)


def _read_rows(table: Path) -> Iterator:
    """The header of a table, then each row as where it stands and its cells as text."""
    if not table.is_file():
        raise CorpusError(f"{table}: there is no such table of readings.")
    if table.stat().st_size > _LARGEST:
        raise CorpusError(f"{table} is larger than {_LARGEST >> 20} MiB: no table of readings is.")
    header, rows = _sas_rows(table) if table.suffix.lower() == ".sas7bdat" else _text_rows(table)
    yield header
    for number, row in rows:
        place = f"{table.name} line {number}"
        yield place, row + [""] * (len(header) - len(row))


def _text_rows(table: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    try:
        text = table.read_text(encoding="utf-8-sig", errors="strict")
    except UnicodeDecodeError:
        text = table.read_text(encoding="cp1252", errors="replace")
    except OSError as error:
        raise CorpusError(f"{table} cannot be read: {error.strerror}.") from error
    lines = text.splitlines()
    if not lines or "\0" in text:
        raise CorpusError(f"{table} is no table of readings: it is {'no text' if lines else 'empty'}.")
    delimiter = max("|,;\t", key=lines[0].count)
    try:
        rows = list(csv.reader(lines, delimiter=delimiter))
    except csv.Error as error:
        raise CorpusError(f"{table} cannot be read as a table: {error}.") from error
    header = [name.strip() for name in rows[0]]
    return header, ((number, row) for number, row in enumerate(rows[1:], start=2) if any(map(str.strip, row)))


def _sas_rows(table: Path) -> tuple[list[str], Iterator[tuple[int, list[str]]]]:
    import pandas

    try:
        frame = pandas.read_sas(table, format="sas7bdat", encoding="latin-1")
    except Exception as error:  # pandas raises whatever the damage leads to
        raise CorpusError(f"{table} cannot be read as .sas7bdat ({type(error).__name__}: {error}).") from error
    values = frame.astype(object).where(frame.notna(), "").itertuples(index=False)
    return list(map(str, frame.columns)), ((number, list(map(str, row))) for number, row in enumerate(values, start=1))
