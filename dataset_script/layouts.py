"""The layouts that knee X-rays come in: what X-rays a folder, an archive, a table or Parquet holds, and their content.

Archives are read in place, nothing is unpacked. A layout that is none of these gets an error that says what was found.
"""

import hashlib
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import groupby
from pathlib import Path, PurePosixPath

from dataset_script.archives import check_entries, open_archive, read_member
from dataset_script.dicom import is_dicom, read_identity
from dataset_script.listing import Listing, Xray, find_shared_people
from dataset_script.names import SPLIT_FOLDERS, CorpusError, GradeNames, split_of
from dataset_script.pixels import Refusal
from dataset_script.radiograph import IMAGE_SUFFIXES, MAX_BYTES, parse_name
from dataset_script.shards import list_shards, read_rows
from dataset_script.sniffing import HEAD_BYTES, read_head
from dataset_script.tables import list_table
from dataset_script.trees import Tree, beside_a_table, list_tree, scan_archive, scan_folder

# X-rays per split and grade of the release (Chen 2018), for kneeKL224 and kneeKL299 alike.
RELEASE_COUNTS = {
    "train": (2286, 1046, 1516, 757, 173),
    "validation": (328, 153, 212, 106, 27),
    "test": (639, 296, 447, 223, 51),
}
# How much of a DICOM file is read at first to tell whose it is: what comes before the pixels is seldom longer.
_HEADER_BYTES = 1 << 20

INSTRUCTIONS = (
    "Name a corpus as data_dir or in KNEE_XRAY_DIR, such as KneeXrayData.zip or the kneeKL224 folder in it "
    "(P. Chen, doi 10.17632/56rmx5bjcr.1, CC BY 4.0)."
)
EXPECTED = (
    "Expected one of: {split}/{grade}/{file} (splits train, val, test; grades 0 to 4), in a folder or a .zip; "
    "metadata.csv beside the X-rays; a .csv with the columns file,label,person_id,laterality; .parquet files with "
    "the columns image and label."
)


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


def find_files(data: Path, grades: str | None = None) -> Listing:
    """The X-rays of each split, in a stable order, with no person in two splits.

    Args:
        data: what `resolve_data_dir` gives.
        grades: see `names.GradeNames`.

    Raises:
        CorpusError: as `list_files`, or a person in two splits.
    """
    splits = list_files(data, grades)
    for person, (first, second) in find_shared_people(splits).items():
        raise CorpusError(
            f"Person {person} is in two splits ({first.file} and {second.file}): "
            "both knees of a person, and every visit, belong in one split."
        )
    return splits


def list_files(data: Path, grades: str | None = None) -> Listing:
    """The X-rays of each split, whoever they are of, and what was left out.

    Raises:
        CorpusError: an unknown layout, no X-ray, an empty split, two folders for one split, an X-ray without a grade,
            a grade outside 0..4 or a name that may mean two, a table that lacks a column or names a file that is not
            there, or an archive or a Parquet file that is damaged, does harm or is too large.
    """
    names = GradeNames(grades)
    found = _list(data, names)
    names.refuse_unmet(data)
    listing = Listing()
    listing.left_out = found.left_out
    listing.grade_names = {name: grade for name, grade in names.met.items() if name != str(grade)}
    for split in SPLIT_FOLDERS:  # in this order, whatever the layout's
        if split in found:
            for xray in found[split]:
                _refuse_unspeakable_name(xray.file)
            listing[split] = _identify(found[split])
    return listing


def is_release(splits: dict[str, list[Xray]]) -> bool:
    """Whether every X-ray bears a name of the official release: a person's number in the Osteoarthritis Initiative.

    Other X-rays of the same people, such as crops of its later films, bear other names.
    """
    xrays = [xray for listed in splits.values() for xray in listed]
    return bool(xrays) and all(
        re.fullmatch("9[0-9]{6}", xray.person_id or "")
        and (isinstance(xray.member, int) or xray.person_id in xray.file.rsplit("/", 1)[-1])
        for xray in xrays
    )


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
        CorpusError: an archive or a Parquet file that is damaged, or an X-ray in it that is too large.
    """
    for path, kind, run in _runs(xrays):
        if kind is str:
            with open_archive(path) as opened:
                for xray in run:
                    yield xray, read_member(opened, xray.member)
        elif kind is int:
            yield from read_rows(path, run)
        else:
            for xray in run:
                yield xray, xray.path


def _runs(xrays: Iterable[Xray]) -> Iterator[tuple[Path, type, Iterator[Xray]]]:
    """Neighbours that lie in the same archive or Parquet file, or in none."""
    for (path, kind), run in groupby(xrays, lambda xray: (xray.member is not None and xray.path, type(xray.member))):
        yield path, kind, run


# Whose X-ray it is.


def _identify(xrays: list[Xray]) -> list[Xray]:
    """Fills in person and side: what the layout says goes first, then what the X-ray itself says, then its name."""
    named = [parse_name(PurePosixPath(xray.file).name) for xray in xrays]
    asked = [index for index, xray in enumerate(xrays) if _must_be_asked(xray, named[index][0])]
    told = dict(zip(asked, _read_identities(xrays[index] for index in asked), strict=True))
    identified = []
    for index, xray in enumerate(xrays):
        own, own_side = told.get(index, (None, None))
        person, side = named[index]
        identified.append(
            replace(
                xray,
                person_id=xray.person_id or own or person,
                laterality=xray.laterality or side or own_side,  # the reader refuses a side that differs
                own_person_id=own,
            )
        )
    return identified


def _must_be_asked(xray: Xray, person_of_name: str | None) -> bool:
    """Whether its content is looked at; an archive or a Parquet file is only opened where nothing else tells."""
    if xray.member is None:
        return True
    return not xray.person_id and not (person_of_name and xray.file.lower().endswith(IMAGE_SUFFIXES))


def _read_identities(xrays: Iterable[Xray]) -> Iterator[tuple[str | None, str | None]]:
    """Person and side that each X-ray's content tells: DICOM files do, others do not."""
    for path, kind, run in _runs(xrays):
        if kind is str:
            with open_archive(path) as opened:
                for xray in run:
                    yield _identity_of_member(opened, xray)
        elif kind is int:
            for xray, content in read_rows(path, run):
                yield _identity(f"{path} row {xray.member}", content[:HEAD_BYTES], content)
        else:
            for xray in run:
                yield _identity(str(xray.path), read_head(xray.path), xray.path)


def _identity_of_member(opened, xray: Xray) -> tuple[str | None, str | None]:
    place = f"{xray.path}/{xray.member}"
    try:
        head = read_member(opened, xray.member, HEAD_BYTES)
        if not is_dicom(head):
            return None, None
        header = read_member(opened, xray.member, _HEADER_BYTES)
        whole = len(header) < _HEADER_BYTES
    except CorpusError:  # damaged: the reader will say so, and how
        return None, None
    told = _identity(place, head, header)
    if told[0] is None and not whole:  # cut off before it was told
        told = _identity(place, head, read_member(opened, xray.member))
    return told


def _identity(place: str, head: bytes, source: Path | bytes) -> tuple[str | None, str | None]:
    if not is_dicom(head) or (isinstance(source, Path) and source.stat().st_size > MAX_BYTES):
        return None, None
    try:
        person, side = read_identity(source)
    except Refusal as refusal:
        raise CorpusError(f"{place} {refusal}") from refusal
    except Exception:  # damaged: the reader will say so, and how
        return None, None
    return person, side if side in ("L", "R") else None


def _refuse_unspeakable_name(name: str) -> None:
    try:
        name.encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Arrow cannot keep
        raise CorpusError(f"{os.fsencode(name)!r}: the name is not UTF-8; rename the file.") from None


# The layouts.


def _list(data: Path, names: GradeNames) -> Listing:
    archive, inner = _archive_of(data)
    if archive:
        return _list_archive(archive, inner, names)
    if data.is_dir():
        return _list_folder(data, names)
    if data.suffix.lower() == ".csv":
        listing = Listing(list_table(data, "file", names))
        listing.left_out = beside_a_table(data, [xray.path for xrays in listing.values() for xray in xrays])
        return listing
    if data.suffix.lower() == ".parquet":
        return Listing(list_shards([data], data.parent, names))
    raise CorpusError(f"{data} is no folder, .zip, .csv or .parquet file. {EXPECTED}")


def _list_folder(data: Path, names: GradeNames) -> Listing:
    tree = scan_folder(data)
    tables = _metadata_tables(tree)
    if tables:
        listing = Listing()
        for table, split in tables.items():
            for told, xrays in list_table(data / table, "file_name", names, split, data).items():
                listing.setdefault(told, []).extend(xrays)
        taken = {os.path.normpath(xray.file) for xrays in listing.values() for xray in xrays}
        listing.left_out = tree.left_out(taken | tables.keys(), "", "not in metadata.csv", "unlisted")
        return listing
    splits, base = list_tree(tree, names)
    if splits:
        return _with_left_out(tree, splits, base)
    shards = [name for name in tree.files if name.lower().endswith(".parquet")]
    if shards:
        listing = Listing(list_shards([data / name for name in shards], data, names))
        listing.left_out = tree.left_out(set(shards), "", "not in Parquet, as the others are")
        return listing
    alone = [name for name in tree.files_in("") if name.lower().endswith((".zip", ".csv"))]
    if len(alone) == 1:
        listing = _list(data / alone[0], names)
        if alone[0].lower().endswith(".zip"):
            listing.left_out += tree.left_out(set(alone), "", f"outside {alone[0]}")
        return listing
    raise CorpusError(_unknown(tree, ""))


def _metadata_tables(tree: Tree) -> dict[str, str]:
    """ImageFolder's tables, at the top or in the folders of splits, each with its split, "" for that at the top."""
    if "metadata.csv" in tree.files_in(""):
        return {"metadata.csv": ""}
    folders = [(folder, split_of(folder)) for folder in tree.folders_in("")]
    return {
        f"{folder}/metadata.csv": split
        for folder, split in folders
        if split and f"{folder}/metadata.csv" in tree.files_in(folder)
    }


def _list_archive(archive: Path, inner: str, names: GradeNames) -> Listing:
    with open_archive(archive) as opened:
        check_entries(opened, archive)
        tree, root = scan_archive(archive, opened), ""
        if inner:
            found = tree.folders_that_end_with(inner)
            if len(found) != 1:
                raise CorpusError(f"{archive} holds {len(found)} folders that end with {inner}: name one in full.")
            root = found[0]
        splits, base = list_tree(tree, names, root)
        if not splits:
            raise CorpusError(_unknown(tree, root))
        return _with_left_out(tree, splits, base)


def _with_left_out(tree: Tree, splits: dict[str, list[Xray]], base: str) -> Listing:
    listing = Listing(splits)
    taken = {xray.file for xrays in splits.values() for xray in xrays}
    listing.left_out = tree.left_out(taken, base, "outside the folders of splits and grades")
    return listing


def _unknown(tree: Tree, root: str) -> str:
    entries = sorted([folder + "/" for folder in tree.folders_in(root)] + tree.files_in(root))
    names = [entry.removeprefix(root).removeprefix("/") for entry in entries]
    found = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "") if names else "nothing"
    return f"{tree.data} holds no train, val or test folder, but {found}. {EXPECTED} {INSTRUCTIONS}"


def _archive_of(path: Path) -> tuple[Path | None, str]:
    """The .zip that a path names, and the folder inside it; (None, "") for any other path."""
    for candidate in (path, *path.parents):
        if candidate.is_file():
            inner = "" if path == candidate else path.relative_to(candidate).as_posix()
            return (candidate, inner) if candidate.suffix.lower() == ".zip" else (None, "")
        if candidate.exists():
            break
    return None, ""
