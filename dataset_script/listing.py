"""The list of a corpus: its X-rays by split, what was left out of it, and whose X-rays they are."""

from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

_NAMED = 5
# What was left out, the gravest first: X-rays, what may be some or hold some, the rest.
_KINDS = {
    "xray": "X-ray files",
    "image": "images of formats that are not read",
    "archive": "archives inside the data",
    "unlisted": "X-ray files that the table does not name",
    "outside": "files outside the folder that was chosen",
    "other": "other files",
    "hidden": "hidden files and folders",
}
# A corpus that leaves these out is not what its owner believes it is.
GRAVE_KINDS = ("xray", "image")


@dataclass(frozen=True, slots=True)
class Xray:
    """One graded X-ray of a corpus.

    `file` is its name below the data; `path` the file on disk that holds it, and `member` its name in that archive or
    its row in that Parquet file, None where `path` is the X-ray itself. `person_id` and `laterality` are what a table
    or a column says, else the X-ray's content, else its name; `own_person_id` is what a DICOM file itself says.
    """

    split: str
    grade: int
    file: str
    path: Path
    member: str | int | None = None
    person_id: str | None = None
    laterality: str | None = None
    own_person_id: str | None = None


@dataclass(frozen=True, slots=True)
class LeftOut:
    """A file that lies in the data and is none of its X-rays: its name below the data, why, and its kind."""

    file: str
    reason: str
    kind: str


class Listing(dict[str, list[Xray]]):
    """The X-rays of each split, with what was left out and which names, other than 0 to 4, were taken for grades."""

    left_out: list[LeftOut]
    grade_names: dict[str, int]

    def __init__(self, splits: Mapping[str, list[Xray]] = MappingProxyType({})):
        super().__init__(splits)
        self.left_out, self.grade_names = [], {}


def describe_left_out(left_out: Iterable[LeftOut]) -> list[str]:
    """A line for each kind of what was left out, with its number and the first names, the gravest first."""
    lines = []
    for kind, what in _KINDS.items():
        found = [one for one in left_out if one.kind == kind]
        if found:
            reasons = Counter(one.reason for one in found).most_common()
            named = [
                f"{', '.join([one.file for one in found if one.reason == reason][:_NAMED])} ({reason})"
                for reason, _ in reasons[:_NAMED]
            ]
            more = " and others" if len(found) > _NAMED or len(reasons) > _NAMED else ""
            lines.append(f"{len(found)} {what} were not taken: {', '.join(named)}{more}")
    return lines


def find_shared_people(splits: dict[str, list[Xray]]) -> dict[str, tuple[Xray, Xray]]:
    """People who are in more than one split, each with an X-ray from the first and one from another.

    `auto_test` is left out: it shows the test people again.
    """
    seen, shared = {}, {}
    for xray in _to_compare(splits):
        if xray.person_id and seen.setdefault(xray.person_id, xray).split != xray.split:
            shared.setdefault(xray.person_id, (seen[xray.person_id], xray))
    return shared


def describe_disputes(splits: dict[str, list[Xray]]) -> list[str]:
    """What DICOM files say against a table or a column that keeps people apart: a sentence for each such person.

    Only people in two splits count, as above. An id that all files share names nobody: it was put there instead of
    the people's.
    """
    seen, disputed = {}, {}
    for xray in _to_compare(splits):
        own = xray.own_person_id
        if own and (first := seen.setdefault(own, xray)).split != xray.split and first.person_id != xray.person_id:
            disputed.setdefault(own, (first, xray))
    return [
        f"{first.file} ({first.split}) is listed as {first.person_id} and {second.file} ({second.split}) as "
        f"{second.person_id}, but both files say that they are of {own}"
        for own, (first, second) in disputed.items()
        if len(seen) > 1
    ]


def _to_compare(splits: dict[str, list[Xray]]) -> Iterable[Xray]:
    return (xray for split, xrays in splits.items() if split != "auto_test" for xray in xrays)
