"""Graded X-rays in folders, {split}/{grade}/{file}: on disk or inside an archive, which are read by the same code."""

import os
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset_script.archives import read_member
from dataset_script.listing import LeftOut, Xray
from dataset_script.names import CorpusError, GradeNames, how_to_map, split_of
from dataset_script.sniffing import HEAD_BYTES, is_hidden, is_xray, named_as_xray, read_head, why_left_out

# Where the release and its copies keep the split folders: the X-rays of 224 pixels go before those of 299.
_INNER_FOLDERS = tuple(
    f"{place}{size}" for size in ("kneeKL224", "kneeKL299") for place in ("", "ClsKLData/", "KneeXrayData/ClsKLData/")
)
_MAX_DEPTH = 3
_MAX_FOLDERS = 200_000


class Tree:
    """The names of all files and folders below a folder, or in an archive; "" is the top. Hidden ones stay apart.

    Args:
        data: the folder or the archive.
        files: names below it, with / between.
        folders: likewise, empty ones too.
        opened: the archive; None for a folder.
    """

    def __init__(
        self, data: Path, files: Iterable[str], folders: Iterable[str], opened: zipfile.ZipFile | None = None
    ):
        self.data, self._opened = data, opened
        self.files, self.hidden = [], []
        self._inside: dict[str, tuple[set[str], list[str]]] = {"": (set(), [])}
        for name in folders:
            if not _has_hidden_part(name):
                self._add_folder(name)
        for name in sorted(files):
            if _has_hidden_part(name):
                self.hidden.append(name)
                continue
            self.files.append(name)
            self._add_folder(folder := name.rpartition("/")[0])
            self._inside[folder][1].append(name)

    def _add_folder(self, name: str) -> None:
        missing = []
        while name not in self._inside:
            if len(self._inside) > _MAX_FOLDERS:
                raise CorpusError(f"{self.data} has more than {_MAX_FOLDERS:,} folders: name the one with the splits.")
            self._inside[name] = (set(), [])
            missing.append(name)
            name = name.rpartition("/")[0]
        for name in missing:
            self._inside[name.rpartition("/")[0]][0].add(name)

    def folders_in(self, folder: str) -> list[str]:
        """The folders directly in a folder, sorted; none where there is no such folder."""
        return sorted(self._inside[folder][0]) if folder in self._inside else []

    def files_in(self, folder: str) -> list[str]:
        """The files directly in a folder, sorted."""
        return self._inside[folder][1] if folder in self._inside else []

    def files_below(self, folder: str) -> Iterator[str]:
        """The files in a folder and in those below it."""
        waiting = [folder]
        while waiting:
            folder = waiting.pop()
            yield from self.files_in(folder)
            waiting += reversed(self.folders_in(folder))

    def folders_that_end_with(self, folder: str) -> list[str]:
        """Every folder whose name ends with the given one, sorted."""
        return sorted(name for name in self._inside if f"/{name}".endswith(f"/{folder}"))

    def place(self, name: str) -> str:
        """What to call a file or folder in errors."""
        return f"{self.data}/{name}" if name else str(self.data)

    def is_xray(self, name: str) -> bool:
        """Whether a file is an X-ray: its suffix says so, or else its content."""
        return named_as_xray(name) or is_xray(self._head(name))

    def xray(self, split: str, grade: int, name: str) -> Xray:
        """A file as a graded X-ray."""
        return (
            Xray(split, grade, name, self.data, name) if self._opened else Xray(split, grade, name, self.data / name)
        )

    def left_out(self, taken: set[str], base: str, reason: str, kind: str = "xray") -> list[LeftOut]:
        """What is not in `taken`, with the reason and kind of X-rays among it; what is not below `base` is outside."""
        found = [LeftOut(name, "hidden", "hidden") for name in self.hidden]
        for name in self.files:
            if name in taken:
                continue
            if base and not name.startswith(base + "/"):
                found.append(LeftOut(name, f"outside {base}", "outside"))
            else:
                found.append(why_left_out(name, self._head) or LeftOut(name, reason, kind))
        return found

    def _head(self, name: str) -> bytes:
        if self._opened is None:
            return read_head(self.data / name)
        try:
            return read_member(self._opened, name, HEAD_BYTES)
        except CorpusError:  # damaged: nothing tells what it is
            return b""


def beside_a_table(table: Path, taken: Iterable[Path]) -> list[LeftOut]:
    """What lies in the folders of the X-rays that a table names, and is not named by it."""
    taken = {os.path.normpath(path) for path in taken}
    folders, found = {os.path.dirname(path) for path in taken}, []
    taken.add(os.path.normpath(table))
    for folder in sorted(folders):
        for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
            name = os.path.relpath(entry.path, table.parent)
            if entry.path in taken or not entry.is_file():
                continue
            if is_hidden(entry.name):
                found.append(LeftOut(name, "hidden", "hidden"))
            else:
                why = why_left_out(name, lambda _, path=entry.path: read_head(path))
                found.append(why or LeftOut(name, f"not in {table.name}", "unlisted"))
    return found


def _has_hidden_part(name: str) -> bool:
    return ("." in name or "__MACOSX" in name) and any(map(is_hidden, name.split("/")))


def scan_folder(data: Path) -> Tree:
    """The tree of a folder. Links to folders are followed, but not back into a folder they lie in.

    Raises:
        CorpusError: a folder in it that cannot be read.
    """
    files, folders = [], []
    waiting = [("", frozenset({os.path.realpath(data)}))]
    while waiting:
        below, chain = waiting.pop()
        try:
            entries = list(os.scandir(data / below))
        except OSError as error:
            raise CorpusError(f"{data / below} cannot be read: {error.strerror}.") from error
        for entry in entries:
            name = f"{below}/{entry.name}" if below else entry.name
            if not entry.is_dir():
                files.append(name)
            elif is_hidden(entry.name):
                files.append(name + "/")  # counted as one
            else:
                folders.append(name)
                real = os.path.realpath(entry.path) if entry.is_symlink() else entry.path
                if real not in chain:
                    waiting.append((name, chain | {real} if entry.is_symlink() else chain))
    return Tree(data, files, folders)


def scan_archive(archive: Path, opened: zipfile.ZipFile) -> Tree:
    """The tree of an archive's entries."""
    names = opened.namelist()
    return Tree(
        archive,
        [name for name in names if not name.endswith("/")],
        [name.rstrip("/") for name in names if name.endswith("/")],
        opened,
    )


def list_tree(tree: Tree, names: GradeNames, root: str = "", depth: int = 0) -> tuple[dict[str, list[Xray]], str]:
    """X-rays in {split}/{grade}/ below `root` or one of the release's inner folders, or in {grade}/, all for train.

    A folder that holds but one folder, as archives are often packed, is gone into.

    Returns:
        The X-rays of each split, none where the layout is another one, and the folder that they were found in.

    Raises:
        CorpusError: two folders for one split, an empty split, an X-ray without a grade, or a name that is no grade.
    """
    for inner in ("", *_INNER_FOLDERS):
        base = f"{root}/{inner}".strip("/")
        folders = _split_folders(tree, base)
        if folders:
            return {split: _list_split(tree, folder, split, names) for split, folder in folders.items()}, base
    inside = tree.folders_in(root)
    if any(names.grade(_last(folder)) is not None for folder in inside):
        return {"train": _list_split(tree, root, "train", names)}, root
    if len(inside) == 1 and depth < _MAX_DEPTH and not any(map(named_as_xray, tree.files_in(root))):
        return list_tree(tree, names, inside[0], depth + 1)
    return {}, root


def _split_folders(tree: Tree, base: str) -> dict[str, str]:
    """The folder of each split directly in a folder, in the order of the splits."""
    found = {}
    for folder in tree.folders_in(base):
        split = split_of(_last(folder))
        if split in found:
            raise CorpusError(
                f"{tree.place(found[split])} and {tree.place(folder)} both name the {split} split: keep one of them."
            )
        if split:
            found[split] = folder
    return {split: found[split] for split in ("train", "validation", "test", "auto_test") if split in found}


def _list_split(tree: Tree, folder: str, split: str, names: GradeNames) -> list[Xray]:
    name = _last(folder) or tree.data.name
    loose = [file for file in tree.files_in(folder) if tree.is_xray(file)]
    if loose:
        more = f" (nor have {len(loose) - 1} more)" if len(loose) > 1 else ""
        raise CorpusError(f"{tree.place(loose[0])} has no grade{more}: put it into {name}/0 to {name}/4.")
    xrays = []
    for grade, folders in sorted(_grade_folders(tree, folder, names).items()):
        for inner in folders:
            xrays += [tree.xray(split, grade, file) for file in _files_of_grade(tree, inner) if tree.is_xray(file)]
    if not xrays:
        raise CorpusError(f"{tree.place(folder)} is empty: it must hold {{grade}}/{{file}} with X-rays.")
    return xrays


def _grade_folders(tree: Tree, folder: str, names: GradeNames) -> dict[int, list[str]]:
    """The folders of each grade in a split's folder."""
    found, unknown = {}, []
    for inner in tree.folders_in(folder):
        name = _last(inner)
        grade = names.grade(name)
        if grade is not None:
            found.setdefault(grade, []).append(inner)
        elif name.isdigit() or any(map(tree.is_xray, tree.files_below(inner))):
            unknown.append(inner)
    if unknown:
        held = sum(map(tree.is_xray, tree.files_below(unknown[0])))
        raise CorpusError(
            f"{tree.place(unknown[0])}, which holds {held} X-rays, is no grade: the folders in "
            f"{_last(folder) or tree.data.name}/ must be named 0 to 4. {how_to_map(map(_last, unknown[:5]))}"
        )
    for grade, folders in found.items():
        if len(folders) > 1 and not all(names.is_given(_last(inner)) for inner in folders):
            raise CorpusError(
                f"{' and '.join(map(tree.place, folders))} all mean KL{grade}. {how_to_map(map(_last, folders))}"
            )
    return found


def _files_of_grade(tree: Tree, folder: str) -> Iterator[str]:
    """The files of a grade's folder, at any depth; splits inside it would be mixed."""
    for inner in tree.folders_in(folder):
        if split_of(_last(inner)):
            raise CorpusError(
                f"{tree.place(inner)} is a split inside a grade: the folders must be {{split}}/{{grade}}/{{file}}."
            )
    yield from tree.files_below(folder)


def _last(folder: str) -> str:
    return folder.rpartition("/")[2]
