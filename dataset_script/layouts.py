"""The layouts that knee X-rays come in: what X-rays a folder, an archive, a table or Parquet holds, and their content.

Archives are read in place, nothing is unpacked. A layout that is none of these gets an error that says what was found.
"""

import csv
import hashlib
import os
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import groupby
from pathlib import Path, PurePosixPath

import pyarrow
import pyarrow.parquet as parquet

from dataset_script.dicom import read_person_id
from dataset_script.pixels import Refusal
from dataset_script.radiograph import DICOM_SUFFIXES, MAX_BYTES, SUFFIXES, parse_name

GRADES = (0, 1, 2, 3, 4)
# Folder names of each split. auto_test, automatic crops of the test radiographs, stays apart from all of them.
SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
    "auto_test": ("auto_test",),
}
_SPLIT_OF_NAME = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
# X-rays per split and grade of the release (Chen 2018), for kneeKL224 and kneeKL299 alike.
RELEASE_COUNTS = {
    "train": (2286, 1046, 1516, 757, 173),
    "validation": (328, 153, 212, 106, 27),
    "test": (639, 296, 447, 223, 51),
}
# Where the release and its copies keep the split folders: the X-rays of 224 pixels go before those of 299.
_INNER_FOLDERS = tuple(
    f"{place}{size}".strip("/")
    for size in ("kneeKL224", "kneeKL299")
    for place in ("", "ClsKLData/", "KneeXrayData/ClsKLData/")
)
_SPLIT_IN_SHARD = re.compile(r"(?<![a-z])(auto_test|train|validation|valid|val|test)(?![a-z])")

INSTRUCTIONS = (
    "Pass the folder that holds train/, val/ and test/ as data_dir, or set KNEE_XRAY_DIR to it. The X-rays are "
    "P. Chen's Knee Osteoarthritis Severity Grading Dataset (doi 10.17632/56rmx5bjcr.1, CC BY 4.0): "
    "pass KneeXrayData.zip itself, or unpack it and pass its kneeKL224 folder."
)
EXPECTED = (
    "Expected one of: {split}/{grade}/{file} (splits train, val, test; grades 0 to 4), in a folder or a .zip; "
    "metadata.csv beside the X-rays; a .csv with the columns file,label,person_id,laterality; .parquet files with "
    "the columns image and label."
)


class CorpusError(ValueError):
    """A corpus that cannot be used; the message names the file or folder and says what would be right."""


@dataclass(frozen=True)
class Xray:
    """One graded X-ray of a corpus.

    `file` is its name below the data; `path` the file on disk that holds it, and `member` its name in that archive or
    its row in that Parquet file, None where `path` is the X-ray itself. `person_id` and `laterality` are what the
    layout tells of them.
    """

    split: str
    grade: int
    file: str
    path: Path
    member: str | int | None = None
    person_id: str | None = None
    laterality: str | None = None


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """Where the X-rays are, as an absolute path: `data_dir`, else the environment's KNEE_XRAY_DIR.

    It may be a folder, a .zip, a folder inside a .zip (`KneeXrayData.zip/kneeKL299`), a .csv or a .parquet file.

    Raises:
        CorpusError: neither is given, or there is no such thing; says where to get the data set.
    """
    named_by = "" if data_dir else " (from KNEE_XRAY_DIR)"
    data_dir = data_dir or os.environ.get("KNEE_XRAY_DIR")
    if not data_dir:
        raise CorpusError(f"No knee X-rays were named. {INSTRUCTIONS}")
    # Absolute: the cache keeps these paths, and is read from other working folders too.
    path = Path(data_dir).absolute()
    if not path.exists() and not _archive_of(path)[1]:
        raise CorpusError(f"{data_dir}{named_by}: there is no such folder or file. {INSTRUCTIONS}")
    return path


def find_files(data: Path) -> dict[str, list[Xray]]:
    """The X-rays of each split, in a stable order, with no person in two splits.

    Raises:
        CorpusError: as `list_files`, or a person in two splits.
    """
    splits = list_files(data)
    shared = find_shared_people(splits)
    for person, (first, second) in shared.items():
        raise CorpusError(
            f"Person {person} is in two splits ({first.file} and {second.file}): "
            "both knees of a person, and every visit, belong in one split."
        )
    return splits


def list_files(data: Path) -> dict[str, list[Xray]]:
    """The X-rays of each split, whoever they are of.

    Raises:
        CorpusError: an unknown layout, no X-ray, an empty split, two folders for one split, an X-ray without a grade,
            a grade outside 0..4, a table that lacks a column or names a file that is not there, or an archive that is
            damaged or has entries that point outside it.
    """
    archive, inner = _archive_of(data)
    if archive:
        splits = _list_archive(archive, inner)
    elif data.is_dir():
        splits = _list_folder(data)
    elif data.suffix.lower() == ".csv":
        splits = _list_table(data, "file")
    elif data.suffix.lower() == ".parquet":
        splits = _list_parquet([data], data.parent)
    else:
        raise CorpusError(f"{data} is no folder, .zip, .csv or .parquet file. {EXPECTED}")
    for xrays in splits.values():
        for xray in xrays:
            _refuse_unspeakable_name(xray.file)
    return {split: [_with_identity(xray) for xray in xrays] for split, xrays in splits.items()}


def find_shared_people(splits: dict[str, list[Xray]]) -> dict[str, tuple[Xray, Xray]]:
    """People who are in more than one split, each with an X-ray from the first and one from another.

    `auto_test` is left out: it shows the test people again.
    """
    seen, shared = {}, {}
    for xrays in (xrays for split, xrays in splits.items() if split != "auto_test"):
        for xray in xrays:
            if xray.person_id and seen.setdefault(xray.person_id, xray).split != xray.split:
                shared.setdefault(xray.person_id, (seen[xray.person_id], xray))
    return shared


def is_release(splits: dict[str, list[Xray]]) -> bool:
    """Whether every X-ray bears a name of the official release: a person's number in the Osteoarthritis Initiative."""
    xrays = [xray for listed in splits.values() for xray in listed]
    return bool(xrays) and all(re.fullmatch("9[0-9]{6}", xray.person_id or "") for xray in xrays)


def release_differences(splits: dict[str, list[Xray]]) -> list[str]:
    """Where the counts differ from the official release's; empty for a corpus whose names are not the release's.

    Splits that are not there at all are not compared.
    """
    differences = []
    for split in RELEASE_COUNTS if is_release(splits) else ():
        counts = Counter(xray.grade for xray in splits.get(split, ()))
        for grade, expected in enumerate(RELEASE_COUNTS[split]):
            if split in splits and counts[grade] != expected:
                differences.append(f"{split} has {counts[grade]} X-rays of KL{grade}, the official release {expected}")
    return differences


def manifest_digest(splits: dict[str, list[Xray]], data: Path) -> str:
    """Digest of the place, names, sizes and times of all files, which the cache of `datasets` would not look at."""
    digest, status = hashlib.sha256(os.fsencode(data)), {}
    for split, xrays in splits.items():
        for xray in xrays:
            found = status.get(xray.path) or status.setdefault(xray.path, xray.path.stat())
            fields = (
                split,
                xray.grade,
                found.st_size,
                found.st_mtime_ns,
                xray.member,
                xray.person_id,
                xray.laterality,
            )
            digest.update("\0".join(map(str, ("", *fields, ""))).encode("utf-8", "surrogateescape"))
            digest.update(os.fsencode(xray.file))
    return digest.hexdigest()[:16]


def read_contents(xrays: Iterable[Xray]) -> Iterator[tuple[Xray, Path | bytes]]:
    """Each X-ray with its path, or with its bytes where it lies in an archive or in Parquet. Keeps one file open.

    Raises:
        CorpusError: an archive or a Parquet file that is damaged.
    """
    for (path, kind), run in groupby(xrays, lambda xray: (xray.member is not None and xray.path, type(xray.member))):
        if kind is str:
            yield from _read_members(path, run)
        elif kind is int:
            try:
                yield from _read_rows(path, run)
            except (OSError, pyarrow.ArrowException) as error:
                raise CorpusError(f"{path} is damaged or cannot be read: {error}") from error
        else:
            yield from ((xray, xray.path) for xray in run)


def _read_members(archive: Path, xrays: Iterator[Xray]) -> Iterator[tuple[Xray, bytes]]:
    with _open_archive(archive) as opened:
        for xray in xrays:
            try:
                yield xray, opened.read(xray.member)
            except (zipfile.BadZipFile, OSError, EOFError, ValueError, NotImplementedError, RuntimeError) as error:
                raise CorpusError(f"{archive}/{xray.member} is damaged or cannot be read: {error}") from error
            except zlib.error as error:
                raise CorpusError(f"{archive}/{xray.member} is damaged: {error}") from error


def _read_rows(shard: Path, xrays: Iterator[Xray]) -> Iterator[tuple[Xray, bytes]]:
    """Rows in ascending order are read in one pass, row groups without any are passed over; others begin another."""
    wanted = next(xrays, None)
    while wanted is not None:
        first = wanted
        with parquet.ParquetFile(shard) as opened:
            for start, batch in _batches(opened, first.member):
                while wanted is not None and start <= wanted.member < start + len(batch):
                    content = batch.column("image")[wanted.member - start].as_py()
                    content = content.get("bytes") if isinstance(content, dict) else content
                    if not isinstance(content, bytes):
                        raise CorpusError(f"{shard} row {wanted.member} holds no image bytes.")
                    yield wanted, content
                    wanted = next(xrays, None)
                if wanted is None or wanted.member < start:
                    break
        if wanted is first:
            raise CorpusError(f"{shard} has no row {first.member}: it has changed since it was listed.")


def _batches(opened: parquet.ParquetFile, first: int) -> Iterator[tuple[int, pyarrow.RecordBatch]]:
    """The images from the row group of row `first` on, some at a time, each time with the number of the first row.

    A reader of its own for each row group: one for all would keep what it has read in memory.
    """
    start = 0
    for group in range(opened.num_row_groups):
        rows = opened.metadata.row_group(group).num_rows
        if start + rows > first:
            row = start
            for batch in opened.iter_batches(batch_size=16, row_groups=[group], columns=["image"]):
                yield row, batch
                row += len(batch)
        start += rows


def _with_identity(xray: Xray) -> Xray:
    """Fills in person and side from the file's name, and a DICOM file's person from its header."""
    person_id, laterality = parse_name(PurePosixPath(xray.file).name)
    person_id = xray.person_id or person_id
    if not person_id and xray.member is None and xray.file.lower().endswith(DICOM_SUFFIXES):
        try:
            person_id = read_person_id(xray.path)
        except Refusal as refusal:
            raise CorpusError(f"{xray.path} {refusal}") from refusal
        except Exception:  # damaged: the reader will say so, and how
            person_id = None
    return replace(xray, person_id=person_id, laterality=xray.laterality or laterality)


def _refuse_unspeakable_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Arrow cannot keep
        raise CorpusError(f"{os.fsencode(name)!r}: the name is not UTF-8; rename the file.") from None


# Folders and archives. `zipfile.Path` has the methods of `Path` that are used here, so one code reads both.


def _list_folder(data: Path) -> dict[str, list[Xray]]:
    if (data / "metadata.csv").is_file():
        return _list_table(data / "metadata.csv", "file_name")
    tables = [path for name in _SPLIT_OF_NAME if (path := data / name / "metadata.csv").is_file()]
    if tables:
        splits = {}
        for table in tables:
            for split, xrays in _list_table(table, "file_name", _SPLIT_OF_NAME[table.parent.name], data).items():
                splits.setdefault(split, []).extend(xrays)
        return splits
    splits = _list_tree(data, data)
    if splits:
        return splits
    shards = sorted(path for path in data.rglob("*.parquet") if not path.name.startswith("."))
    if shards:
        return _list_parquet(shards, data)
    alone = [path for path in _visible(data) if path.suffix.lower() in (".zip", ".csv")]
    if len(alone) == 1:
        return list_files(alone[0])
    raise CorpusError(_unknown(data, data))


def _list_archive(archive: Path, inner: str) -> dict[str, list[Xray]]:
    with _open_archive(archive) as opened:
        _check_entries(opened, archive)
        root = zipfile.Path(opened)
        if inner:
            folders = {name for name in zipfile.CompleteDirs.make(opened).namelist() if name.endswith("/")}
            found = sorted(name for name in folders if f"/{name}".endswith(f"/{inner}/"))
            if len(found) != 1:
                raise CorpusError(f"{archive} holds {len(found)} folders that end with {inner}: name one in full.")
            root = zipfile.Path(opened, found[0])
        splits = _list_tree(root, archive)
        if not splits:
            raise CorpusError(_unknown(root, archive))
        return splits


def _list_tree(root, data: Path, depth: int = 0) -> dict[str, list[Xray]]:
    """X-rays in {split}/{grade}/ below `root` or one of the release's inner folders, or in {grade}/, all for train.

    A folder that holds but one folder, as archives are often packed, is gone into.
    """
    for inner in ("", *_INNER_FOLDERS):
        base = root / inner if inner else root
        splits = {}
        for split, names in SPLIT_FOLDERS.items():
            folders = [base / name for name in names if (base / name).is_dir()]
            if len(folders) > 1:
                raise CorpusError(f"{folders[0]} and {folders[1]} both name the {split} split: keep one of them.")
            if folders:
                splits[split] = _list_split(folders[0], split, data)
        if splits:
            return splits
    if any((root / str(grade)).is_dir() for grade in GRADES):
        return {"train": _list_split(root, "train", data)}
    below = _visible(root)
    return _list_tree(below[0], data, depth + 1) if len(below) == 1 and below[0].is_dir() and depth < 3 else {}


def _list_split(folder, split: str, data: Path) -> list[Xray]:
    name, xrays = folder.name.strip("/"), []
    for grade_folder in _visible(folder):
        suffix = PurePosixPath(grade_folder.name).suffix.lower()
        if not grade_folder.is_dir():
            if suffix in SUFFIXES:
                raise CorpusError(f"{grade_folder} has no grade: put it into {name}/0 to {name}/4.")
            continue
        if grade_folder.name not in map(str, GRADES):
            raise CorpusError(f"{grade_folder} is no grade: the folders in {name}/ must be named 0 to 4.")
        for path in _visible(grade_folder):
            if PurePosixPath(path.name).suffix.lower() in SUFFIXES:
                grade = int(grade_folder.name)
                if isinstance(path, zipfile.Path):
                    xrays.append(Xray(split, grade, path.at, data, path.at))
                else:
                    xrays.append(Xray(split, grade, path.relative_to(data).as_posix(), path))
    if not xrays:
        raise CorpusError(f"{folder} is empty: it must hold {{grade}}/{{file}} with {', '.join(SUFFIXES)} files.")
    return xrays


def _visible(folder) -> list:
    """What a folder holds, sorted, without what macOS leaves there (.DS_Store, ._name, __MACOSX)."""
    found = (path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))
    return sorted(found, key=lambda path: path.name)


def _unknown(folder, data: Path) -> str:
    names = [path.name + ("/" if path.is_dir() else "") for path in _visible(folder)]
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return f"{data} holds no train, val or test folder, but {found}. {EXPECTED} {INSTRUCTIONS}"


def _archive_of(path: Path) -> tuple[Path | None, str]:
    """The .zip that a path names, and the folder inside it; (None, "") for any other path."""
    for candidate in (path, *path.parents):
        if candidate.is_file():
            inner = "" if path == candidate else path.relative_to(candidate).as_posix()
            return (candidate, inner) if candidate.suffix.lower() == ".zip" else (None, "")
        if candidate.exists():
            break
    return None, ""


def _open_archive(archive: Path) -> zipfile.ZipFile:
    try:
        return zipfile.ZipFile(archive)
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise CorpusError(f"{archive} is damaged or no .zip: {error}. Download it again.") from error


def _check_entries(opened: zipfile.ZipFile, archive: Path) -> None:
    """Refuses archives that were made to do harm, though nothing is ever unpacked."""
    seen = set()
    for entry in opened.infolist():
        name, reason = entry.filename, ""
        parts = name.replace("\\", "/").split("/")
        if name.startswith(("/", "\\")) or ".." in parts or re.match("[A-Za-z]:", name):
            reason = "points outside the archive"
        elif stat.S_ISLNK(entry.external_attr >> 16):
            reason = "is a link"
        elif entry.flag_bits & 1:
            reason = "is encrypted"
        elif entry.file_size > MAX_BYTES and PurePosixPath(name).suffix.lower() in SUFFIXES:
            reason = f"has {entry.file_size:,} bytes, more than {MAX_BYTES:,}"
        elif name in seen:
            reason = "is there twice"
        if reason:
            raise CorpusError(f"{archive}: the entry {name!r} {reason}; this archive is refused.")
        seen.add(name)


# Tables.


def _list_table(table: Path, file_column: str, split: str = "", data: Path | None = None) -> dict[str, list[Xray]]:
    """X-rays of a .csv; files are relative to it.

    Columns: file (or file_name, as ImageFolder has it), label, and where there are any person_id, laterality, split.
    Without `split` it is told by the first folder of the file's name, and is train where that is none.
    """
    splits, seen = {}, set()
    for line, row in _read_table(table, file_column):
        place = f"{table} line {line}"
        name = (row.get(file_column) or "").strip()
        path = table.parent / name
        if not name or not path.is_file():
            raise CorpusError(f"{place}: there is no file {name!r} in {table.parent}.")
        if path in seen:
            raise CorpusError(f"{place}: {name!r} is there twice.")
        seen.add(path)
        laterality = (row.get("laterality") or "").strip().upper() or None
        if laterality not in ("L", "R", None):
            raise CorpusError(f"{place}: laterality {laterality!r} must be L or R, or empty.")
        chosen = split or (row.get("split") or "").strip() or _first_folder(name)
        if chosen not in _SPLIT_OF_NAME:
            raise CorpusError(f"{place}: split {chosen!r} must be one of {', '.join(_SPLIT_OF_NAME)}.")
        file = path.relative_to(data).as_posix() if data and path.is_relative_to(data) else name
        person = (row.get("person_id") or "").strip() or None
        xray = Xray(_SPLIT_OF_NAME[chosen], _grade(row.get("label"), place), file, path, None, person, laterality)
        splits.setdefault(xray.split, []).append(xray)
    if not splits:
        raise CorpusError(f"{table} names no X-rays.")
    return {name: splits[name] for name in SPLIT_FOLDERS if name in splits}


def _read_table(table: Path, file_column: str) -> Iterator[tuple[int, dict]]:
    try:
        with open(table, newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            missing = {file_column, "label"} - set(reader.fieldnames or ())
            if missing:
                raise CorpusError(f"{table} has no column {sorted(missing)[0]!r}, but {reader.fieldnames}. {EXPECTED}")
            for row in reader:
                yield reader.line_num, row
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise CorpusError(f"{table} cannot be read as a UTF-8 .csv: {error}") from error


def _first_folder(name: str) -> str:
    parts = PurePosixPath(name).parts
    return parts[0] if len(parts) > 1 and parts[0] in _SPLIT_OF_NAME else "train"


def _grade(value, place: str) -> int:
    """A grade as a number, also as spreadsheets write whole ones ("2.0")."""
    try:
        grade = float(value)
    except (TypeError, ValueError):
        grade = -1
    if grade not in GRADES:
        raise CorpusError(f"{place}: label {value!r} must be a Kellgren-Lawrence grade, 0 to 4.")
    return int(grade)


# Parquet.


def _list_parquet(shards: list[Path], data: Path) -> dict[str, list[Xray]]:
    """X-rays of Parquet files whose name or folder tells the split, as train-00000-of-00002.parquet; else train."""
    splits = {}
    for shard in shards:
        told = _SPLIT_IN_SHARD.findall(shard.relative_to(data).as_posix().lower())
        split = _SPLIT_OF_NAME[told[-1]] if told else "train"
        columns = _read_columns(shard)
        for row, label in enumerate(columns["label"]):
            given = {name: columns[name][row] or None for name in ("file", "person_id", "laterality")}
            if given["laterality"] not in ("L", "R", None):
                raise CorpusError(f"{shard} row {row}: laterality {given['laterality']!r} must be L or R, or empty.")
            file = given["file"] or f"{shard.relative_to(data).as_posix()}#{row}"
            grade = _grade(label, f"{shard} row {row}")
            xray = Xray(split, grade, file, shard, row, given["person_id"], given["laterality"])
            splits.setdefault(split, []).append(xray)
    if not splits:
        raise CorpusError(f"{data} names no X-rays: its .parquet files have no rows.")
    return {name: splits[name] for name in SPLIT_FOLDERS if name in splits}


def _read_columns(shard: Path) -> dict[str, list]:
    """The columns of a shard but for its images; those that are missing and may be are empty."""
    try:
        with parquet.ParquetFile(shard) as opened:
            present = set(opened.schema_arrow.names)
            missing = {"image", "label"} - present
            if missing:
                raise CorpusError(f"{shard} has no column {sorted(missing)[0]!r}, but {sorted(present)}. {EXPECTED}")
            wanted = [name for name in ("label", "file", "person_id", "laterality") if name in present]
            columns = opened.read(columns=wanted).to_pydict()
    except (OSError, ValueError) as error:  # pyarrow's own errors are ValueErrors
        if isinstance(error, CorpusError):
            raise
        raise CorpusError(f"{shard} is damaged or no Parquet file: {error}") from error
    rows = len(columns["label"])
    return {name: columns.get(name) or [None] * rows for name in ("label", "file", "person_id", "laterality")}
