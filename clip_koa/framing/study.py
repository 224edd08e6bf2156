"""`clip-koa frame`: a study's films and readings in, a corpus of graded knees out."""

import csv
import os
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from tqdm.auto import tqdm

from clip_koa.framing.corpus import SPLITS, FramingRun, assemble, look_at_all, split_rows, write_corpus
from clip_koa.framing.report import describe_framing, write_framing_report
from clip_koa.grading.model_loading import load_checkpoint
from clip_koa.grading.provenance import model_digest
from clip_koa.interruption import work_is_kept
from clip_koa.locks import WriterLock
from dataset_script.exit_status import DONE, INCOMPLETE
from dataset_script.film_folders import list_films
from dataset_script.names import CorpusError, split_of
from dataset_script.readings import read_readings
from modeling_clip_koa.localisation_clip_koa import cut_knee

_GO_ON = "The films looked at so far are kept: the same command goes on with the others."


@dataclass(frozen=True)
class Study:
    """What is framed, by what, and where it goes.

    Attributes:
        films: folder.
        labels: tables of readings.
        output: folder of the corpus.
        model: folder or Hub id of a model that finds knees.
        columns: what the tables call their columns, as NAME=COLUMN with commas between.
        project: the reading project of an OAI table.
        shares: of the splits; seed: which of the equally good ones.
        persons: table of persons and splits, in place of shares.
        jobs: processes.
    """

    films: Path
    labels: list[Path]
    output: Path
    model: str
    columns: str = ""
    project: str = "15"
    shares: tuple[float, ...] = (0.7, 0.1, 0.2)
    seed: int = 0
    persons: Path | None = None
    jobs: int = 1


def frame_study(study: Study) -> int:
    """Makes a corpus of a study; returns the exit status: 1 where a film could not be read.

    Raises:
        CLIPKOAError, OSError: nothing can be done, or no more; the message says why.
    """
    readings = read_readings(study.labels, parse_columns(study.columns), study.project)
    if not readings.used:
        reason = f": {readings.left_out[0][1]}" if readings.left_out else ""
        raise CorpusError(f"{study.labels[0]} holds no reading that can be used{reason}.")
    films, others = list_films(study.films)
    persons = read_persons(study.persons) if study.persons else None
    if not Path(study.model).is_dir():
        load_checkpoint(study.model)  # so that all of it was fetched from the Hub: its digest is of what is here
    with WriterLock(study.output), work_is_kept(_GO_ON):
        run = FramingRun(study.output, model_digest(study.model))
        waiting = run.left_of(films)
        with tqdm(total=len(films), initial=len(films) - len(waiting), desc="films", unit="film") as bar:
            for looked in look_at_all(waiting, partial(load_finder, study.model), study.jobs) if waiting else ():
                run.note(looked)
                bar.update()
        framed = assemble(films, run.done, readings)
        for name, reason in others:
            framed.note(name, "", reason)
        if not framed.rows:
            reason = framed.left_out[0]
            raise CorpusError(
                f"No knee of the films has a reading, such as {reason['film'] or 'a reading'}: {reason['reason']}."
            )
        split_rows(framed.rows, study.shares, study.seed, persons)
        table, report = write_corpus(study.output, framed), write_framing_report(study.output, framed)
    print(f"{describe_framing(framed)}\nCorpus: {table.parent}\nReport: {report}")
    return INCOMPLETE if any(run.done[film.name]["problem"] for film in films) else DONE


def load_finder(model: str) -> Callable:
    """What finds and cuts the knees of a picture, for `look_at_all`."""
    loaded, _ = load_checkpoint(model, dtype=torch.float32)
    loaded.eval()

    def find(picture, laterality: str | None) -> list:
        sides = laterality if laterality in ("L", "R") else ""
        # The reader has judged already whether the film shows bone dark.
        return [
            (knee, cut_knee(picture, knee)) for knee in loaded.find_knees(picture, keep_polarity=True, sides=sides)
        ]

    return find


def parse_columns(text: str) -> dict[str, str]:
    """`person=ID,side=KNEE` as a dictionary.

    Raises:
        CorpusError: that is no mapping of columns.
    """
    columns = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, sign, column = (piece.strip() for piece in part.partition("="))
        if not (name and sign and column) or name in columns:
            raise CorpusError(f"--columns {part}: give each as NAME=COLUMN, such as person=ID,side=KNEE.")
        columns[name] = column
    return columns


def parse_shares(text: str) -> tuple[float, ...]:
    """`0.7,0.1,0.2` as numbers.

    Raises:
        CorpusError: these are no two or three numbers above 0.
    """
    try:
        shares = tuple(float(part) for part in text.split(","))
    except ValueError:
        shares = ()
    if not 2 <= len(shares) <= len(SPLITS) or not all(0 < share < float("inf") for share in shares):
        raise CorpusError(f"--shares {text}: give two or three numbers above 0, such as 0.7,0.1,0.2.")
    return shares


def read_persons(table: Path) -> dict[str, str]:
    """The split of each person, of a .csv with the columns person and split.

    Raises:
        CorpusError: it cannot be read, lacks a column, names no split, or names a person twice.
    """
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            rows = list(csv.DictReader(file))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{table} cannot be read as a UTF-8 .csv: {error}") from error
    persons = {}
    for number, row in enumerate(rows, start=2):
        if not {"person", "split"} <= set(row):
            raise CorpusError(f"{table} must have the columns person and split.")
        person, split = (row["person"] or "").strip(), split_of(row["split"] or "")
        if split not in SPLITS:
            raise CorpusError(f"{table} line {number}: split {row['split']!r} must be one of {', '.join(SPLITS)}.")
        if not person or person in persons:
            raise CorpusError(f"{table} line {number}: person {person!r} must be named, and once.")
        persons[person] = split
    return persons


def default_jobs() -> int:
    """One process for each core that this one may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
