"""Which of some X-ray files show the two knees of one person, so that they are graded together (`--pairs`)."""

import os
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from clip_koa.grading.pairs import PairedFiles
from dataset_script.dicom import read_study
from dataset_script.radiograph import parse_name
from dataset_script.tables import laterality_of_cell, read_table, text_of_cell

_TABLE = "metadata.csv"  # as `clip-koa frame` and ImageFolder write it


def pair_files(files: list[str]) -> PairedFiles:
    """The files in their order, but that of a pair the second follows the first at once.

    Two files are a pair where a `metadata.csv` says that they are of one person and visit (columns file_name,
    person_id, laterality, and visit where there is one). Others are where they are DICOM of one patient and study, or
    where their names begin with the same seven digits. One must be of the right knee and the other of the left one.
    Where a person or study has more files of a side, as of several visits, those are pairs that lie alone with each
    other in a folder. Nobody's name or number is kept.

    Raises:
        CorpusError: a `metadata.csv` beside the files, or one folder above them, that cannot be read.
    """
    knees = defaultdict(lambda: {"L": [], "R": []})
    tables: dict[str, dict] = {}
    for number, file in enumerate(files):
        person, side = _knee_in_table(file, tables) or _knee_of(file)
        if person and side in ("L", "R"):
            knees[person][side].append(number)
    seconds = {}
    for sides in knees.values():
        for one, other in _pairs_of(files, sides["L"], sides["R"]):
            seconds[min(one, other)] = max(one, other)
    later, order = set(seconds.values()), []
    for number in range(len(files)):
        if number not in later:
            order += [number, seconds[number]] if number in seconds else [number]
    return PairedFiles([files[number] for number in order], frozenset(files[number] for number in seconds))


def _pairs_of(files: list[str], left: list[int], right: list[int]) -> Iterator[tuple[int, int]]:
    if len(left) == len(right) == 1:
        yield left[0], right[0]
        return
    folders = defaultdict(lambda: ([], []))
    for side, numbers in enumerate((left, right)):
        for number in numbers:
            folders[os.path.dirname(files[number])][side].append(number)
    yield from ((one[0], other[0]) for one, other in folders.values() if len(one) == len(other) == 1)


def _knee_in_table(file: str, tables: dict[str, dict]):
    """Whose knee the table beside a file, or one folder above it, says that it shows; None where it does not say."""
    path = os.path.abspath(file)
    for folder in (os.path.dirname(path), os.path.dirname(os.path.dirname(path))):
        if folder not in tables:
            tables[folder] = _read_people(folder)
        if path in tables[folder]:
            return tables[folder][path]
    return None


def _read_people(folder: str) -> dict[str, tuple[tuple[str, str | None], str | None]]:
    """By absolute path whose knee a file shows, of one person and visit, and the side."""
    table = Path(folder, _TABLE)
    if not table.is_file():
        return {}
    found = {}
    for line, row in read_table(table, {"file_name", "person_id", "laterality"}):
        if person := text_of_cell(row["person_id"]):
            side = laterality_of_cell(row["laterality"], f"{table} line {line}")
            path = os.path.normpath(os.path.join(folder, row["file_name"] or ""))
            found[path] = (person, text_of_cell(row.get("visit"))), side
    return found


def _knee_of(file: str) -> tuple[tuple[str | None, ...] | None, str | None]:
    """Whose knee a file shows, None where it does not tell, and the side."""
    named, side = parse_name(os.path.basename(file))
    try:
        patient, study, own_side = read_study(file)
    except Exception:  # a damaged file, or no pydicom: its row will say so
        return None, None
    if study:
        return (patient, study), own_side or side
    return (named,) if named else None, side
