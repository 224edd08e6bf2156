"""Which X-rays a command is to grade: files, folders, patterns, tables that name them, and prefixes of stores."""

import csv
import logging
import os
from collections.abc import Iterable, Iterator
from glob import glob
from pathlib import Path

import pyarrow
import pyarrow.parquet

from clip_koa.files import as_text, path_of
from clip_koa.grading.sources import is_remote, list_objects
from dataset_script.listing import LeftOut, describe_left_out
from dataset_script.radiograph import FORMATS
from dataset_script.sniffing import is_hidden, read_head, why_left_out
from modeling_clip_koa import CLIPKOAError

TABLES = (".csv", ".parquet")
_COLUMNS = ("file", "file_name")  # of a table of grades, and as ImageFolder has it

logger = logging.getLogger(__name__)


class NoXrays(CLIPKOAError, FileNotFoundError):
    """An input that names no X-ray; the message says which."""


def find_xrays(inputs: Iterable[str | Path]) -> list[str]:
    """The X-ray files that `inputs` name, each once: files as they are, folders searched and globs, sorted.

    In folders a file is an X-ray if its suffix says so, or else its content; hidden ones are not taken. What was not
    taken is logged as a warning, with its number and the first names. Names are strings, of which an archive's list
    takes a fraction of the memory that it takes as `Path`s. So are prefixes, patterns and objects of a store, such as
    s3://. A table (.csv or .parquet) names files in its column file, as a table of grades does, or else in file_name,
    relative to the table's folder; it keeps its order, and nobody looks whether they are there.

    Raises:
        NoXrays: an input that does not exist, a glob that nothing matches, or a folder or table without X-rays.
        SourceError: a store that cannot be listed.
    """
    files = {}
    for given in inputs:
        if is_remote(str(given)):
            found = list(list_objects(str(given)))
            if not found:
                raise NoXrays(f"{given}: no X-rays are there.")
            files |= dict.fromkeys(sorted(found))
            continue
        path = str(Path(given))
        if path.endswith(TABLES) and os.path.isfile(path):
            files |= dict.fromkeys(_names_in_table(path))
            continue
        if os.path.isdir(path):
            found = _search_folder(path)
        elif os.path.exists(path):
            found = [path]
        elif any(sign in path for sign in "*?["):
            found = [file for file in glob(path, recursive=True) if os.path.isfile(file)]
            if not found:
                raise NoXrays(f"{path}: no file matches this pattern.")
        else:
            raise NoXrays(f"{path}: there is no such file or folder.")
        files |= dict.fromkeys(sorted(found))
    return list(files)


def _names_in_table(path: str) -> Iterator[str]:
    """The files that a table names, in its order."""
    number = -1
    try:
        read = _read_csv if path.endswith(".csv") else _read_parquet
        for number, (column, name) in enumerate(read(path)):  # noqa: B007
            if column == "file":
                yield path_of(name or "")
            else:
                yield name if is_remote(name or "") else os.path.join(os.path.dirname(path), name or "")
    except (OSError, UnicodeDecodeError, csv.Error, pyarrow.ArrowException) as error:
        raise NoXrays(f"{as_text(path)} cannot be read as a table: {str(error).splitlines()[0]}") from error
    if number < 0:
        raise NoXrays(f"{as_text(path)} names no X-rays.")


def _read_csv(path: str) -> Iterator[tuple[str, str]]:
    with open(path, newline="", encoding="utf-8-sig") as file:
        reader = csv.DictReader(file)
        column = _column(path, reader.fieldnames or ())
        yield from ((column, row[column]) for row in reader)


def _read_parquet(path: str) -> Iterator[tuple[str, str]]:
    with pyarrow.parquet.ParquetFile(path) as table:
        column = _column(path, table.schema_arrow.names)
        for batch in table.iter_batches(columns=[column]):
            yield from ((column, name) for name in batch[column].to_pylist())


def _column(path: str, names: Iterable[str]) -> str:
    """The column that names the files; a table of grades has several rows of a film, and each file counts once."""
    if column := next((column for column in _COLUMNS if column in names), None):
        return column
    raise NoXrays(f"{as_text(path)} has no column {' or '.join(_COLUMNS)}, which would name the X-rays.")


def _search_folder(folder: str) -> list[str]:
    """The X-rays in a folder and below it; what else is there is logged."""
    found, left_out, closed = [], [], []
    for place, folders, names in os.walk(folder, onerror=lambda error: closed.append(str(error.filename))):
        left_out += _folders_not_entered(place, folders)
        for name in names:
            file = str(Path(place, name))
            one = None if is_hidden(name) else why_left_out(file, read_head)
            if is_hidden(name):
                left_out.append(LeftOut(file, "hidden", "hidden"))
            elif one is None and os.path.isfile(file):
                found.append(file)
            else:
                left_out.append(one or LeftOut(file, "no regular file", "xray"))
    left_out += [LeftOut(place, "cannot be opened", "xray") for place in closed]
    for line in describe_left_out(left_out):
        logger.warning("%s: %s.", folder, line)
    if not found:
        raise NoXrays(f"{folder} holds no X-rays: {', '.join(FORMATS)} or DICOM files.")
    return found


def _folders_not_entered(place: str, folders: list[str]) -> Iterator[LeftOut]:
    """Hidden folders and links to folders, which `os.walk` is kept from or does not follow."""
    for name in list(folders):
        path = str(Path(place, name))
        if is_hidden(name):
            folders.remove(name)
            yield LeftOut(path, "hidden", "hidden")
        elif os.path.islink(path):
            yield LeftOut(path, "links to folders are not followed", "archive")
