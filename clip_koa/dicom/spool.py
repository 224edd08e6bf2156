"""A folder and a small database in it that lose nothing of what was accepted, wherever the process is killed.

An image is `received` from when it lies whole on the disk, `graded` from when its results do, and `sent` when the
archive has them all; or `refused`, with a reason, where it has no result. Rows name an image by a digest of its
identifier, so that the database holds nothing of a patient; the files beside it do until they are sent.
"""

import hashlib
import json
import os
import shutil
import sqlite3
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

RECEIVED, GRADED, SENT, REFUSED = "received", "graded", "sent", "refused"
_DIGITS = 32
_SCHEMA = """
CREATE TABLE IF NOT EXISTS images (
    digest TEXT PRIMARY KEY, state TEXT NOT NULL, reason TEXT NOT NULL DEFAULT '', results TEXT NOT NULL DEFAULT '[]',
    arrived REAL NOT NULL
);
CREATE INDEX IF NOT EXISTS by_state ON images (state, arrived);
"""


@dataclass(frozen=True)
class Waiting:
    """An image of the spool: its digest, and the files of its results that are still to be sent."""

    digest: str
    results: tuple[str, ...] = ()


class Spool:
    """One process at a time uses it; its threads may share it.

    Args:
        folder: made where it is not there, and closed to other users.
        reserve: bytes of the disk that stay free.
    """

    def __init__(self, folder: Path, reserve: int):
        self.folder, self.reserve = folder, reserve
        self.incoming, self.outgoing = folder / "incoming", folder / "outgoing"
        for place in (folder, self.incoming, self.outgoing):
            place.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._lock = threading.Lock()
        self._rows = sqlite3.connect(folder / "spool.sqlite", check_same_thread=False, isolation_level=None)
        self._rows.execute("PRAGMA synchronous=FULL")
        self._rows.executescript(_SCHEMA)
        self._tidy()

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
            OSError: it could not be written, and is not accepted.
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
        except OSError:
            part.unlink(missing_ok=True)
            raise
        # Where two senders bring the same image at once, one row stands.
        return self._write("INSERT OR IGNORE INTO images (digest, state, arrived) VALUES (?, ?, ?)",
                           digest, RECEIVED, time.time()) == 1  # fmt: skip

    def path(self, digest: str) -> Path:
        """Where an image lies until it is graded."""
        return self.incoming / f"{digest}.dcm"

    def next_received(self) -> Waiting | None:
        """The image that waits longest to be graded."""
        row = self._one("SELECT digest FROM images WHERE state = ? ORDER BY arrived LIMIT 1", RECEIVED)
        return row and Waiting(row[0])

    def next_graded(self, after: float = 0.0) -> tuple[Waiting, float] | None:
        """The first image later than `after` whose results are to be sent, and when it arrived."""
        row = self._one(
            "SELECT digest, results, arrived FROM images WHERE state = ? AND arrived > ? ORDER BY arrived LIMIT 1",
            GRADED, after,
        )  # fmt: skip
        return row and (Waiting(row[0], tuple(json.loads(row[1]))), row[2])

    def set_graded(self, waiting: Waiting, results: list[Path]) -> None:
        """Notes the results of an image, which lie in `outgoing` and are flushed here; the image itself goes."""
        for result in results:
            _flush(result)
        _flush(self.outgoing)
        names = json.dumps([result.name for result in results])
        self._write("UPDATE images SET state = ?, results = ? WHERE digest = ?", GRADED, names, waiting.digest)
        self.path(waiting.digest).unlink(missing_ok=True)

    def set_refused(self, waiting: Waiting, reason: str) -> None:
        """Notes why an image has no result; the image goes."""
        self._write("UPDATE images SET state = ?, reason = ? WHERE digest = ?", REFUSED, reason, waiting.digest)
        self.path(waiting.digest).unlink(missing_ok=True)

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
        for file in self.incoming.iterdir():
            row = self._one("SELECT state FROM images WHERE digest = ?", file.stem)
            if row != (RECEIVED,):
                file.unlink()
        with self._lock:
            rows = self._rows.execute("SELECT results FROM images WHERE state = ?", (GRADED,)).fetchall()
        named = {name for (names,) in rows for name in json.loads(names)}
        for file in self.outgoing.iterdir():
            if file.name not in named:
                file.unlink()

    def _one(self, question: str, *values):
        with self._lock:
            return self._rows.execute(question, values).fetchone()

    def _write(self, command: str, *values) -> int:
        with self._lock:
            return self._rows.execute(command, values).rowcount


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        with suppress(OSError):  # some file systems cannot flush a folder
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
