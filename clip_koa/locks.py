"""One writer for each file and folder: who else begins to write it is told who writes."""

import errno
import fcntl
import json
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from clip_koa.files import as_text, writing
from modeling_clip_koa import CLIPKOAError

# Where a file system knows no locks; the first two are also what a server without a lock service says.
_NO_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL)
_HELD_ELSEWHERE = (errno.EAGAIN, errno.EACCES)
_TRIES = 100


class InUseError(CLIPKOAError, OSError):
    """Another process writes this file or folder; the message says which, where, and since when."""


class WriterLock:
    """Makes this process the one writer of a file or folder, until it releases the lock or ends in whatever way.

    The lock is the system's own (flock), on a hidden file that says who holds it. It is gone when its process is, also
    after kill -9, and what stays of the file then keeps nobody out. It holds between the machines that share a folder
    over NFS or GPFS, and on Lustre where it is mounted with `flock` (with `localflock` it holds on one machine only).
    Where a file system knows no locks, a line says that nothing keeps a second writer away.

    Args:
        target: what is written. The lock file of a file, or of a folder that is put in place whole, lies beside it.
        inside: the lock file lies in `target`, a folder that stays where it is; it is made where it is missing.
    """

    def __init__(self, target: str | Path, inside: bool = False):
        self.target = Path(target)
        place = Path(os.path.abspath(target))
        self.file = place / ".lock" if inside else place.parent.resolve() / f".{place.name}.lock"
        self._descriptor, self._made = None, []

    def acquire(self) -> "WriterLock":
        """Takes the lock at once or not at all.

        Raises:
            InUseError: another process, or another part of this one, writes the target.
            WriteError: its folder cannot be written.
        """
        with writing(self.target):
            self._acquire()
        _HELD.add(self)
        holder = {"process": os.getpid(), "host": socket.gethostname(), "since": time.strftime("%Y-%m-%dT%H:%M:%S%z")}
        with suppress(OSError):  # on a full disk the lock holds all the same
            os.ftruncate(self._descriptor, 0)
            os.write(self._descriptor, json.dumps(holder).encode())
        return self

    def _acquire(self) -> None:
        tries = 0
        while self._descriptor is None:
            self._made += _make_folders(self.file.parent)
            try:
                descriptor = os.open(self.file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            except FileNotFoundError:  # the writer before took away the folder that it had made
                tries += 1
                if tries == _TRIES:  # a folder such as /proc, where nothing can be made
                    raise
                continue
            self._lock(descriptor)
            # The writer before takes its lock file away, so the one that was just locked may be no longer there.
            if _is_file(descriptor, self.file):
                self._descriptor = descriptor
            else:
                os.close(descriptor)

    def release(self) -> None:
        """Lets the next writer in; nothing stays on the disk."""
        if self._descriptor is None:
            return
        self.file.unlink(missing_ok=True)
        self._close()
        with suppress(OSError):  # what holds something now stays
            while self._made:
                self._made.pop().rmdir()

    def _lock(self, descriptor: int) -> None:
        for last in (False, False, False, True):
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return
            except OSError as error:
                if error.errno in _NO_LOCKS:
                    print(
                        f"{as_text(self.target)}: no locks there ({error.strerror}). Run no second writer.",
                        file=sys.stderr,
                    )
                    return
                if error.errno not in _HELD_ELSEWHERE:
                    os.close(descriptor)
                    raise
            if not last:
                time.sleep(0.05)  # who asks by `is_held` has it for a moment
        content = os.pread(descriptor, 4096, 0)
        os.close(descriptor)
        raise InUseError(
            f"{as_text(self.target)} is being written by {_describe(content)}: wait for its end, or stop it."
        )

    def is_held(self) -> bool | None:
        """Whether a process writes the target now; None where the file system knows no locks."""
        try:
            descriptor = os.open(self.file, os.O_RDONLY | os.O_NOFOLLOW)
        except FileNotFoundError:
            return False
        try:
            fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in _HELD_ELSEWHERE:
                return True
            return None
        finally:
            os.close(descriptor)
        return False

    def _close(self) -> None:
        _HELD.discard(self)
        os.close(self._descriptor)
        self._descriptor = None

    def __enter__(self) -> "WriterLock":
        return self.acquire()

    def __exit__(self, *_) -> None:
        self.release()


@contextmanager
def only_writer(accelerator, *locks: WriterLock) -> Iterator[None]:
    """Within it the main process holds the locks of what all processes write together. All must enter it.

    Raises:
        InUseError: another launch writes there, on all processes.
        WriteError: a folder cannot be written.
    """
    from accelerate.utils import broadcast_object_list  # grading takes locks without it

    with ExitStack() as held:
        refused = [None]
        if accelerator.is_main_process:
            try:
                for lock in locks:
                    held.enter_context(lock)
            except OSError as error:
                refused = [error]
        broadcast_object_list(refused)
        if refused[0]:
            raise refused[0]
        yield


def _make_folders(folder: Path) -> list[Path]:
    """Makes a folder; returns what was made for it, the deepest last."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    return missing[::-1]


def _is_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path))
    except FileNotFoundError:
        return False


def _describe(content: bytes) -> str:
    try:
        holder = json.loads(content)
        return f"process {holder['process']} on {holder['host']} since {holder['since']}"
    except (ValueError, KeyError, TypeError):  # it has the lock, but has not written its name yet
        return "another process"


_HELD: set[WriterLock] = set()


def _forget_in_child() -> None:
    """A forked child holds no lock: without this a loader's worker would keep that of a parent that was killed."""
    for lock in tuple(_HELD):
        lock._close()


os.register_at_fork(after_in_child=_forget_in_child)
