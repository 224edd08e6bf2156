"""A look-alike of the Osteoarthritis Initiative's films and readings, to try `clip-koa frame` on.

    python -m studies.oai_lookalike write --data_dir FOLDER --output STUDY --films 500
    clip-koa frame STUDY/films --labels STUDY/kxr_sq_bu00.txt --labels STUDY/kxr_sq_bu01.txt --output CORPUS
    python -m studies.oai_lookalike check --study STUDY --corpus CORPUS

The films are composed of a split's crops (dataset_script/films.py), the persons' numbers invented. It is built by the
initiative's description of its files; the real ones were not at hand.
"""

import argparse
import csv
import itertools
import json
import sys
from pathlib import Path

import numpy as np
import pydicom
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian
from tqdm.auto import tqdm

from dataset_script.exit_status import main_of
from dataset_script.films import LOOKS, compose_film, draw_pairs, read_pairs
from dataset_script.layouts import resolve_data_dir
from dataset_script.names import CorpusError
from studies.framing import overlap

TRUTH = "truth.json"
_VISITS = {"00": "00m", "01": "12m"}
_ROOT = "1.2.826.0.1.3680043.10.543.7"  # of the look-alike's identifiers
_WIDTHS = (800, 1600)


def write_study(folder: Path, pairs, films: int, seed: int) -> None:
    """Writes films by visit with contents.csv, the tables of readings, and what is true of them.

    The last five films are a lateral view, a film whose knees nobody read, one read twice with other grades, a broken
    file, and a film of no knee.

    Args:
        pairs: people, of whom each gives a film at the first visit and, where they do not suffice, one at the second.
    """
    if (folder / TRUTH).exists():
        raise CorpusError(f"{folder} holds a study already: name another folder.")
    pairs = list(itertools.islice(pairs, films))
    rng, truth = np.random.default_rng(seed), []
    contents, tables = {visit: [] for visit in _VISITS}, {visit: [] for visit in _VISITS}
    looks = list(LOOKS)
    for number in tqdm(range(films), "films", unit="film"):
        pair, visit = pairs[number % len(pairs)], list(_VISITS)[number // len(pairs) % 2]
        person, barcode = f"{9900001 + number % len(pairs)}", f"0166{visit}{number:06d}"
        look = looks[number % len(looks)]
        width = int(rng.integers(*_WIDTHS))
        film = compose_film(pair.right, pair.left, (seed, number), look, width)
        special = number - (films - 5)
        image = film.image
        if special == 0:
            image = image.resize((image.width, image.height), box=(0, 0, image.width // 9, image.height))
        elif special == 4:
            image = Image.fromarray(rng.integers(0, 60, (image.height, image.width)).astype(np.uint8))
        series = Path(_VISITS[visit], "0.C.2", person, "20050101", f"{number:08d}")
        (folder / "films" / series).mkdir(parents=True)
        content = _dicom(image, number, person, inverted=bool(number % 3 == 2))
        (folder / "films" / series / "001").write_bytes(content[: len(content) // 3] if special == 3 else content)
        below = series.relative_to(_VISITS[visit]).as_posix()
        contents[visit].append((below, person, "20050101", barcode, "PA^XRAY^BILAT^KNEE"))
        grades = {"R": pair.right_grade, "L": pair.left_grade}
        if special != 1:
            tables[visit] += _readings(person, barcode, grades, number)
        if special == 2:
            tables[visit] += _readings(
                person, barcode, {"R": (grades["R"] + 1) % 5, "L": (grades["L"] + 2) % 5}, number
            )
        truth.append(
            {
                "film": (series / "001").as_posix(),
                "person": person,
                "visit": visit,
                "grades": grades,
                "boxes": {"R": film.boxes[0], "L": film.boxes[1]},
                "usable": special < 0 or special > 4,
            }  # fmt: skip
        )
    for visit, name in _VISITS.items():
        if contents[visit]:
            with open(folder / "films" / name / "contents.csv", "w", newline="") as file:
                writer = csv.writer(file)
                writer.writerow(("Folder", "ParticipantID", "StudyDate", "Barcode", "SeriesDescription"))
                writer.writerows(contents[visit])
            header = f"ID|SIDE|READPRJ|V{visit}BARCDBU|V{visit}XRKL"
            lines = [header if visit == "00" else header.lower(), *tables[visit]]
            (folder / f"kxr_sq_bu{visit}.txt").write_text("\n".join(lines) + "\n")
    (folder / TRUTH).write_text(json.dumps(truth, indent=1))


def _readings(person: str, barcode: str, grades: dict[str, int], number: int) -> list[str]:
    """Lines of a table, in the forms that the initiative's tables have; barcodes lose the zero they begin with."""
    sides = {"R": "1: Right", "L": "2: Left"} if number % 2 else {"R": "1", "L": "2"}
    worded = (lambda grade: f"{grade}: {grade}") if number % 2 else str
    lines = [f"{person}|{sides[side]}|15|{barcode.lstrip('0')}|{worded(grade)}" for side, grade in grades.items()]
    return [*lines, f"{person}|1|37|{barcode}|.A: Not Expected"] if number % 7 == 0 else lines


def _dicom(image: Image.Image, number: int, person: str, inverted: bool) -> bytes:
    """A film of 12 bits, MONOCHROME1 or 2."""
    cells = np.asarray(image, np.uint16) * 16
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = ComputedRadiographyImageStorage
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{_ROOT}.{number}"
    dataset.Modality, dataset.PatientID = "CR", person
    dataset.Rows, dataset.Columns = cells.shape
    dataset.SamplesPerPixel, dataset.PixelRepresentation = 1, 0
    dataset.PhotometricInterpretation = "MONOCHROME1" if inverted else "MONOCHROME2"
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.WindowCenter, dataset.WindowWidth = 2048, 4096
    dataset.PixelData = (4095 - cells if inverted else cells).tobytes()
    buffer = pydicom.filebase.DicomBytesIO()
    dataset.save_as(buffer, enforce_file_format=True)
    return buffer.getvalue()


def check_corpus(study: Path, corpus: Path) -> dict[str, int]:
    """How many knees of the study are in the corpus with their own grade and place, and what else is in it."""
    truth = {entry["film"]: entry for entry in json.loads((study / TRUTH).read_text())}
    with open(corpus / "metadata.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    counts = dict.fromkeys(("knees", "right", "missing", "another's grade", "misplaced", "of unusable films"), 0)
    counts["knees"] = 2 * sum(entry["usable"] for entry in truth.values())
    for row in rows:
        entry = truth[row["film"]]
        box = [int(row[name]) for name in ("left", "top", "right", "bottom")]
        own = row["person_id"] == entry["person"] and int(row["label"]) == entry["grades"][row["laterality"]]
        place = overlap(box, entry["boxes"][row["laterality"]])
        other = overlap(box, entry["boxes"]["L" if row["laterality"] == "R" else "R"])
        if not entry["usable"]:
            counts["of unusable films"] += 1
        elif not own or other > place:
            counts["another's grade"] += 1
        elif place < 0.8:
            counts["misplaced"] += 1
        else:
            counts["right"] += 1
    counts["missing"] = counts["knees"] - counts["right"] - counts["misplaced"] - counts["another's grade"]
    return counts


def run(arguments: list[str] | None, prog: str) -> int:
    """Writes or checks; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True, dest="command")
    write = commands.add_parser("write", help="write films and tables of readings")
    write.add_argument("--data_dir", help="the corpus whose crops are taken (default: KNEE_XRAY_DIR)")
    write.add_argument("--split", default="validation")
    write.add_argument("--drawn", type=int, metavar="PEOPLE", help="take drawn knees of so many people instead")
    write.add_argument("--output", type=Path, required=True)
    write.add_argument("--films", type=int, default=500, help="default: 500")
    write.add_argument("--seed", type=int, default=0)
    check = commands.add_parser("check", help="compare a corpus with what is true")
    check.add_argument("--study", type=Path, required=True)
    check.add_argument("--corpus", type=Path, required=True)
    options = parser.parse_args(arguments)
    if options.command == "write":
        pairs = (
            draw_pairs(options.drawn, options.seed)
            if options.drawn
            else read_pairs(resolve_data_dir(options.data_dir), options.split)
        )
        write_study(options.output, pairs, options.films, options.seed)
        print(f"{options.films} films in {options.output}")
        return 0
    counts = check_corpus(options.study, options.corpus)
    print("\n".join(f"{count:6} {name}" for name, count in counts.items()))
    return 0


main = main_of("studies.oai_lookalike", run)


if __name__ == "__main__":
    sys.exit(main())
