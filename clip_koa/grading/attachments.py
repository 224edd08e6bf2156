"""What is written for each graded file besides its rows: heat maps, DICOM results."""

from collections.abc import Iterable, Iterator, Sequence
from typing import Protocol

from clip_koa.grading.grader import GradedXray


class Attachment(Protocol):
    """Writes one kind of thing."""

    def is_there(self, row: dict) -> bool:
        """Whether the X-ray of a table's row has what this writes, or can have none."""

    def write(self, xrays: Sequence[GradedXray]) -> None:
        """Writes it for one file, given as each of its knees."""

    def finish(self) -> None:
        """Does what is done once all are written."""


class Attachments:
    """All that is asked for."""

    def __init__(self, kinds: Iterable[Attachment] = ()):
        self.kinds = list(kinds)

    def are_there(self, row: dict) -> bool:
        """Whether nothing is to be written for the X-ray of a table's row."""
        return all(kind.is_there(row) for kind in self.kinds)

    def passing(self, entries: Iterable[list[GradedXray]]) -> Iterator[list[GradedXray]]:
        """Gives the X-rays of each file on after their attachments were written."""
        for entry in entries:
            for kind in self.kinds:
                kind.write(entry)
            yield entry

    def finish(self) -> None:
        """Does what is done once all are written."""
        for kind in self.kinds:
            kind.finish()
