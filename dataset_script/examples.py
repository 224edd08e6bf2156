"""The project's examples: ten real X-rays of the public data set, two of each grade, chosen by a rule, not by a look.

    python -m dataset_script.examples --data_dir FOLDER

writes them to examples/, one left and one right knee of each grade. The rule: the X-rays of the validation split, in
the order of their names, are shuffled with Python's `random.Random(2018)`; of each grade and side the first is taken
whose person gave none yet. What the model says of them plays no part. The files are gray PNGs without metadata, and
their names hold no person's number.
"""

import argparse
import random
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path

from dataset_script.exit_status import main_of
from dataset_script.files import replaced
from dataset_script.knee_xray import read_xray
from dataset_script.layouts import Xray, find_files, read_contents, resolve_data_dir
from dataset_script.pixels import CLIPKOAError

FOLDER = Path(__file__).parents[1] / "examples"
GRADES = (0, 1, 2, 3, 4)
SIDES = {"L": "left", "R": "right"}
SEED = 2018  # the year of the data set


def example_name(grade: int, side: str) -> str:
    """The file of an example; `side` is L or R."""
    return f"kl{grade}_{SIDES[side]}.png"


class ExampleError(CLIPKOAError, ValueError):
    """A corpus that the examples cannot be chosen from; the message says what it lacks."""


def choose(xrays: Iterable[Xray]) -> Iterator[tuple[str, Xray]]:
    """Name and X-ray of each example, by the rule of this file.

    Args:
        xrays: of the validation split, as `dataset_script.layouts.find_files` lists them.

    Raises:
        ExampleError: no X-ray of a grade and side.
    """
    shuffled = sorted(xrays, key=lambda xray: Path(xray.file).name)
    random.Random(SEED).shuffle(shuffled)
    taken = set()
    for grade in GRADES:
        for side, word in SIDES.items():
            fitting = (x for x in shuffled if (x.grade, x.laterality) == (grade, side) and x.person_id not in taken)
            xray = next(fitting, None)
            if xray is None:
                raise ExampleError(f"the validation split holds no {word} knee of grade {grade}.")
            taken.add(xray.person_id)
            yield example_name(grade, side), xray


def write_examples(data_dir: str | None, folder: Path) -> list[Path]:
    """Writes the ten examples.

    Args:
        data_dir: the data set in any of its layouts; default: the environment's KNEE_XRAY_DIR.

    Raises:
        CorpusError: no such data set.
        ExampleError: it lacks a grade or side.
        RadiographError: an X-ray that cannot be read.
    """
    chosen = dict(choose(find_files(resolve_data_dir(data_dir)).get("validation", [])))
    folder.mkdir(parents=True, exist_ok=True)
    written = []
    for name, xray in chosen.items():
        ((_, content),) = read_contents([xray])
        with replaced(folder / name) as unfinished:
            read_xray(xray, content).image.save(unfinished, "PNG", optimize=True)
        written.append(folder / name)
    return written


def run(arguments: list[str] | None, prog: str) -> int:
    """Writes the examples; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Write the page's ten examples out of the public data set."
    )
    parser.add_argument("--data_dir", help="the data set (default: the environment's KNEE_XRAY_DIR)")
    parser.add_argument("--output", type=Path, default=FOLDER, help="folder (default: examples/ of the project)")
    options = parser.parse_args(arguments)
    written = write_examples(options.data_dir, options.output)
    print(f"{len(written)} X-rays in {options.output}: {', '.join(path.name for path in written)}")
    return 0


main = main_of("dataset_script.examples", run)


if __name__ == "__main__":
    sys.exit(main())
