"""What folders, columns and labels call the splits and the Kellgren-Lawrence grades."""

import os
import re
from collections.abc import Iterable

from dataset_script.pixels import CLIPKOAError

GRADES = (0, 1, 2, 3, 4)
# Folder names of each split: those of the release, and the keywords of `datasets.data_files`, which the Hub documents.
# auto_test, automatic crops of the test radiographs, stays apart from all of them.
SPLIT_FOLDERS = {
    "train": ("train", "training"),
    "validation": ("val", "validation", "valid", "dev"),
    "test": ("test", "testing", "eval", "evaluation"),
    "auto_test": ("auto_test",),
}
_SPLIT_OF_WORD = {name: split for split, names in SPLIT_FOLDERS.items() for name in names}
_BESIDE_SPLITS = {"data", "dataset", "set", "split", "images", "knee", "knees", "x", "ray", "rays", "xray", "xrays"}
_SPLIT_IN_PATH = re.compile(
    rf"(?<![a-z])({'|'.join(sorted(_SPLIT_OF_WORD, key=len, reverse=True))})(?![a-z])", re.IGNORECASE
)
# The words for the grades in Kellgren and Lawrence's paper, in the release and in its copies.
_GRADE_OF_WORD = {
    "none": 0, "normal": 0, "healthy": 0,
    "doubtful": 1,
    "minimal": 2, "mild": 2,
    "moderate": 3,
    "severe": 4,
}  # fmt: skip
_BESIDE_GRADES = {
    "kl", "klg", "k", "l", "g", "gr", "grade", "grades", "class", "label", "score", "stage", "kellgren", "lawrence",
    "oa", "osteoarthritis", "image", "images", "knee", "knees", "x", "ray", "rays", "xray", "xrays",
}  # fmt: skip
_WORDS = re.compile(r"[^\W\d_]+|\d+")
GRADES_HELP = (
    "grades of folders or labels whose names do not tell them, as Early=2,Late=4 (default: the environment's "
    "KNEE_XRAY_GRADES)"
)


class CorpusError(CLIPKOAError, ValueError):
    """A corpus that cannot be used; the message names the file or folder and says what would be right."""


def split_of(name: str) -> str | None:
    """The split that a folder's name or a cell tells, in any case: `val`, `Training`, `test set`; else None."""
    words = _WORDS.findall(name.casefold())
    if {"auto", "test"} <= set(words):
        words = ["auto_test", *(word for word in words if word not in ("auto", "test"))]
    told = {_SPLIT_OF_WORD[word] for word in words if word in _SPLIT_OF_WORD}
    known = all(word in _SPLIT_OF_WORD or word in _BESIDE_SPLITS for word in words)
    return told.pop() if known and len(told) == 1 else None


def split_in_path(path: str) -> str | None:
    """The split that the last keyword in a path tells, as in `data/train-00000-of-00002.parquet`; else None."""
    found = _SPLIT_IN_PATH.findall(path)
    return _SPLIT_OF_WORD[found[-1].lower()] if found else None


class GradeNames:
    """What names mean which grade: those that are given, and then the common ones.

    Common are the grade's number or its word, alone, together or beside words such as KL and grade, in any case:
    `2`, `KL-2`, `grade_2`, `2Mild`, `Minimal`, `KL2 mild`.

    Args:
        given: `NAME=GRADE` with commas between; default: the environment's KNEE_XRAY_GRADES.

    Raises:
        CorpusError: that is no mapping of names to grades.
    """

    def __init__(self, given: str | None = None):
        self._is_asked_for = bool(given)
        self._given = _parse_mapping(given or os.environ.get("KNEE_XRAY_GRADES") or "")
        self.met: dict[str, int] = {}  # every name that told a grade

    def grade(self, name: str) -> int | None:
        """The grade that a name tells, None where it tells none.

        Raises:
            CorpusError: it tells two, as `1Mild` does.
        """
        grade = self.met.get(name)
        if grade is None:
            grade = self._given.get(name.strip().casefold())
            grade = _grade_of_words(name) if grade is None else grade
            if grade is not None:
                self.met[name] = grade
        return grade

    def is_given(self, name: str) -> bool:
        """Whether the user said what the name means."""
        return name.strip().casefold() in self._given

    def refuse_unmet(self, data) -> None:
        """Raises a `CorpusError` where a name was given as an option that the data does not hold."""
        met = {name.strip().casefold() for name in self.met}
        missing = sorted(set(self._given) - met) if self._is_asked_for else []
        if missing:
            raise CorpusError(f"{data} holds nothing that is called {missing[0]}, which the given grades name.")


def _grade_of_words(name: str) -> int | None:
    words = _WORDS.findall(name.casefold())
    told = {_GRADE_OF_WORD[word] for word in words if word in _GRADE_OF_WORD}
    for word in words:
        if len(word) == 1 and word in "01234":  # 10 and 02 are other numbers
            told.add(int(word))
        elif word not in _GRADE_OF_WORD and word not in _BESIDE_GRADES:
            return None
    if sum(word.isdigit() for word in words) > 1:
        return None
    if len(told) > 1:
        both = " and ".join(f"KL{grade}" for grade in sorted(told))
        raise CorpusError(f"{short(name)} may mean {both}. {how_to_map([name])}")
    return told.pop() if told else None


def _parse_mapping(text: str) -> dict[str, int]:
    given = {}
    for part in filter(None, (part.strip() for part in text.split(","))):
        name, _, grade = (piece.strip() for piece in part.rpartition("="))
        if not name or grade not in map(str, GRADES):
            raise CorpusError(f"grades: {short(part)} is no NAME=GRADE with a grade of 0 to 4, as in Early=2,Late=4.")
        if given.setdefault(name.casefold(), int(grade)) != int(grade):
            raise CorpusError(f"grades: {short(name)} is given two grades.")
    return given


def how_to_map(names: Iterable[str]) -> str:
    """What to do about names whose grade is not known."""
    example = ",".join(f"{name}=GRADE" for name in names)
    return f"Say which grades are meant: --grades {example}, or KNEE_XRAY_GRADES={example} in the environment."


def short(value) -> str:
    """A value for an error of one line, however long it is."""
    is_text = isinstance(value, (str, bytes))
    text = repr(value[:100] if is_text else value)
    return text[:120] + ("..." if len(text) > 120 or (is_text and len(value) > 100) else "")
