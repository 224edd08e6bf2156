"""Which reading belongs to which knee of which film: by film, by barcode, or by person and visit."""

from collections import defaultdict

from dataset_script.film_folders import FilmFile
from dataset_script.readings import Reading


class Matcher:
    """Finds the reading of a knee, and knows in the end which readings found no knee.

    A reading that names a file or a barcode belongs to that film and to no other. Any other belongs to the film of its
    person and visit, where there is just one such film.

    Args:
        readings: each of another knee.
    """

    def __init__(self, readings: list[Reading]):
        self._readings = readings
        self._of_film = defaultdict(list)  # (kind, name) of a film -> readings
        for reading in readings:
            for key in _keys_of_reading(reading):
                self._of_film[key].append(reading)
        self._met = set()

    def find(self, film: FilmFile, person: str, side: str) -> tuple[Reading | None, str]:
        """The reading of a film's knee, or None and why there is none.

        Args:
            person: whose film it is, "" where that is not known.
            side: L, R, or "" where that is not known.
        """
        keys = _keys_of(film, person)
        candidates = next((self._of_film[key] for key in keys if key in self._of_film), [])
        if not candidates:
            known = " ".join(
                filter(None, (f"person {person}" if person else "", film.visit and f"visit {film.visit}"))
            )
            return None, f"the table has no reading of {known or 'this film'}"
        if strangers := [reading for reading in candidates if person and reading.person != person]:
            return None, f"the film is of person {person}, but its reading is of {strangers[0].person}"
        if not side:
            return None, "which knee it is, is not known"
        of_side = [reading for reading in candidates if reading.side == side]
        if not of_side:
            return None, f"the table has no reading of the {'right' if side == 'R' else 'left'} knee"
        if len(of_side) > 1:
            return None, "the table has readings of several visits, and the film's visit is not known"
        return of_side[0], ""

    def note(self, reading: Reading) -> None:
        """Remembers that a knee was found for the reading."""
        self._met.add(reading.knee)

    def without_film(self) -> list[Reading]:
        """The readings for which no knee was noted."""
        return [reading for reading in self._readings if reading.knee not in self._met]


def _keys_of_reading(reading: Reading) -> list[tuple]:
    if reading.file:
        return [("file", _plain(reading.file))]
    if reading.barcode:
        return [("barcode", _number(reading.barcode))]
    # A film of unknown visit is matched where all readings of its person are of one visit.
    return list(dict.fromkeys((("visit", reading.person, reading.visit), ("visit", reading.person, ""))))


def _keys_of(film: FilmFile, person: str) -> list[tuple]:
    """The keys under which a film's readings may stand, the surest first; the first that has any is taken."""
    keys = [("file", _plain(film.name)), ("file", _plain(film.name).rsplit("/", 1)[-1])]
    if film.barcode:
        keys.append(("barcode", _number(film.barcode)))
    if person:
        keys.append(("visit", person, film.visit))
    return list(dict.fromkeys(keys))


def _plain(name: str) -> str:
    return name.replace("\\", "/").removeprefix("./").strip("/")


def _number(barcode: str) -> str:
    """Tables and spreadsheets drop the zeros that a barcode begins with."""
    return barcode.strip().lstrip("0")
