"""A folder and a small database in it that lose nothing of what was accepted, wherever the process is killed.

An image is `received` from when it lies whole on the disk, `graded` from when its results do, and `sent` when the
archive has them all; or `refused`, with a reason, where it has no result. Rows name an image by a digest of its
identifier, so that the database holds nothing of a patient; the files beside it do until they are sent.
"""

import errno
import hashlib
import json
import os
import re
import shutil
import sqlite3
import threading
import time
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from modeling_clip_koa import CLIPKOAError

RECEIVED, GRADED, SENT, REFUSED = "received", "graded", "sent", "refused"
_DIGITS = 32
_APPLICATION = 0x4B4F4131  # of databases of this form (PRAGMA application_id)
_SCHEMA = f"""
BEGIN IMMEDIATE;
CREATE TABLE images (
    number INTEGER PRIMARY KEY, digest TEXT NOT NULL UNIQUE, state TEXT NOT NULL, arrived REAL NOT NULL,
    tries INTEGER NOT NULL DEFAULT 0, reason TEXT NOT NULL DEFAULT '', results TEXT NOT NULL DEFAULT '[]'
);
CREATE INDEX by_state ON images (state, tries, number);
PRAGMA application_id = {_APPLICATION};
COMMIT;
"""
# What this program leaves in the two folders; nothing else is ever removed there.
_OURS = re.compile(rf"[0-9a-f]{{{_DIGITS}}}\.dcm|\.[0-9a-f]{{{_DIGITS}}}\.\d+|\.?[\d.]+\.dcm(\.writing)?")
# Where a file system cannot flush a folder.
_NO_FLUSH = (errno.EINVAL, errno.EBADF, errno.ENOTSUP)


class SpoolError(CLIPKOAError, ValueError):
    """A folder that cannot be used as a spool; the message says why."""


@dataclass(frozen=True)
class Waiting:
    """An image of the spool: its digest, its place in the queue, and what is known of it.

    Attributes:
        results: names of the files that are still to be sent.
        tries: how often its grading was begun.
    """

    digest: str
    number: int = 0
    results: tuple[str, ...] = ()
    tries: int = 0


class Spool:
    """One process at a time uses it; its threads may share it.

    Args:
        folder: made where it is not there, and closed to other users.
        reserve: bytes of the disk that stay free.

    Raises:
        SpoolError: a folder of something else, or whose database is damaged or in use.
        OSError: it cannot be written.
    """

    def __init__(self, folder: Path, reserve: int):
        self.folder, self.reserve = folder, reserve
        self.incoming, self.outgoing = folder / "incoming", folder / "outgoing"
        for place in (folder, self.incoming, self.outgoing):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        try:
            self._rows = sqlite3.connect(folder / "spool.sqlite", check_same_thread=False, isolation_level=None)
            self._open()
        except sqlite3.Error as error:
            raise SpoolError(
                f"{folder / 'spool.sqlite'}: {error}. It stays as it is, and so do the images beside it: mend it, or "
                "name another folder."
            ) from error
        self._tidy()

    def _open(self) -> None:
        self._rows.execute("PRAGMA synchronous=EXTRA")  # what was answered is there after a power cut, too
        (application,) = self._rows.execute("PRAGMA application_id").fetchone()
        if application == _APPLICATION:
            (found,) = self._rows.execute("PRAGMA quick_check(1)").fetchone()
            if found != "ok":
                raise sqlite3.DatabaseError("it is damaged")
            return
        if self._rows.execute("SELECT name FROM sqlite_master").fetchone():
            raise sqlite3.DatabaseError("it is not of this program")
        if any(self.incoming.iterdir()) or any(self.outgoing.iterdir()):
            raise sqlite3.DatabaseError("it is new, but files lie in incoming or outgoing")
        self._rows.executescript(_SCHEMA)

    def close(self) -> None:
        """Closes the database."""
        with self._lock:
            self._rows.close()

    def is_full(self) -> bool:
        """Whether nothing more can be accepted."""
        return shutil.disk_usage(self.folder).free < self.reserve

    def accept(self, identifier: str, content: bytes) -> bool:
        """Keeps an image; False where it was accepted before. It is on the disk when this returns.

        Args:
            identifier: its SOP instance UID.
            content: the whole file.

        Raises:
            OSError, sqlite3.Error: it could not be written, and is not accepted.
        """
        digest = hashlib.sha256(identifier.encode()).hexdigest()[:_DIGITS]
        if self._one("SELECT state FROM images WHERE digest = ?", digest):
            return False
        part = self.incoming / f".{digest}.{threading.get_ident()}"
        try:
            with open(part, "xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            os.replace(part, self.path(digest))
            _flush(self.incoming)
        except BaseException:
            part.unlink(missing_ok=True)
            raise
        # Where two senders bring the same image at once, one row stands.
        if self._write("INSERT OR IGNORE INTO images (digest, state, arrived) VALUES (?, ?, ?)",
                       digest, RECEIVED, time.time()):  # fmt: skip
            return True
        if self._one("SELECT state FROM images WHERE digest = ?", digest) != (RECEIVED,):
            self.path(digest).unlink(missing_ok=True)  # the other sender's is graded already
        return False

    def path(self, digest: str) -> Path:
        """Where an image lies until it is graded."""
        return self.incoming / f"{digest}.dcm"

    def next_received(self, unread: Collection[int] = ()) -> Waiting | None:
        """The image to be graded next: the one that was tried least, and of these the one that waits longest.

        Args:
            unread: numbers of images that are passed over.
        """
        rows = self._all(
            "SELECT digest, number, tries FROM images WHERE state = ? ORDER BY tries, number LIMIT ?",
            RECEIVED, len(unread) + 1,
        )  # fmt: skip
        return next((Waiting(row[0], row[1], tries=row[2]) for row in rows if row[1] not in unread), None)

    def set_tried(self, waiting: Waiting, times: int = 1) -> None:
        """Notes that the grading of an image begins, so that one that ends the process is told by its tries.

        Args:
            times: -1 takes a try back that was not the image's fault.
        """
        self._write("UPDATE images SET tries = tries + ? WHERE digest = ?", times, waiting.digest)

    def next_graded(self, after: int = 0) -> Waiting | None:
        """The first image behind the number `after` whose results are to be sent."""
        row = self._one(
            "SELECT digest, number, results, tries FROM images WHERE state = ? AND number > ? ORDER BY number LIMIT 1",
            GRADED, after,
        )  # fmt: skip
        return row and Waiting(row[0], row[1], tuple(json.loads(row[2])), row[3])

    def set_graded(self, waiting: Waiting, results: list[Path]) -> None:
        """Notes the results of an image, which lie in `outgoing` and are flushed here; the image itself goes."""
        for result in results:
            _flush(result)
        _flush(self.outgoing)  # before the image goes
        names = json.dumps([result.name for result in results])
        self._write("UPDATE images SET state = ?, results = ? WHERE digest = ?", GRADED, names, waiting.digest)
        self.path(waiting.digest).unlink(missing_ok=True)

    def set_refused(self, waiting: Waiting, reason: str) -> None:
        """Notes why an image has no result; the image goes, and what there is of results."""
        self._write("UPDATE images SET state = ?, reason = ? WHERE digest = ?", REFUSED, reason, waiting.digest)
        for file in (self.path(waiting.digest), *(self.outgoing / name for name in waiting.results)):
            file.unlink(missing_ok=True)

    def set_sent(self, waiting: Waiting) -> None:
        """Notes that the archive has all results of an image; they go."""
        self._write("UPDATE images SET state = ? WHERE digest = ?", SENT, waiting.digest)
        for name in waiting.results:
            (self.outgoing / name).unlink(missing_ok=True)

    def counts(self) -> dict[str, int]:
        """How many images there are of each state."""
        with self._lock:
            found = dict(self._rows.execute("SELECT state, COUNT(*) FROM images GROUP BY state"))
        return {state: found.get(state, 0) for state in (RECEIVED, GRADED, SENT, REFUSED)}

    def reasons(self) -> dict[str, int]:
        """Why images have no result, and how many each."""
        with self._lock:
            rows = self._rows.execute(
                "SELECT reason, COUNT(*) FROM images WHERE state = ? GROUP BY reason", (REFUSED,)
            )
            return dict(rows.fetchall())

    def _tidy(self) -> None:
        """Removes what a killed process left half done: none of it was accepted, or it is done again."""
        with self._lock:
            rows = self._rows.execute("SELECT digest FROM images WHERE state = ?", (RECEIVED,)).fetchall()
            results = self._rows.execute("SELECT results FROM images WHERE state = ?", (GRADED,)).fetchall()
        kept = {self.path(digest).name for (digest,) in rows} | {
            name for (names,) in results for name in json.loads(names)
        }
        for folder in (self.incoming, self.outgoing):
            for file in folder.iterdir():
                if file.name not in kept and _OURS.fullmatch(file.name):
                    file.unlink()

    def _one(self, question: str, *values):
        return next(iter(self._all(question, *values)), None)

    def _all(self, question: str, *values) -> list:
        with self._lock:
            return self._rows.execute(question, values).fetchall()

    def _write(self, command: str, *values) -> int:
        with self._lock:
            return self._rows.execute(command, values).rowcount


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FLUSH or not path.is_dir():
            raise
    finally:
        os.close(descriptor)
