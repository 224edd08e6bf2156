"""Visits: what belongs to each visitor, kept in memory, within limits, and gone when he leaves."""

import asyncio
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clip_koa.webapp.readings import Film, Reading

MEGABYTE = 1024**2


@dataclass(frozen=True)
class Limits:
    """What one visitor, and all of them, may use."""

    visitors: int = 100  # at a time
    file_bytes: int = 50 * MEGABYTE  # of one upload
    xrays: int = 50  # of one visit at a time
    pixels: int = 200_000_000  # of one visit's X-rays at a time; a pixel is a byte of memory
    pixels_in_all: int = 2_000_000_000  # of all visits' X-rays
    at_once: int = 4  # uploads of one visit that wait
    waiting_bytes: int = 1024 * MEGABYTE  # of all uploads that wait
    uploads_a_minute: int = 120  # of one visit
    idle_seconds: float = 3600  # a visit without a request ends after this
    grace_seconds: float = 5  # so does one whose page has lost its connection and does not come back


class Refusal(Exception):
    """A request that is refused: `code` is a key of texts.yaml, `status` the HTTP status, `values` fill the text."""

    def __init__(self, code: str, status: int, **values):
        super().__init__(code)
        self.code, self.status, self.values = code, status, values


def too_large(limits: Limits) -> Refusal:
    """The refusal of a file that is larger than a visitor may send."""
    return Refusal("too_large", 413, megabytes=limits.file_bytes // MEGABYTE)


@dataclass(eq=False)
class Visit:
    """One open page. Its token is known to that page alone."""

    token: str = field(default_factory=lambda: secrets.token_urlsafe(32))
    readings: dict[str, Reading] = field(default_factory=dict)
    uploads: int = 0  # so far
    waiting: int = 0  # of them that are not graded yet
    recent: deque = field(default_factory=deque)  # times of the last minute's uploads
    connections: int = 0
    used: float = field(default_factory=time.monotonic)
    connected: float = field(default_factory=time.monotonic)  # when the last connection was seen
    ended: asyncio.Event = field(default_factory=asyncio.Event)

    @property
    def films(self) -> list[Film]:
        """Its X-rays, each of which may have two readings."""
        return list({reading.film.id: reading.film for reading in self.readings.values()}.values())

    @property
    def pixels(self) -> int:
        """Of all its X-rays."""
        return sum(film.pixels for film in self.films)

    def of_film(self, film: Film) -> list[Reading]:
        """The readings of one of its X-rays, in their order."""
        found = (reading for reading in self.readings.values() if reading.film.id == film.id)
        return sorted(found, key=lambda reading: reading.place)


class Visits:
    """The visits that are open. All methods run in the server's event loop.

    Args:
        limits: what is allowed.
        on_end: called with the token of a visit that ends, so that what it waits for is dropped.
    """

    def __init__(self, limits: Limits, on_end: Callable[[str], None] = lambda token: None):
        self.limits, self._on_end = limits, on_end
        self._open: dict[str, Visit] = {}
        self._waiting_bytes = 0

    def __len__(self) -> int:
        return len(self._open)

    def open(self) -> Visit:
        """A new visit.

        Raises:
            Refusal: as many visitors are here as may be.
        """
        self.sweep()
        if len(self._open) >= self.limits.visitors:
            raise Refusal("full", 503, visitors=self.limits.visitors)
        visit = Visit()
        self._open[visit.token] = visit
        return visit

    def find(self, token: str, *, in_use: bool = True) -> Visit:
        """The visit of a token.

        Args:
            in_use: whether the visitor asks for something, so that the visit goes on.

        Raises:
            Refusal: it has ended, or there never was one.
        """
        visit = self._open.get(token)
        if visit is None:
            raise Refusal("ended", 410)
        if in_use:
            visit.used = time.monotonic()
        return visit

    def end(self, token: str) -> None:
        """Empties a visit and forgets it."""
        visit = self._open.pop(token, None)
        if visit is not None:
            visit.readings.clear()
            visit.ended.set()
            self._on_end(token)

    def sweep(self) -> None:
        """Ends the visits that nobody has used for long, or whose page is gone."""
        now = time.monotonic()
        for visit in list(self._open.values()):
            idle = now - visit.used > self.limits.idle_seconds
            lost = not visit.connections and now - visit.connected > self.limits.grace_seconds
            if idle or lost:
                self.end(visit.token)

    @contextmanager
    def connection(self, visit: Visit) -> Iterator[None]:
        """While it is open, the visit's page is there."""
        visit.connections += 1
        try:
            yield
        finally:
            visit.connections -= 1
            visit.connected = time.monotonic()

    @contextmanager
    def upload(self, visit: Visit) -> Iterator["Intake"]:
        """Counts an upload against the limits, from its first byte until its X-ray is graded.

        Raises:
            Refusal: too many X-rays, too many at once, or too fast.
        """
        self._admit(visit)
        visit.waiting += 1
        visit.uploads += 1
        intake = Intake(self, visit.uploads)
        try:
            yield intake
        finally:
            visit.waiting -= 1
            visit.used = time.monotonic()  # however long it waited
            self._waiting_bytes -= intake.size

    def keep(self, visit: Visit, readings: list[Reading]) -> None:
        """Adds an X-ray's readings to its visit, in place of those that it had there before.

        Raises:
            Refusal: the visit has ended meanwhile, or its X-rays take too much memory.
        """
        if self._open.get(visit.token) is not visit:
            raise Refusal("ended", 410)
        film = readings[0].film
        before = visit.of_film(film)
        if not before:
            if visit.pixels + film.pixels > self.limits.pixels:
                raise Refusal("too_many_pixels", 409, megapixels=self.limits.pixels // 1_000_000)
            if sum(other.pixels for other in self._open.values()) + film.pixels > self.limits.pixels_in_all:
                raise Refusal("busy", 503)
        for reading in before:
            del visit.readings[reading.id]
        visit.readings |= {reading.id: reading for reading in readings}

    def _admit(self, visit: Visit) -> None:
        now = time.monotonic()
        while visit.recent and now - visit.recent[0] > 60:
            visit.recent.popleft()
        if len(visit.films) + visit.waiting >= self.limits.xrays:
            raise Refusal("too_many_xrays", 409, xrays=self.limits.xrays)
        if visit.waiting >= self.limits.at_once:
            raise Refusal("too_many_at_once", 429, uploads=self.limits.at_once)
        if len(visit.recent) >= self.limits.uploads_a_minute:
            raise Refusal("too_fast", 429, uploads=self.limits.uploads_a_minute)
        visit.recent.append(now)


class Intake:
    """One upload: its number in the visit, and its bytes as they come, against the limits of file and server."""

    def __init__(self, visits: Visits, number: int):
        self._visits, self.number = visits, number
        self.size = 0

    def take(self, count: int) -> None:
        """Counts bytes.

        Raises:
            Refusal: the file is too large, or too many bytes wait.
        """
        limits = self._visits.limits
        if self.size + count > limits.file_bytes:
            raise too_large(limits)
        if self._visits._waiting_bytes + count > limits.waiting_bytes:
            raise Refusal("busy", 503)
        self.size += count
        self._visits._waiting_bytes += count
