"""A table of grades in the making: one writer, nothing lost by a stop, and brought up to date as the archive grows.

An entry is the list of an X-ray's rows: one, or one for each knee of a film.
"""

import hashlib
import json
import os
from array import array
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import groupby
from pathlib import Path

from clip_koa.files import as_text, replaced, writing
from clip_koa.grading.grade_table import FORMATS, GradeTableError, read_about, read_rows, rows_of, write_rows
from clip_koa.grading.pairs import PairedFiles, whole_pairs
from clip_koa.grading.provenance import read, without_code
from clip_koa.grading.sources import Waiting, stamp_at_hand
from clip_koa.locks import WriterLock

_NAMED = 3  # of the X-rays that are gone


class GrowingTable:
    """The table of the X-rays that are named now, of which rows that it holds already are kept.

    A row is kept where the same model graded the file with the same settings, and the file has its size and time
    still; an object of a store that no listing names is taken as unchanged. Rows that another version of the code
    graded are kept too, and counted by `count_of_other_code`. Rows are kept on disk as they come, in a hidden file
    beside the table, so that a stopped run goes on where it was. What memory holds of them is the place of each row,
    and whether other code graded it.

    Args:
        path: ending in one of `FORMATS`. It is written anew when all rows are there; until then it stays as it was.

    Raises:
        GradeTableError: another ending, or a folder, device or pipe in its place.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.suffix not in FORMATS:
            raise GradeTableError(f"--output {as_text(path)}: its name must end in {', '.join(FORMATS)}.")
        if self.path.is_dir():
            raise GradeTableError(f"--output {as_text(path)} is a folder: give the name of a file.")
        if self.path.exists() and not self.path.is_file():  # reading a device or a pipe would never end
            raise GradeTableError(f"--output {as_text(path)} is no plain file: give the name of one.")
        self.rows = rows_of(self.path)
        self._lock = WriterLock(self.path)
        self.gone, self.gone_names = 0, []
        self._stale = set()

    def __enter__(self) -> "GrowingTable":
        """Becomes the table's one writer.

        Raises:
            InUseError: another process writes it.
            WriteError: its folder cannot be written.
        """
        self._lock.acquire()
        return self

    def __exit__(self, *_) -> None:
        with suppress(OSError):
            if not self.rows.stat().st_size:  # nothing to go on with
                self.rows.unlink()
        self._lock.release()

    def begin(
        self,
        inputs: list[str] | PairedFiles,
        made_by: str,
        is_kept: Callable[[dict], bool] | None = None,
    ) -> None:
        """Takes over the rows that stay.

        Args:
            inputs: the files, or also which of them are pairs. A pair is kept or graded as one: were one of the two
                graded again, the other's row would not fit it.
            made_by: the model and settings that grade, as `provenance.describe` gives them.
            is_kept: says of a row whether it may stay, or is graded again; default: all may.

        Raises:
            GradeTableError: the rows that are there were made by another model or with other settings, or are of
                other inputs altogether.
        """
        self.paired = inputs if isinstance(inputs, PairedFiles) else PairedFiles(inputs)
        self.files, self.made_by, self._is_kept = (files := self.paired.files), made_by, is_kept
        self._settings = without_code(made_by)
        self._numbers = {as_text(file): number for number, file in enumerate(files)}
        names = hashlib.sha256("\n".join(self._numbers).encode()).hexdigest()
        self.about = json.dumps({"inputs": names, "made_by": self._settings})
        self._places, self._other_code = array("q", [-1]) * len(files), bytearray(len(files))
        self._end = 0
        self.is_current = False
        if self.rows.exists():
            self._go_on()
        else:
            self._take_over()
        self._leave_no_halves()
        self.kept, self.changed = len(files) - self._places.count(-1), len(self._stale)
        del self._numbers

    def _leave_no_halves(self) -> None:
        """Leaves both files of a pair to be graded where one of them is."""
        places = self._places
        for number in range(len(places) - 1):
            if self.files[number] in self.paired.firsts and min(places[number], places[number + 1]) < 0:
                places[number] = places[number + 1] = -1
                self._other_code[number] = self._other_code[number + 1] = 0

    def _take_over(self) -> None:
        """Begins with the rows of the table that is there."""
        with replaced(self.rows) as temporary, open(temporary, "wb") as file:
            total = in_order = 0
            if self.path.exists():
                for total, entry in enumerate(self._check(self.path, _entries(self.path)), 1):
                    number = self._number_kept(entry)
                    in_order += number == total - 1
                    self._write(file, number, entry)
                is_of_these = self.path.suffix != ".parquet" or read_about(self.path) == self.about
                self.is_current = in_order == total == len(self.files) and is_of_these
            if total and self.gone == total:
                self._refuse_others(self.path)

    def _go_on(self) -> None:
        """Finds the entries of a run that was stopped, and cuts off the one that a kill left half-written."""
        total = 0
        with writing(self.rows), open(self.rows, "rb+") as file:
            for total, entry in enumerate(self._check(self.rows, self._whole_entries(file)), 1):  # noqa: B007
                number = self._number_kept(entry)
                if number is not None:
                    self._note(number, entry, self._entry_begins)
            file.truncate(self._end)
        if total and self.gone == total:
            self._refuse_others(self.rows)

    def _refuse_others(self, source: Path) -> None:
        raise GradeTableError(
            f"{as_text(source)} holds none of the X-rays that are named now, but {self.gone_names[0]}: remove it to "
            "begin anew, or give another name."
        )

    def _whole_entries(self, file) -> Iterator[list[dict]]:
        for line in file:
            if not line.endswith(b"\n"):
                return
            try:
                entry = json.loads(line)
                [(row["file"], row["made_by"], row["error"]) for row in (entry[0], *entry)]
            except (ValueError, KeyError, TypeError) as error:
                raise GradeTableError(
                    f"{as_text(self.rows)} holds what no run of this version wrote: remove it to begin anew."
                ) from error
            self._entry_begins, self._end = self._end, self._end + len(line)
            yield entry

    def _check(self, source: Path, entries: Iterable[list[dict]]) -> Iterator[list[dict]]:
        """Passes on entries, and counts those of X-rays no longer named; raises where one was made otherwise."""
        for entry in entries:
            row = entry[0]
            settings = without_code(row["made_by"])
            if settings != self._settings:
                raise GradeTableError(
                    f"{as_text(source)} was made with {_differences(settings, self._settings)}: remove it to begin "
                    "anew, or give another name."
                )
            if row["file"] not in self._numbers:
                self.gone += 1
                self.gone_names += [row["file"]] if len(self.gone_names) < _NAMED else []
            yield entry

    def _number_kept(self, entry: list[dict]) -> int | None:
        """The number of an entry's X-ray; None where it is not named, or must be graded (again)."""
        row = entry[0]
        number = self._numbers.get(row["file"])
        if number is None or any(row["error"] for row in entry):
            return None
        if row["paired_with"] not in (row["file"], as_text(self.paired.partner(number) or "") or None):
            return None  # the other knee was another file, or there was none
        before, now = (row["file_bytes"], row["file_modified"]), stamp_at_hand(self.files[number])
        if now not in (None, before) or row["file_bytes"] is None:
            self._stale.add(number)
            return None
        self._stale.discard(number)
        return number if self._is_kept is None or all(map(self._is_kept, entry)) else None

    def _write(self, file, number: int | None, entry: list[dict]) -> None:
        if number is not None:
            line = (json.dumps(entry) + "\n").encode()
            file.write(line)
            self._note(number, entry, self._end)
            self._end += len(line)

    def _note(self, number: int, entry: list[dict], begins: int) -> None:
        """Keeps in memory where an X-ray's entry begins, and whether other code graded it."""
        self._places[number], self._other_code[number] = begins, entry[0]["made_by"] != self.made_by

    def count_of_other_code(self) -> int:
        """How many of the X-rays another version of the code graded."""
        return sum(self._other_code)

    def batches(self, size: int) -> Iterator[list[Waiting]]:
        """The X-rays that have no row, in their order, each looked at when its batch is taken."""
        for numbers in self.numbers(size):
            yield [Waiting.looked_at(number, self.files[number]) for number in numbers]

    def numbers(self, size: int) -> Iterator[list[int]]:
        """The numbers of the X-rays that have no row, in batches that part no pair."""
        left = (number for number, place in enumerate(self._places) if place < 0)
        yield from whole_pairs(left, size, lambda number: self.files[number] in self.paired.firsts)

    def add(self, waiting: Iterable[Waiting], entries: Iterable[list[dict]]) -> None:
        """Adds the entries, each a list of `table_row`s, of X-rays that `batches` gave.

        Raises:
            WriteError: they cannot be written, as on a full disk; those before them stay and can be gone on with.
        """
        with writing(self.rows), open(self.rows, "ab") as file:
            for xray, entry in zip(waiting, entries, strict=True):
                stamped = {"file_bytes": xray.size, "file_modified": xray.modified, "made_by": self.made_by}
                self._write(file, xray.number, [row | stamped for row in entry])

    def read(self) -> Iterator[dict]:
        """All rows, in the order of the inputs.

        Raises:
            GradeTableError: one is missing.
        """
        with open(self.rows, "rb") as file:
            for number, place in enumerate(self._places):
                if place != file.tell():
                    file.seek(max(place, 0))
                entry = json.loads(file.readline() or b"[]")
                if place < 0 or not entry or entry[0]["file"] != as_text(self.files[number]):
                    raise GradeTableError(f"{as_text(self.rows)} has no row of {as_text(self.files[number])}.")
                yield from entry

    def finish(self) -> int:
        """Puts the whole table in its place; returns how many X-rays were not graded.

        Raises:
            WriteError: it cannot be written. The rows stay, and the table that was there.
            GradeTableError: it would not hold a row for each X-ray.
        """
        if self.is_current:
            self.rows.unlink()
            return 0
        with replaced(self.path) as temporary:
            write_rows(temporary, self.path.suffix, self.read(), self.about)
            written = ungraded = 0
            for written, entry in enumerate(_entries(temporary, self.path.suffix), 1):  # noqa: B007
                ungraded += any(row["grade"] is None for row in entry)
            if written != len(self.files):
                raise GradeTableError(f"{as_text(self.path)} would hold {written} of {len(self.files)} X-rays.")
            with open(temporary, "rb+") as file:
                os.fsync(file.fileno())  # before the rows go
        self.rows.unlink()
        return ungraded


def begun_with(table: Path) -> dict[str, str]:
    """The settings that the first row of a table was made with, or of a run on its way to it; empty without a row."""
    with suppress(OSError, ValueError, LookupError, TypeError):  # `GrowingTable.begin` says what is wrong with it
        rows = rows_of(table)
        if not rows.exists():
            return read(next(_entries(table), None)[0]["made_by"])
        with open(rows, "rb") as file:
            return read(json.loads(file.readline())[0]["made_by"])
    return {}


def _entries(path: Path, kind: str = "") -> Iterator[list[dict]]:
    """The entries of a table; an X-ray is named once among the inputs, so its rows stand together."""
    rows = read_rows(path, kind or path.suffix)
    return (list(entry) for _, entry in groupby(rows, key=lambda row: row["file"]))


# A setting that is named only where it is another.
_UNNAMED = {"readings": "readings=1"}


def _differences(before: str, now: str) -> str:
    """What differs between two settings, as `level=0.5, now level=0.9`."""
    then, today = (_UNNAMED | {item.split("=")[0]: item for item in settings.split()} for settings in (before, now))
    differing = [name for name in then | today if then.get(name) != today.get(name)]
    return "; ".join(f"{then.get(name, f'no {name}')}, now {today.get(name, f'no {name}')}" for name in differing)
