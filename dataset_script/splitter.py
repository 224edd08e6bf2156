"""Splits graded X-rays by person, with the grades in the same shares everywhere.

For data that has no official split. The result is a table that the builder reads:

    python -m dataset_script.splitter DATA --output knees.csv --shares 0.7 0.1 0.2
"""

import argparse
import csv
import os
import sys
from collections import Counter
from collections.abc import Hashable, Sequence
from pathlib import Path

import numpy as np

from dataset_script.exit_status import main_of
from dataset_script.files import replaced
from dataset_script.layouts import list_files, resolve_data_dir
from dataset_script.listing import Xray, describe_left_out
from dataset_script.names import GRADES, GRADES_HELP, CorpusError

SPLITS = ("train", "validation", "test")
_UNKNOWN = ("", "None", "nan", "NaN", "NaT", "<NA>")  # as the metric has it: None, NaN, pandas' NA, blank text
COLUMNS = ("file", "label", "person_id", "laterality", "split")


def split_by_person(
    person_ids: Sequence[Hashable], grades: Sequence[int], shares: Sequence[float] = (0.7, 0.1, 0.2), seed: int = 0
) -> list[int]:
    """Assigns each X-ray to a split, so that no person is in two and every grade keeps its share in each.

    People go one by one, those with the rarest grades first, to the split that lacks their grades most, as in the
    iterative stratification of Sechidis et al. (ECML 2011). The order of the X-rays makes no difference.

    Args:
        person_ids: (N,) who each X-ray is of.
        grades: (N,) KL grades.
        shares: (S,) of the X-rays that each split gets, all above 0; they are scaled to a sum of 1.
        seed: which of the equally good splits.

    Returns:
        (N,) number of the split, 0 to S - 1.

    Raises:
        CorpusError: lengths that differ, a share that is not above 0, fewer people than splits, or an unknown person.
    """
    shares = np.asarray(shares, float)
    if len(person_ids) != len(grades):
        raise CorpusError(f"{len(person_ids)} person ids, but {len(grades)} grades.")
    if shares.size < 2 or not (np.isfinite(shares).all() and (shares > 0).all()):
        raise CorpusError(f"shares {shares.tolist()}: at least two, each above 0.")
    unknown = sum(str(person).strip() in _UNKNOWN for person in person_ids)
    if unknown:
        raise CorpusError(f"{unknown} X-rays are of unknown people: they cannot be kept in one split.")
    people = {}  # person -> X-rays of each grade, (K,)
    for person, grade in zip(person_ids, grades, strict=True):
        people.setdefault(person, np.zeros(len(GRADES)))[grade] += 1
    if len(people) < shares.size:
        raise CorpusError(f"{len(people)} people cannot fill {shares.size} splits.")
    ordered = sorted(people, key=str)  # whatever the order of the X-rays
    ordered = [ordered[index] for index in np.random.default_rng(seed).permutation(len(ordered))]
    chosen = _assign(ordered, people, shares / shares.sum())
    return [chosen[person] for person in person_ids]


def _assign(ordered: list, people: dict, shares: np.ndarray) -> dict:
    total = sum(people.values())
    rarity = 1 / np.maximum(total, 1)
    # The rarest grade of a person tells how hard they are to place; of these the ones with more X-rays go first.
    ordered = sorted(ordered, key=lambda person: (-(rarity * (people[person] > 0)).max(), -people[person].sum()))
    wanted = np.outer(shares, total)  # (S, K) X-rays still to come
    empty, chosen = list(range(len(shares))), {}
    for place, person in enumerate(ordered):
        counts = people[person]
        # How much a split lacks of these grades, in shares of what it is to get; then of X-rays in all.
        need = (wanted * counts / np.maximum(np.outer(shares, total), 1e-9)).sum(axis=1)
        candidates = empty if len(ordered) - place <= len(empty) else range(len(shares))
        split = max(candidates, key=lambda split: (round(need[split], 9), wanted[split].sum()))
        chosen[person] = split
        wanted[split] -= counts
        if split in empty:
            empty.remove(split)
    return chosen


def write_table(xrays: list[Xray], splits: list[str], output: Path) -> None:
    """Writes a .csv that the builder reads, with files relative to it, whole or not at all.

    Raises:
        WriteError: it could not be written.
    """
    with replaced(output) as temporary, open(temporary, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(COLUMNS)
        for xray, split in zip(xrays, splits, strict=True):
            path = os.path.relpath(xray.path, output.parent)
            writer.writerow((Path(path).as_posix(), xray.grade, xray.person_id, xray.laterality or "", split))


def run(arguments: list[str] | None, prog: str) -> int:
    """Writes the table of a split; returns the exit status, 2 where the data cannot be split."""
    parser = argparse.ArgumentParser(
        prog=prog, description="Split graded knee X-rays by person, stratified by KL grade."
    )
    parser.add_argument(
        "data", metavar="DATA", help="folder or .csv of X-rays, in any layout but archives and Parquet"
    )
    parser.add_argument("--output", type=Path, required=True, help=".csv to write; pass it as data_dir afterwards")
    parser.add_argument(
        "--shares", type=float, nargs=3, default=(0.7, 0.1, 0.2), metavar="SHARE", help="train, validation, test"
    )
    parser.add_argument("--grades", metavar="NAME=GRADE,...", help=GRADES_HELP)
    parser.add_argument("--seed", type=int, default=0, help="which of the equally good splits (default: 0)")
    options = parser.parse_args(arguments)
    found = list_files(resolve_data_dir(options.data), options.grades)
    # auto_test shows people of the test split again: it is nothing to learn from.
    xrays = [xray for split, listed in found.items() if split != "auto_test" for xray in listed]
    if any(xray.member is not None for xray in xrays):
        raise CorpusError(f"{options.data}: a table cannot name X-rays in an archive or in Parquet; unpack it first.")
    if options.output.exists():
        raise CorpusError(f"{options.output} is there already: name a new file.")
    numbers = split_by_person(
        [xray.person_id for xray in xrays], [xray.grade for xray in xrays], options.shares, options.seed
    )
    for line in describe_left_out(found.left_out):
        print(f"note: {line}", file=sys.stderr)
    write_table(xrays, [SPLITS[number] for number in numbers], options.output.absolute())
    counts = Counter((SPLITS[number], xray.grade) for number, xray in zip(numbers, xrays, strict=True))
    for number, split in enumerate(SPLITS):
        people = len({xray.person_id for xray, chosen in zip(xrays, numbers, strict=True) if chosen == number})
        grades = ", ".join(f"KL{grade} {counts[split, grade]}" for grade in GRADES)
        print(f"{split}: {numbers.count(number)} X-rays of {people} people ({grades})")
    return 0


main = main_of("dataset_script.splitter", run)


if __name__ == "__main__":
    sys.exit(main())
