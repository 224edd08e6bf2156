"""Writes a corpus as Parquet shards with a dataset card, which everybody loads without our code.

    python -m dataset_script.export DATA OUTPUT
    load_dataset("OUTPUT")

The X-rays are those that `read_radiograph` gives, as PNG: 8 bits, upright, bone bright, and nothing but pixels.
"""

import argparse
import hmac
import os
import re
import secrets
import sys
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as parquet
from huggingface_hub import DatasetCard, DatasetCardData
from tqdm import tqdm

from dataset_script.exit_status import main_of
from dataset_script.files import new_folder
from dataset_script.knee_xray import FEATURES, GRADE_LABELS, encode_png, in_batches, read_ahead, read_xray
from dataset_script.layouts import find_files, is_release, release_differences, resolve_data_dir
from dataset_script.listing import Xray, describe_disputes, describe_left_out
from dataset_script.names import GRADES, GRADES_HELP, CorpusError

ROWS_OF_SHARD = 5000
RELEASE_SOURCE = (
    "P. Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data 2018, https://doi.org/10.17632/56rmx5bjcr.1"
)

CARD = """
# Knee X-rays with Kellgren-Lawrence grades

Source: {source}. Licence: {license}.

```python
from datasets import load_dataset
from dataset_script.exit_status import main_of

knees = load_dataset("path/or/id/of/this/folder")  # also with streaming=True
```

| split | {heads} | X-rays | people |
|---|{rule}---|---|
{counts}

| feature | what |
|---|---|
| `image` | the X-ray, an 8-bit grayscale PNG, upright, bone bright; {inverted} of {total} were stored with bone dark |
| `label` | Kellgren-Lawrence grade: {labels} |
| `person_id` | {person}; both knees of a person are in one split |
| `laterality` | "L", "R", or empty where it is not known |
| `file` | a name of its own in this data set |

The files hold pixels only: no metadata of the original files, DICOM ones included, is here. What is written into the
picture itself, such as a marker, is still in it.

Research only: grades of this data set, and models trained on it, must not guide the care of patients.
"""


def export_corpus(
    data: Path,
    output: Path,
    *,
    key: bytes | None,
    source: str = "",
    license: str = "",
    rows_of_shard: int = ROWS_OF_SHARD,
    grades: str | None = None,
) -> dict[str, int]:
    """Writes `{output}/data/{split}-00000-of-00002.parquet` and `{output}/README.md`, or nothing.

    Args:
        data: a corpus in any layout.
        output: a new or empty folder.
        key: of the pseudonyms; None keeps the person ids, and the files' names, as they are.
        source: where the X-rays are from, for the card; default: the official release, where they are its.
        license: its identifier on the Hub, as cc-by-4.0; default: that of the official release, or unknown.
        rows_of_shard: X-rays in a Parquet file.
        grades: see `names.GradeNames`.

    Returns:
        X-rays of each split.

    Raises:
        CorpusError: no corpus, an X-ray that can't be read.
        WriteError: a folder that is not empty, or could not be written.
    """
    splits = find_files(data, grades)
    released = is_release(splits)
    source = source or (RELEASE_SOURCE if released else "not stated")
    license = license or ("cc-by-4.0" if released else "unknown")
    with new_folder(output) as temporary:
        (temporary / "data").mkdir()
        tallies = {split: _write_split(split, xrays, temporary, key, rows_of_shard) for split, xrays in splits.items()}
        card = _card(tallies, temporary, key, source, license)
        (temporary / "README.md").write_text(str(card), encoding="utf-8")
    return {split: sum(tally["grades"].values()) for split, tally in tallies.items()}


def pseudonym(person_id: str, key: bytes) -> str:
    """A name for a person that is the same under the same key and tells nothing without it (HMAC-SHA256)."""
    return hmac.new(key, person_id.encode(), "sha256").hexdigest()[:16] if person_id else ""


def load_key(path: Path) -> bytes:
    """The key of the pseudonyms, made on first use and readable by its owner alone.

    Raises:
        CorpusError: the file holds no key.
    """
    if not path.exists():
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with open(descriptor, "w", encoding="ascii") as file:
            file.write(secrets.token_hex(32) + "\n")
    key = path.read_text(encoding="ascii", errors="replace").strip()
    if not re.fullmatch("[0-9a-f]{64}", key):
        raise CorpusError(f"{path} holds no key of pseudonyms: 64 hexadecimal digits.")
    return bytes.fromhex(key)


def _write_split(split: str, xrays: list[Xray], folder: Path, key: bytes | None, rows_of_shard: int) -> dict:
    """Writes the shards of a split; returns its grades, people, inverted X-rays, and bytes."""
    if key and not any(isinstance(xray.member, int) for xray in xrays):
        # In the order of the names, pseudonyms would give away who comes before whom. Rows of Parquet stay in their
        # own order: it is a single pass, and tells nothing of names.
        order = {xray: (pseudonym(xray.person_id or xray.file, key), xray.file) for xray in xrays}
        xrays = sorted(xrays, key=order.__getitem__)
    shards = -(-len(xrays) // rows_of_shard)
    tally = {"grades": Counter(), "people": set(), "inverted": 0, "bytes": 0}
    rows = _rows(split, xrays, key, tally)
    for number in range(shards):
        path = folder / "data" / f"{split}-{number:05d}-of-{shards:05d}.parquet"
        with parquet.ParquetWriter(path, FEATURES.arrow_schema) as writer:
            for group in in_batches(islice(rows, rows_of_shard)):
                writer.write_table(pa.Table.from_pylist(group, schema=FEATURES.arrow_schema))
    return tally


def _rows(split: str, xrays: list[Xray], key: bytes | None, tally: dict) -> Iterator[dict]:
    def read(xray, content):
        radiograph = read_xray(xray, content)
        person_id = xray.person_id or radiograph.person_id or ""
        laterality = xray.laterality or radiograph.laterality or ""
        return xray, person_id, laterality, radiograph.inverted, encode_png(radiograph.image)

    every = tqdm(read_ahead(read, xrays), split, len(xrays), unit=" X-rays")
    for number, (xray, person_id, laterality, inverted, png) in enumerate(every):
        file = xray.file
        if key:
            person_id = pseudonym(person_id, key)
            file = f"{split}/{xray.grade}/{number:06d}{laterality}.png"
        tally["grades"][xray.grade] += 1
        tally["people"].add(person_id)
        tally["inverted"] += inverted
        tally["bytes"] += len(png)
        yield {
            "image": {"bytes": png, "path": None},
            "label": xray.grade,
            "person_id": person_id,
            "laterality": laterality,
            "file": file,
        }


def _card(tallies: dict, folder: Path, key: bytes | None, source: str, license: str) -> DatasetCard:
    total = sum(sum(tally["grades"].values()) for tally in tallies.values())
    splits = datasets.splits.SplitDict()
    for split, tally in tallies.items():
        splits[split] = datasets.SplitInfo(split, tally["bytes"], sum(tally["grades"].values()))
    info = datasets.DatasetInfo(
        features=FEATURES,
        splits=splits,
        dataset_size=sum(tally["bytes"] for tally in tallies.values()),
        download_size=sum(path.stat().st_size for path in (folder / "data").iterdir()),
    )
    sizes = ((1000, "n<1K"), (10_000, "1K<n<10K"), (100_000, "10K<n<100K"), (10**9, "100K<n<1M"))
    data = DatasetCardData(
        license=license,
        task_categories=["image-classification"],
        size_categories=[next(name for limit, name in sizes if total < limit)],
        tags=["medical", "radiography", "knee", "osteoarthritis", "kellgren-lawrence"],
        pretty_name="Knee X-rays with Kellgren-Lawrence grades",
        # Every split by its own files: the Hub's guess from names would put auto_test into test.
        configs=[
            {
                "config_name": "default",
                "data_files": [{"split": split, "path": f"data/{split}-*.parquet"} for split in tallies],
            }
        ],
    )
    datasets.info.DatasetInfosDict({"default": info}).to_dataset_card_data(data)
    counts = []
    for split, tally in tallies.items():
        grades, people = tally["grades"], tally["people"] - {""}
        cells = [split, *(grades[grade] for grade in GRADES), sum(grades.values()), len(people) or "not known"]
        counts.append("| " + " | ".join(map(str, cells)) + " |")
    text = CARD.format(
        source=source,
        license=license,
        heads=" | ".join(f"KL{grade}" for grade in GRADES),
        rule="---|" * len(GRADES),
        counts="\n".join(counts),
        inverted=sum(tally["inverted"] for tally in tallies.values()),
        total=total,
        labels=", ".join(GRADE_LABELS),
        person="a pseudonym" if key else "the person's id in the source",
    )
    return DatasetCard(f"---\n{data.to_yaml()}\n---\n{text}")


def run(arguments: list[str] | None, prog: str) -> int:
    """Exports a corpus; returns the exit status, 2 where it cannot be."""
    parser = argparse.ArgumentParser(prog=prog, description="Write knee X-rays as Parquet shards with a dataset card.")
    parser.add_argument("data", metavar="DATA", help="the corpus, in any layout")
    parser.add_argument("output", metavar="OUTPUT", type=Path, help="new folder")
    parser.add_argument("--grades", metavar="NAME=GRADE,...", help=GRADES_HELP)
    parser.add_argument("--keep_person_ids", action="store_true", help="keep person ids and file names as they are")
    parser.add_argument(
        "--key", type=Path, help="file with the key of the pseudonyms (default: OUTPUT.key, made anew)"
    )
    parser.add_argument("--source", default="", help="where the X-rays are from, for the card")
    parser.add_argument("--license", default="", help="identifier of their licence on the Hub, as cc-by-4.0")
    parser.add_argument("--rows_of_shard", type=int, default=ROWS_OF_SHARD, help=f"(default: {ROWS_OF_SHARD})")
    options = parser.parse_args(arguments)
    if options.rows_of_shard < 1:
        parser.error("--rows_of_shard must be at least 1")
    output, data = options.output.absolute(), resolve_data_dir(options.data)
    key_file = options.key or output.with_name(f"{output.name}.key")
    key = None if options.keep_person_ids else load_key(key_file)
    counts = export_corpus(
        data,
        output,
        key=key,
        source=options.source,
        license=options.license,
        rows_of_shard=options.rows_of_shard,
        grades=options.grades,
    )
    print(f"{options.output}: " + ", ".join(f"{split} {count}" for split, count in counts.items()))
    found = find_files(data, options.grades)
    for remark in describe_left_out(found.left_out) + describe_disputes(found) + release_differences(found):
        print(f"note: {remark}")
    if key:
        print(f"The key of the pseudonyms is in {key_file}: keep it, and keep it to yourself.")
    return 0


main = main_of("dataset_script.export", run)


if __name__ == "__main__":
    sys.exit(main())
