"""From a study's films and readings to a corpus: each knee is found, cut as training X-rays are, and graded."""

import csv
import hashlib
import io
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass, field
from itertools import islice
from multiprocessing import get_context
from pathlib import Path

from clip_koa.files import replaced, write_file, writing
from clip_koa.framing.matching import Matcher
from dataset_script.film_folders import FilmFile
from dataset_script.names import CorpusError
from dataset_script.radiograph import RadiographError, read_radiograph
from dataset_script.readings import Readings
from dataset_script.splitter import split_by_person

TABLE, XRAYS, JOURNAL, FOUND = "metadata.csv", "xrays", ".frame.jsonl", ".knees"
COLUMNS = (
    "file_name", "label", "person_id", "laterality", "split", "visit", "film", "left", "top", "right", "bottom",
    "angle", "confidence", "side_assumed",
)  # fmt: skip
SPLITS = ("train", "validation", "test")


@dataclass(frozen=True)
class FoundKnee:
    """A knee of a film: where it lies, which it is, and its picture as PNG."""

    side: str
    side_assumed: bool
    box: tuple[int, int, int, int]
    angle: float
    confidence: float
    png: bytes


@dataclass(frozen=True)
class LookedAt:
    """What was found in one film: its knees and whose they are by the file itself, or why it could not be read."""

    film: FilmFile
    knees: tuple[FoundKnee, ...] = ()
    person: str = ""
    problem: str = ""


@dataclass
class Framed:
    """What became of a study: rows of the corpus, and why films, knees and readings are not in it."""

    rows: list[dict] = field(default_factory=list)
    films: int = 0
    found: int = 0
    left_out: list[dict] = field(default_factory=list)  # film, side, reason

    def note(self, film: str, side: str, reason: str) -> None:
        self.left_out.append({"film": film, "side": side, "reason": reason})


def look_at(film: FilmFile, find: Callable) -> LookedAt:
    """Finds the knees of a film.

    Args:
        find: gives a list of (knee, picture of it) for an upright picture (mode L) and its laterality.
    """
    try:
        radiograph = read_radiograph(film.path, name=film.name)
    except RadiographError as error:
        return LookedAt(film, problem=str(error).removeprefix(f"{film.name} ").removeprefix(f"{film.name}: "))
    knees = []
    for knee, picture in find(radiograph.image, radiograph.laterality):
        content = io.BytesIO()
        picture.save(content, "PNG")
        places = knee.side, knee.side_assumed, tuple(knee.box), knee.angle, knee.confidence
        knees.append(FoundKnee(*places, content.getvalue()))
    return LookedAt(film, tuple(knees), radiograph.person_id or "")


def look_at_all(films: Iterable[FilmFile], make_find: Callable[[], Callable], jobs: int) -> Iterator[LookedAt]:
    """`look_at` of every film, in the order in which they are done.

    Args:
        make_find: gives `find`; it is called once in each process, and must be picklable where there are several.
        jobs: processes; 1: this one.
    """
    if jobs == 1:
        find = make_find()
        yield from (look_at(film, find) for film in films)
        return
    # Spawned, since a fork of a process that has run torch may hang.
    with ProcessPoolExecutor(jobs, get_context("spawn"), _prepare, (make_find,)) as pool:
        waiting, ahead = set(), iter(films)
        while True:
            waiting |= {pool.submit(_look, film) for film in islice(ahead, 4 * jobs - len(waiting))}
            if not waiting:
                return
            done, waiting = wait(waiting, return_when=FIRST_COMPLETED)
            yield from (future.result() for future in done)


_find: Callable | None = None


def _prepare(make_find: Callable[[], Callable]) -> None:
    import torch

    global _find
    torch.set_num_threads(1)
    _find = make_find()


def _look(film: FilmFile) -> LookedAt:
    return look_at(film, _find)


class FramingRun:
    """A corpus in the making: every film is written down when it is done, so that a stopped run goes on where it was.

    Args:
        folder: of the corpus.
        made_by: what the outcome depends on besides the films: model, readings, settings.

    Raises:
        CorpusError: the folder holds something else, or what was begun with another model, other readings or settings.
    """

    def __init__(self, folder: Path, made_by: str):
        self.folder, self._journal = folder, folder / JOURNAL
        self.done: dict[str, dict] = {}
        digest = hashlib.sha256(made_by.encode()).hexdigest()
        if self._journal.exists():
            self._go_on(digest)
        elif folder.is_dir() and any(folder.iterdir()):
            raise CorpusError(f"--output {folder} holds something else: name a folder that is empty or not there yet.")
        with writing(folder):
            for name in (XRAYS, FOUND):
                (folder / name).mkdir(parents=True, exist_ok=True)
        if not self._journal.exists():
            write_file(self._journal, (json.dumps({"made_by": digest}) + "\n").encode())

    def _go_on(self, digest: str) -> None:
        content = self._journal.read_bytes()
        whole = content[: content.rfind(b"\n") + 1]  # a kill may have cut the last line
        lines = [json.loads(line) for line in whole.splitlines()]
        if not lines or lines[0].get("made_by") != digest:
            raise CorpusError(
                f"--output {self.folder} was begun with another model, other readings or settings: name another one."
            )
        if whole != content:
            write_file(self._journal, whole)
        self.done = {line["film"]: line for line in lines[1:]}

    def left_of(self, films: list[FilmFile]) -> list[FilmFile]:
        """The films that are still to be looked at: those that are new, or changed since."""
        return [film for film in films if self.done.get(film.name, {}).get("stamp") != _stamp(film.path)]

    def note(self, looked: LookedAt) -> None:
        """Writes down what was found in a film, the pictures of its knees first."""
        knees = []
        for knee in looked.knees:
            place = f"{hashlib.sha256(looked.film.name.encode()).hexdigest()[:12]}_{len(knees)}.png"
            write_file(self.folder / FOUND / place, knee.png)
            knees.append({name: value for name, value in asdict(knee).items() if name != "png"} | {"file": place})
        line = {
            "film": looked.film.name, "stamp": _stamp(looked.film.path), "person": looked.person,
            "problem": looked.problem, "knees": knees,
        }  # fmt: skip
        with writing(self._journal), open(self._journal, "a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")
            file.flush()
            os.fsync(file.fileno())
        self.done[looked.film.name] = line


def _stamp(path: Path) -> list[int]:
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def assemble(films: list[FilmFile], done: dict[str, dict], readings: Readings) -> Framed:
    """Gives each knee its grade, in the order of the films.

    Args:
        done: of each film what `FramingRun` wrote down.
    """
    matcher, framed, taken = Matcher(readings.used), Framed(films=len(films)), {}
    for film in films:
        looked = done[film.name]
        framed.found += len(looked["knees"])
        if not looked["knees"]:
            framed.note(film.name, "", looked["problem"] or "no knee was found on the film")
        person = film.person or looked["person"]
        for knee in looked["knees"]:
            reading, reason = matcher.find(film, person, knee["side"])
            if reading and reading.knee in taken:
                reading, reason = None, f"the reading belongs to the knee of {taken[reading.knee]} already"
            if not reading:
                framed.note(film.name, knee["side"], reason)
                continue
            matcher.note(reading)
            taken[reading.knee] = film.name
            left, top, right, bottom = knee["box"]
            framed.rows.append(
                {
                    "file_name": f"{XRAYS}/{knee['file']}",
                    "label": reading.grade,
                    "person_id": reading.person,
                    "laterality": reading.side,
                    "visit": reading.visit or film.visit,
                    "film": film.name,
                    "left": left,
                    "top": top,
                    "right": right,
                    "bottom": bottom,
                    "angle": round(knee["angle"], 2),
                    "confidence": round(knee["confidence"], 4),
                    "side_assumed": int(knee["side_assumed"]),
                }  # fmt: skip
            )
    for reading in matcher.without_film():
        known = f"person {reading.person}" + (f", visit {reading.visit}" if reading.visit else "")
        framed.note("", reading.side, f"{reading.place} ({known}): no film shows a knee for the reading")
    for place, reason in readings.left_out:
        framed.note("", "", f"{place}: {reason}")
    return framed


def split_rows(rows: list[dict], shares: tuple[float, ...], seed: int, table: dict[str, str] | None = None) -> None:
    """Gives each row its split, by person.

    Args:
        shares: of train, validation and, where there are three, test.
        table: the split of each person, in place of shares.

    Raises:
        CorpusError: a person that the table does not name, or fewer people than splits.
    """
    people = [row["person_id"] for row in rows]
    if table is not None:
        if missing := [person for person in people if person not in table]:
            raise CorpusError(f"The table of splits does not name person {missing[0]}: it must name all of them.")
        names = [table[person] for person in people]
    else:
        try:
            numbers = split_by_person(people, [row["label"] for row in rows], shares, seed)
        except ValueError as error:
            raise CorpusError(f"--shares {' '.join(map(str, shares))}: {error}") from error
        names = [SPLITS[number] for number in numbers]
    for row, name in zip(rows, names, strict=True):
        row["split"] = name


def write_corpus(folder: Path, framed: Framed) -> Path:
    """Writes the corpus: the graded knees' pictures, left_out.csv, and last the table; returns the table's path."""
    with writing(folder / XRAYS):
        named = {Path(row["file_name"]).name for row in framed.rows}
        for name in set(os.listdir(folder / XRAYS)) - named:
            (folder / XRAYS / name).unlink()
        for name in named:
            with replaced(folder / XRAYS / name) as temporary:
                _link(folder / FOUND / name, temporary)
    _write_table(folder / "left_out.csv", ("film", "side", "reason"), framed.left_out)
    return _write_table(folder / TABLE, COLUMNS, framed.rows)


def _link(source: Path, target: Path) -> None:
    """The same file under another name, or a copy where the disk has no such links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def _write_table(path: Path, columns: tuple[str, ...], rows: list[dict]) -> Path:
    text = io.StringIO()
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return write_file(path, text.getvalue().encode())
