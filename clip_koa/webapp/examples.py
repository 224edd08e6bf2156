"""The X-rays that a visitor may try: what `python -m dataset_script.examples` wrote."""

import re
from dataclasses import dataclass
from pathlib import Path

_NAME = re.compile(r"kl([0-4])_(left|right)\.png")


@dataclass(frozen=True)
class Example:
    """An X-ray that a visitor may take."""

    path: Path
    grade: int  # in the data set, 0..4
    laterality: str  # L or R

    @property
    def name(self) -> str:
        """Its file's name."""
        return self.path.name


def find_examples(folder: Path) -> list[Example]:
    """The examples that lie in a folder, by grade; none where there are none."""
    named = ((path, _NAME.fullmatch(path.name)) for path in sorted(folder.glob("*.png")))
    return [Example(path, int(name[1]), name[2][0].upper()) for path, name in named if name]
