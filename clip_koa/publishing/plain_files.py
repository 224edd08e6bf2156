"""Reading what goes into a release: plain files alone, never through a link."""

import os
import stat
from importlib import metadata
from pathlib import Path, PurePath
from typing import BinaryIO

from clip_koa.publishing.errors import ReleaseError

# A link or a pipe put there between look and opening is refused too, and not waited for.
_FLAGS = os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)


def open_plain(folder: Path, name: str) -> BinaryIO | None:
    """Opens a file below a folder; None where there is none.

    Only what lies below `folder` is looked at: how one comes to the folder itself is its user's choice. A hard link
    cannot be told from the file; it is checked by what it holds, as every file is.

    Raises:
        ReleaseError: the file, or a folder on the way to it, is a link; or it is no plain file.
    """
    path = folder
    for part in PurePath(name).parts:
        path = path / part
        if path.is_symlink():
            raise ReleaseError(f"{path} is a link: a release takes plain files only, so put the file in its place.")
    try:
        file = os.fdopen(os.open(path, _FLAGS), "rb")
    except (FileNotFoundError, NotADirectoryError):
        return None
    if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
        file.close()
        raise ReleaseError(f"{path} is no plain file: a release takes plain files only.")
    return file


def read_plain(folder: Path, name: str) -> bytes | None:
    """The content of a file below a folder; None where there is none. Raises as `open_plain`."""
    file = open_plain(folder, name)
    if file is None:
        return None
    with file:
        return file.read()


def copy_plain(folder: Path, name: str, target: Path) -> bool:
    """Copies a file below a folder, whatever its size; False where there is none. Raises as `open_plain`."""
    file = open_plain(folder, name)
    if file is None:
        return False
    with file, open(target, "xb") as copy:
        while part := file.read(2**20):
            copy.write(part)
    return True


def copy_license(target: Path) -> None:
    """Copies the project's licence, out of a checkout or from beside an installed package.

    Raises:
        ReleaseError: neither is there.
    """
    if copy_plain(Path(__file__).parents[2], "LICENSE", target):
        return
    try:
        text = metadata.distribution("clip-koa").read_text("licenses/LICENSE")
    except metadata.PackageNotFoundError:
        text = None
    if not text:
        raise ReleaseError("the project's LICENSE is not there: install clip-koa anew.")
    target.write_text(text, encoding="utf-8")
