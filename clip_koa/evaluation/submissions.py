"""Entries of a benchmark: what anybody's models say of the X-rays of a split, each named by a digest of its picture.

    python -m clip_koa.evaluation.submissions EVALUATION/predictions_SPLIT.jsonl ENTRIES/SPLIT/USER--MODEL.jsonl

makes an entry of what clip-koa evaluate wrote. The corpus is that of --data_dir or of KNEE_XRAY_DIR.
"""

import argparse
import hashlib
import json
import math
import re
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image
from tqdm.auto import tqdm

from clip_koa.evaluation.heads import HEADS, grading
from clip_koa.evaluation.predictions import PredictionsError, read_predictions
from clip_koa.files import write_file
from dataset_script.exit_status import main_of
from dataset_script.knee_xray import read_xray
from dataset_script.layouts import find_files, read_contents, resolve_data_dir
from dataset_script.listing import Xray
from metrics.kl_grading.kl_grading import NUM_GRADES, kl_grading_metrics
from metrics.kl_grading.paired import compare_kl_gradings
from modeling_clip_koa import CLIPKOAError

# What entries are ranked by, the best first.
RANKED_BY = "quadratic_weighted_kappa"
_NAME = re.compile(r"[A-Za-z0-9][\w.-]*?--[A-Za-z0-9][\w.-]*")
_DIGITS = 16  # of a digest; two of a thousand million X-rays would hardly agree in them
_SUM_TOLERANCE = 1e-3


class SubmissionError(CLIPKOAError, ValueError):
    """An entry that cannot be measured, or a split that none can be; the message names it and what would be right."""


@dataclass(frozen=True)
class BenchmarkSplit:
    """N X-rays in the order of their digests, which tells nothing of names."""

    xrays: tuple[str, ...]  # digests
    grades: tuple[int, ...]
    people: tuple[int, ...]  # numbers; X-rays of equal number are one person's

    def to_csv(self) -> str:
        """Lines of person, grade and X-ray."""
        rows = zip(self.people, self.grades, self.xrays, strict=True)
        return "person,grade,xray\n" + "".join(f"{person},{grade},{xray}\n" for person, grade, xray in rows)


@dataclass(frozen=True)
class Entry:
    """What a model says of a split."""

    model: str  # its Hub id
    probabilities: np.ndarray  # (N, K), in the split's order

    def to_lines(self, split: BenchmarkSplit) -> str:
        """Its file."""
        return entry_lines(zip(split.xrays, self.probabilities.tolist(), strict=True))


def entry_lines(rows: Iterable[tuple[str, list[float]]]) -> str:
    """An entry's file: a line of JSON for each X-ray's digest and its probabilities."""
    return "".join(json.dumps({"xray": xray, "probabilities": shares}) + "\n" for xray, shares in rows)


def xray_digest(picture: Image.Image) -> str:
    """The name of an X-ray in a benchmark: of its size and its gray levels, as `read_radiograph` gives them."""
    picture = picture.convert("L")
    content = f"{picture.width}x{picture.height}\n".encode() + picture.tobytes()
    return hashlib.sha256(content).hexdigest()[:_DIGITS]


def digests_of(xrays: list[Xray]) -> list[str]:
    """Each X-ray's digest; raises `CorpusError`, `RadiographError`: it cannot be read."""
    read = tqdm(read_contents(xrays), total=len(xrays), desc="reading", unit="X-ray")
    return [xray_digest(read_xray(xray, content).image) for xray, content in read]


def benchmark_split(xrays: list[Xray], name: str) -> BenchmarkSplit:
    """A split of a corpus as a benchmark publishes it.

    Raises:
        SubmissionError: two X-rays that show the same.
        CorpusError, RadiographError: an X-ray that cannot be read.
    """
    rows = sorted(zip(digests_of(xrays), xrays, strict=True), key=lambda row: row[0])
    for (digest, one), (following, other) in zip(rows, rows[1:], strict=False):
        if digest == following:
            raise SubmissionError(f"{name}: {one.file} and {other.file} are the same picture: leave one out.")
    numbers = {}
    people = [numbers.setdefault(xray.person_id or xray.file, len(numbers) + 1) for _, xray in rows]
    return BenchmarkSplit(tuple(row[0] for row in rows), tuple(xray.grade for _, xray in rows), tuple(people))


def read_entry(path: Path, split: BenchmarkSplit) -> Entry:
    """Reads USER--MODEL.jsonl, which must say something of each X-ray of the split, once.

    Raises:
        SubmissionError: another name, a damaged line, probabilities that are none, or X-rays that are missing,
            unknown or given twice.
    """
    if not _NAME.fullmatch(path.stem) or path.suffix != ".jsonl":
        raise SubmissionError(f"{path.name}: name an entry after its model on the Hub, as USER--MODEL.jsonl.")
    known, said = set(split.xrays), {}
    for number, line in enumerate(path.read_bytes().splitlines(), start=1):
        try:
            row = json.loads(line)
            xray, shares = str(row["xray"]), [float(share) for share in row["probabilities"]]
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
            raise SubmissionError(
                f'{path.name}, line {number} is no answer: it must be {{"xray": DIGEST, "probabilities": [...]}}.'
            ) from error
        where = f"{path.name}, line {number}"
        if len(shares) != NUM_GRADES or not all(math.isfinite(share) and share >= 0 for share in shares):
            raise SubmissionError(f"{where}: probabilities must be {NUM_GRADES} numbers, none below 0.")
        if abs(sum(shares) - 1) > _SUM_TOLERANCE:
            raise SubmissionError(f"{where}: the probabilities add up to {sum(shares):.4g}, and must to 1.")
        if xray not in known:
            raise SubmissionError(f"{where}: {xray[:40]!r} is no X-ray of this split; splits/ lists their digests.")
        if xray in said:
            raise SubmissionError(f"{where}: {xray} stands there twice; give each X-ray once.")
        said[xray] = shares
    if missing := [xray for xray in split.xrays if xray not in said]:
        raise SubmissionError(f"{path.name} lacks {len(missing)} of {len(known)} X-rays, such as {missing[0]}.")
    return Entry(path.stem.replace("--", "/", 1), np.array([said[xray] for xray in split.xrays]))


def measure_entries(split: BenchmarkSplit, entries: list[Entry]) -> list[dict]:
    """Figures of each entry with intervals over people, the best first, each compared with the first, pair by pair.

    Returns:
        For each entry `model`, `figures` (of `kl_grading_metrics`) and `against_first` (of `compare_kl_gradings`, the
        entry less the first), which is None of the first itself.
    """
    people, grades = [str(person) for person in split.people], list(split.grades)
    rows = []
    for entry in entries:
        figures = kl_grading_metrics(
            entry.probabilities.argmax(-1), grades, probabilities=entry.probabilities, people=people
        )
        rows.append({"model": entry.model, "figures": figures, "entry": entry})
    rows.sort(key=lambda row: (-row["figures"][RANKED_BY], row["model"]))
    sides = [_side(row.pop("entry")) for row in rows]
    for row, side in zip(rows, sides, strict=True):
        row["against_first"] = None if side is sides[0] else compare_kl_gradings(sides[0], side, grades, people)
    return rows


def _side(entry: Entry) -> dict:
    return {"predictions": entry.probabilities.argmax(-1), "probabilities": entry.probabilities}


def run(arguments: list[str] | None, prog: str) -> int:
    """Makes an entry of a prediction file; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("predictions", type=Path, help="predictions_SPLIT.jsonl of clip-koa evaluate")
    parser.add_argument("output", type=Path, metavar="USER--MODEL.jsonl", help="the entry")
    parser.add_argument("--data_dir", help="the corpus, in any layout (default: KNEE_XRAY_DIR)")
    parser.add_argument("--head", choices=HEADS, default="text_flip_averaged", help="default: text_flip_averaged")
    options = parser.parse_args(arguments)
    if not _NAME.fullmatch(options.output.stem) or options.output.suffix != ".jsonl":
        raise SubmissionError(
            f"{options.output.name}: name an entry after its model on the Hub, as USER--MODEL.jsonl."
        )
    graded, data = read_predictions(options.predictions), resolve_data_dir(options.data_dir)
    listed = {xray.file: xray for xrays in find_files(data).values() for xray in xrays}
    if missing := [file for file in graded.files if file not in listed]:
        raise PredictionsError(f"{data} does not hold {missing[0]}, which the predictions are of.")
    digests = digests_of([listed[file] for file in graded.files])
    shares = grading(graded.predictions, options.head)["probabilities"].tolist()
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_file(options.output, entry_lines(sorted(zip(digests, shares, strict=True))).encode())
    print(f"{options.output}: {len(digests)} X-rays; no name of a file or a person is in it.")
    return 0


main = main_of("clip_koa.evaluation.submissions", run)


if __name__ == "__main__":
    sys.exit(main())
