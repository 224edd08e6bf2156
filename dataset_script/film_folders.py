"""The films of a study on disk: which files are films of knees, whose they are, and of which visit.

Folders of the Osteoarthritis Initiative are known as they come: one for each visit, with a contents.csv that names a
folder for each series. In all others every X-ray file is taken for a film.
"""

import csv
import os
import re
from dataclasses import dataclass
from pathlib import Path

from dataset_script.names import CorpusError
from dataset_script.sniffing import is_hidden, named_as_xray, read_head, why_left_out

CONTENTS = "contents.csv"
# Months of an OAI visit, as its folders are called, and the number with which the names of its variables begin.
_VISIT_OF_MONTHS = {
    "0": "00", "12": "01", "18": "02", "24": "03", "30": "04", "36": "05", "48": "06", "60": "07", "72": "08",
    "84": "09", "96": "10",
}  # fmt: skip
_MONTHS = re.compile(r"0*(\d{1,2})[ _-]?m(onths?)?", re.IGNORECASE)
_VISIT = re.compile(r"v(?:isit)?[ _-]?(\d{1,2})", re.IGNORECASE)
_LARGEST = 1 << 26  # bytes of a contents.csv


@dataclass(frozen=True, slots=True)
class FilmFile:
    """One film: `name` below the folder, `path`, and what the folder tells of it, "" where it does not."""

    name: str
    path: Path
    person: str = ""
    visit: str = ""
    barcode: str = ""


def list_films(folder: str | Path) -> tuple[list[FilmFile], list[tuple[str, str]]]:
    """The films below a folder in the order of their names, and the name and reason of what is none.

    Raises:
        CorpusError: no such folder, no film in it, or a contents.csv that cannot be read.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise CorpusError(f"{folder}: there is no such folder of films.")
    films, left_out = [], []
    for place, names, files in os.walk(folder):
        names[:] = sorted(name for name in names if not is_hidden(name))
        contents = next((name for name in files if name.casefold() == CONTENTS), None)
        if contents:
            names.clear()
            found, others = _list_contents(folder, Path(place), contents)
        else:
            found, others = _list_files(folder, Path(place), sorted(files), visit=_visit_of(folder, Path(place)))
        films += found
        left_out += others
    if not films:
        raise CorpusError(f"{folder} holds no film of knees: no X-ray file, and no {CONTENTS} that names one.")
    return sorted(films, key=lambda film: film.name), left_out


def _list_files(folder: Path, place: Path, files, **known) -> tuple[list[FilmFile], list[tuple[str, str]]]:
    films, left_out = [], []
    for file in files:
        name = (place / file).relative_to(folder).as_posix()
        if is_hidden(file):
            continue
        other = None if named_as_xray(file) else why_left_out(file, lambda file: read_head(place / file))
        if other:
            left_out.append((name, other.reason))
        else:
            films.append(FilmFile(name, place / file, **known))
    return films, left_out


def _list_contents(folder: Path, place: Path, contents: str) -> tuple[list[FilmFile], list[tuple[str, str]]]:
    """The films that a contents.csv names: series of knees, taken by X-rays."""
    table, films, left_out = place / contents, [], []
    for number, row in _read_contents(table):
        series, description = row["folder"].strip().strip("/\\"), row["description"].strip()
        where = f"{table.relative_to(folder).as_posix()} line {number}"
        parts = [part.strip().casefold() for part in description.split("^")]
        below = (place / series.replace("\\", "/")).resolve()
        if len(parts) < 3 or parts[1] != "xray" or parts[-1] != "knee":
            left_out.append((where, f"{description or 'a series without description'} is no film of knees"))
        elif not series or not below.is_relative_to(place.resolve()) or not below.is_dir():
            left_out.append((where, f"there is no folder {series or '(none named)'}"))
        else:
            visit = _visit_of(folder, place)
            known = {"person": row["participant"].strip(), "visit": visit, "barcode": row["barcode"].strip()}
            found, others = _list_files(folder, place / series.replace("\\", "/"), sorted(os.listdir(below)), **known)
            films += found
            left_out += others if found else [(where, f"{series} holds no X-ray file")]
    return films, left_out


def _read_contents(table: Path):
    """Line and cells by `folder`, `participant`, `barcode`, `description`, whatever exactly the columns are called."""
    try:
        if table.stat().st_size > _LARGEST:
            raise CorpusError(f"{table} is larger than {_LARGEST >> 20} MiB: no table of series is.")
        lines = table.read_text(encoding="utf-8-sig", errors="replace").splitlines()
        rows = csv.reader(lines)
        header = [name.strip().casefold() for name in next(rows, [])]
        column = {}
        for wanted in ("folder", "participant", "barcode", "description"):
            column[wanted] = next((index for index, name in enumerate(header) if wanted in name), None)
            if column[wanted] is None:
                raise CorpusError(f"{table} has no column {wanted!r}, but {', '.join(header[:20]) or 'nothing'}.")
        for number, row in enumerate(rows, start=2):
            if row:
                yield number, {name: row[index] if index < len(row) else "" for name, index in column.items()}
    except (OSError, csv.Error) as error:
        raise CorpusError(f"{table} cannot be read as a .csv: {error}") from error


def _visit_of(folder: Path, place: Path) -> str:
    """The visit that the nearest folder's name tells: 00m, 12_months, V01, visit 1; "" where none does."""
    for name in reversed(place.relative_to(folder.parent).parts):
        if (months := _MONTHS.fullmatch(name)) and months[1] in _VISIT_OF_MONTHS:
            return _VISIT_OF_MONTHS[months[1]]
        if visit := _VISIT.fullmatch(name):
            return f"{int(visit[1]):02d}"
    return ""
