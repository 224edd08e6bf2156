"""Files of which two show the knees of one person, in an order and in batches that part no pair."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice


@dataclass(frozen=True)
class PairedFiles:
    """The inputs of a run. The two of a pair are neighbours, so that no batch parts them.

    Attributes:
        files: each once.
        firsts: those of them of which the next one shows the other knee of the same person.
    """

    files: list[str]
    firsts: frozenset[str] = frozenset()

    def partner(self, number: int) -> str | None:
        """The file that shows the other knee of the person in file `number`; None where none does."""
        if self.files[number] in self.firsts:
            return self.files[number + 1]
        return self.files[number - 1] if number and self.files[number - 1] in self.firsts else None


def whole_pairs(items: Iterable, size: int, is_first: Callable[..., bool]) -> Iterator[list]:
    """Batches of `size` items, or of one more where the last is the first of a pair."""
    items = iter(items)
    while batch := list(islice(items, size)):
        if is_first(batch[-1]):
            batch += islice(items, 1)
        yield batch
