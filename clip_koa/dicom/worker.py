"""What happens to an accepted image: it is graded, and its results are sent. Each in a thread of its own."""

import logging
import sqlite3
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from clip_koa.dicom.results import DicomResults
from clip_koa.dicom.source import OwnResult, ResultError, read_source
from clip_koa.dicom.spool import Spool, Waiting
from modeling_clip_koa import CLIPKOAError

FIRST_PAUSE, LONGEST_PAUSE = 1.0, 60.0  # seconds between tries while the archive is away
_LOG = logging.getLogger(__name__)
OWN_RESULT = "a result of this program"
NO_GRADE = "no grade: not a frontal knee X-ray, or it cannot be read"
NO_STUDY = "no study to put a result into"
NO_RESULT = "one of its attributes is not as DICOM has it"
FAILED = "a fault of this program"
GONE = "its file is no longer in the spool"
MOST_TRIES = 10  # to grade an image; it stands behind the others after each that ended with a fault, or the process


class Unsent(CLIPKOAError):
    """The archive did not take a result, which is tried again. The message says why.

    Args:
        refused: the archive answered, so that other results may fare better.
    """

    def __init__(self, message: str, refused: bool = False):
        super().__init__(message)
        self.refused = refused


class UnreadFile(CLIPKOAError):
    """The disk does not give an image's file, which stays and is tried again."""


@dataclass
class Errors:
    """The last thing that went wrong, for `status`; it never holds anything of a patient."""

    last: str = ""
    at: float = 0.0
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, words: str) -> None:
        """Keeps it and logs it."""
        with self._lock:
            self.last, self.at = words, time.time()
        _LOG.warning("%s", words)


def why(error: Exception) -> str:
    """What the system says of an error, without the name of a file."""
    while isinstance(error, OSError) and not error.strerror and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return getattr(error, "strerror", None) or type(error).__name__


def _read_through(file: Path) -> None:
    """Tells a disk that cannot be read from a damaged image, whose reader says the same of both."""
    try:
        with file.open("rb") as opened:
            while opened.read(1 << 20):
                pass
    except OSError as error:
        raise UnreadFile from error


class Worker:
    """Grades what the spool received, and sends what was made of it, until it is stopped.

    Args:
        spool: where images lie.
        results: writes into the spool's `outgoing`.
        send: takes the files of an image's results; raises `Unsent`.
    """

    def __init__(self, spool: Spool, results: DicomResults, send: Callable[[list[Path]], None]):
        self.spool, self.results, self.send = spool, results, send
        self.errors = Errors()
        self._news, self._made, self._stop = threading.Event(), threading.Event(), threading.Event()
        self._threads = [threading.Thread(target=self._grade_all), threading.Thread(target=self._send_all)]

    def start(self) -> None:
        """Goes on with what lies in the spool."""
        for thread in self._threads:
            thread.start()

    def wake(self) -> None:
        """Says that an image was accepted."""
        self._news.set()

    def stop(self) -> None:
        """Ends after the image and the result at hand; the others stay in the spool."""
        self._stop.set()
        self._news.set()
        self._made.set()
        for thread in self._threads:
            if thread.is_alive():
                thread.join()

    def _grade_all(self) -> None:
        unread = set()  # numbers of images that the disk does not give; others are graded before they are tried again
        while not self._stop.is_set():
            try:
                waiting = self.spool.next_received(unread)
                if waiting is None:
                    self._news.wait(LONGEST_PAUSE if unread else 1.0)
                    self._news.clear()
                    unread.clear()
                else:
                    self._grade(waiting)
            except UnreadFile as error:
                self.errors.note(f"an accepted image could not be read: {why(error.__cause__)}")
                unread.add(waiting.number)
            except (OSError, sqlite3.Error) as error:  # a full disk, most likely: the image stays where it is
                self.errors.note(f"a result could not be kept: {why(error)}")
                self._stop.wait(LONGEST_PAUSE)
            except Exception as error:  # any other ends this image's try, never the thread
                self.errors.note(f"an image could not be graded: {type(error).__name__}")

    def _grade(self, waiting: Waiting) -> None:
        file = self.spool.path(waiting.digest)
        if not file.exists():
            self.spool.set_refused(waiting, GONE)
            return
        if waiting.tries >= MOST_TRIES:
            self.spool.set_refused(waiting, FAILED)
            return
        self.spool.set_tried(waiting)
        try:
            self._grade_file(waiting, file)
        except (OSError, sqlite3.Error, UnreadFile):  # of the disk, which may be full for days
            self.spool.set_tried(waiting, times=-1)
            raise

    def _grade_file(self, waiting: Waiting, file: Path) -> None:
        _read_through(file)
        try:
            read_source(file)
        except ResultError as error:
            return self.spool.set_refused(waiting, OWN_RESULT if isinstance(error, OwnResult) else NO_STUDY)
        graded = [xray for xray in self.results.grader.grade([str(file)]) if not xray.reason]
        if not graded:
            return self.spool.set_refused(waiting, NO_GRADE)
        results = self.results.write(graded)
        if not results:
            return self.spool.set_refused(waiting, NO_RESULT)
        self.spool.set_graded(waiting, results)
        self._made.set()
        return None

    def _send_all(self) -> None:
        pause, after = FIRST_PAUSE, 0
        while not self._stop.is_set():
            try:
                waiting = self.spool.next_graded(after)
                if waiting is None and not after:
                    self._made.wait(1.0)
                    self._made.clear()
                elif waiting is None:  # the end of a round in which the archive refused some
                    after = 0
                    self._stop.wait(pause)
                    pause = min(2 * pause, LONGEST_PAUSE)
                elif self._send(waiting):
                    pause = FIRST_PAUSE
                else:
                    after = waiting.number  # others are tried before it is tried again
            except Exception as error:  # it is tried again, and the thread goes on
                self.errors.note(
                    str(error) if isinstance(error, Unsent) else f"a result could not be sent: {why(error)}"
                )
                after = 0
                self._stop.wait(pause)
                pause = min(2 * pause, LONGEST_PAUSE)

    def _send(self, waiting: Waiting) -> bool:
        """Sends an image's results; False where the archive answered that it does not take them."""
        files = [self.spool.outgoing / name for name in waiting.results]
        if not all(file.exists() for file in files):
            self.spool.set_refused(waiting, GONE)
            return True
        try:
            self.send(files)
        except Unsent as error:
            if not error.refused:
                raise
            self.errors.note(str(error))
            return False
        self.spool.set_sent(waiting)
        return True
