"""Where a release is built: a hidden folder that is put in its place when it is checked, and is gone otherwise."""

import os
import shutil
import signal
import stat
import tempfile
from contextlib import ExitStack, suppress
from pathlib import Path

from clip_koa.locks import InUseError, WriterLock
from clip_koa.publishing.errors import ReleaseError
from dataset_script.exit_status import handling_signals

_PREFIX = ".clip-koa-release-"


class Workplace:
    """A hidden folder to build one release in, with one writer. A context manager: on its end the folder is gone.

    After kill -9 it stays, and the next use for the same `output` removes it; those without one are found by their
    names, and removed where they are this user's and nobody holds their lock.

    Args:
        output: a new or empty folder that `keep` puts the release in; None for a release that is not kept.

    Raises (on entering):
        ReleaseError: `output` is a link, a file or not empty.
        InUseError: another process builds there.
    """

    def __init__(self, output: Path | None):
        self.output = Path(os.path.abspath(output)) if output else None
        self._stack = ExitStack()

    def __enter__(self) -> "Workplace":
        with ExitStack() as stack:
            if self.output:
                stack.enter_context(WriterLock(self.output))
                self._refuse_what_is_there()
                self.folder = self.output.with_name(f".{self.output.name}.building")
                _remove(self.folder)
                self.folder.mkdir(mode=0o700)
                stack.callback(_remove, self.folder)
            else:
                _sweep(Path(tempfile.gettempdir()))
                self.folder = Path(tempfile.mkdtemp(prefix=_PREFIX))
                stack.callback(_remove, self.folder)
                stack.enter_context(WriterLock(self.folder, inside=True))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_) -> None:
        with handling_signals(signal.SIG_IGN):  # who asks twice gets the same, and not half of it
            self._stack.close()

    @property
    def release(self) -> Path:
        """Where the release is built; it does not exist yet."""
        return self.folder / "release"

    def keep(self, release: Path) -> Path:
        """Puts a release that was built and checked in its place; returns where it lies now."""
        if not self.output:
            return release
        with suppress(FileNotFoundError):
            self.output.rmdir()
        os.replace(release, self.output)
        return self.output

    def _refuse_what_is_there(self) -> None:
        if self.output.is_symlink():
            raise ReleaseError(f"{self.output} is a link: name a new folder.")
        if self.output.exists() and (not self.output.is_dir() or any(self.output.iterdir())):
            raise ReleaseError(f"{self.output} is not empty: name a new folder.")


def _remove(folder: Path) -> None:
    if folder.is_symlink():
        folder.unlink()
    shutil.rmtree(folder, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Removes what killed processes of this user left; a folder whose lock is held is being built in."""
    for folder in place.glob(f"{_PREFIX}*"):
        with suppress(OSError):
            status = folder.lstat()
            mine = stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid()
            if mine and (folder / ".lock").exists():
                with suppress(InUseError), WriterLock(folder, inside=True):
                    _remove(folder)
