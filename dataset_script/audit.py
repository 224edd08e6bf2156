"""Says whether a corpus is fit to train on: what is in it, and what is wrong with it.

    python -m dataset_script.audit DATA --json audit.json --sheet audit.png

The exit status is 0 where the corpus is fit to train on, 1 where it is not, and 2 where there is none to look at.
"""

import argparse
import hashlib
import json
import sys
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageOps
from tqdm import tqdm

from dataset_script.exit_status import main_of
from dataset_script.files import write_file, write_picture
from dataset_script.knee_xray import read_ahead, read_xray
from dataset_script.layouts import (
    RELEASE_COUNTS,
    is_release,
    list_files,
    read_contents,
    release_differences,
    resolve_data_dir,
)
from dataset_script.listing import (
    GRAVE_KINDS,
    LeftOut,
    Xray,
    describe_disputes,
    describe_left_out,
    find_shared_people,
)
from dataset_script.names import GRADES, GRADES_HELP, CorpusError
from dataset_script.radiograph import RadiographError
from dataset_script.tiles import GROUND, draw_tiles

# Standard deviation of the gray values under which an X-ray shows nothing.
BLANK_CONTRAST = 4.0
# Bits of 256 in which the hashes of near-duplicates may differ. On 200 real X-rays 99 of 100 copies that were
# compressed, resized or brightened differ in at most 13; the two nearest of 6,604 different knees in 19.
NEAR_BITS = 12
_THUMBNAIL, _COLUMNS, _LISTED, _TITLE = 112, 12, 10, 16


@dataclass(frozen=True)
class Look:
    """What one X-ray looks like, or why it cannot be read.

    `bits` is its perceptual hash, 256 booleans: whether the brightness rises from each of 17x16 places to the next
    on the right. `mirror_bits` is that of the mirror image.
    """

    xray: Xray
    reason: str = ""
    size: tuple[int, int] = (0, 0)
    digest: bytes = b""
    contrast: float = 0.0
    inverted: bool = False
    laterality: str = ""
    person_id: str = ""
    bits: np.ndarray | None = None
    mirror_bits: np.ndarray | None = None


def audit_corpus(data: Path, grades: str | None = None) -> dict:
    """Reads every X-ray of a corpus and reports on it.

    Args:
        data: the corpus, in any layout.
        grades: see `names.GradeNames`.

    Returns:
        Of plain values, as JSON takes them: `fit`, whether it is fit to train on; `problems`, why not; `notes`; and
        what they rest on, by name.

    Raises:
        CorpusError: there is no corpus, or no layout that is known.
    """
    splits = list_files(data, grades)
    xrays = [xray for listed in splits.values() for xray in listed]
    looks = list(tqdm(read_ahead(_look, xrays), "reading", len(xrays), unit=" X-rays"))
    readable = [look for look in looks if not look.reason]
    contents = {}
    for look in readable:
        contents.setdefault((look.size, look.digest), []).append(look.xray)
    report = {
        "data": str(data),
        "splits": {split: _count(listed) for split, listed in splits.items()},
        "grade_names": splits.grade_names,
        "left_out": [asdict(left_out) for left_out in splits.left_out],
        "sizes": _counted(f"{look.size[0]}x{look.size[1]}" for look in readable),
        "laterality": _counted(look.laterality or "unknown" for look in readable),
        "unknown_people": sum(not look.person_id for look in readable),
        "left_right_differences": _left_right(readable),
        "people_in_several_splits": [
            {"person_id": person, "files": [first.file, second.file]}
            for person, (first, second) in find_shared_people(splits).items()
        ],
        "disputed_people": describe_disputes(_by_split(look.xray for look in looks)),
        "unreadable": [{"file": look.xray.file, "reason": look.reason} for look in looks if look.reason],
        "blank": [look.xray.file for look in readable if look.contrast < BLANK_CONTRAST],
        "inverted": [look.xray.file for look in readable if look.inverted],
        "exact_duplicates": [_duplicate(group) for group in contents.values() if len(group) > 1],
        "near_duplicates": _near_duplicates([look for look in readable if look.contrast >= BLANK_CONTRAST]),
        "release_differences": release_differences(splits),
        "missing_release_splits": [split for split in RELEASE_COUNTS if is_release(splits) and split not in splits],
    }
    report["problems"], report["notes"] = _problems(report), _notes(report)
    report["fit"] = not report["problems"]
    return report


def _look(xray: Xray, content: Path | bytes) -> Look:
    try:
        radiograph = read_xray(xray, content)
    except (RadiographError, CorpusError) as error:
        return Look(xray, str(error))
    if radiograph.is_dicom:  # rows of Parquet that name a person were not opened before
        xray = replace(xray, own_person_id=radiograph.person_id)
    image = radiograph.image
    small = np.asarray(image.resize((17, 16), Image.Resampling.BOX), np.float32)
    return Look(
        xray,
        "",
        image.size,
        hashlib.sha256(image.tobytes()).digest(),
        _contrast(image),
        radiograph.inverted,
        xray.laterality or radiograph.laterality or "",
        xray.person_id or radiograph.person_id or "",
        (small[:, 1:] > small[:, :-1]).ravel(),
        (small[:, -2::-1] > small[:, :0:-1]).ravel(),
    )


def _contrast(image: Image.Image) -> float:
    """Standard deviation of the gray values, by their counts: floats of all pixels would fill the memory."""
    counts, levels = np.array(image.histogram()), np.arange(256)
    mean = np.average(levels, weights=counts)
    return float(np.sqrt(np.average((levels - mean) ** 2, weights=counts)))


def _by_split(xrays: Iterable[Xray]) -> dict[str, list[Xray]]:
    splits = {}
    for xray in xrays:
        splits.setdefault(xray.split, []).append(xray)
    return splits


def _count(xrays: list[Xray]) -> dict:
    grades = Counter(xray.grade for xray in xrays)
    people = {xray.person_id for xray in xrays} - {None}
    return {"xrays": len(xrays), "people": len(people), "grades": [grades[grade] for grade in GRADES]}


def _counted(values) -> dict[str, int]:
    return dict(Counter(values).most_common())


def _left_right(looks: list[Look]) -> dict[str, dict[str, int]]:
    """By split: how many people's two knees differ by 0, 1, 2, 3 and 4 grades."""
    knees = {}
    for look in looks:
        if look.person_id and look.laterality and look.xray.split != "auto_test":
            knees.setdefault((look.xray.split, look.person_id), {})[look.laterality] = look.xray.grade
    differences = {}
    for (split, _), grades in knees.items():
        if len(grades) == 2:
            differences.setdefault(split, Counter())[abs(grades["L"] - grades["R"])] += 1
    return {split: {str(grade): counts[grade] for grade in GRADES} for split, counts in differences.items()}


def _duplicate(xrays: list[Xray], **more) -> dict:
    return {
        "files": [xray.file for xray in xrays],
        "splits": sorted({xray.split for xray in xrays}),
        "grades": sorted({xray.grade for xray in xrays}),
        **more,
    }


def _near_duplicates(looks: list[Look]) -> list[dict]:
    """Pairs whose hashes nearly agree, as they are or one of them mirrored; exact duplicates are left out."""
    if not looks:
        return []
    # Of vectors of +1 and -1 the dot product is 256 less twice the bits that differ: fast by matrix products.
    signs = np.array([look.bits for look in looks], np.float32) * 2 - 1
    mirrored = np.array([look.mirror_bits for look in looks], np.float32) * 2 - 1
    found = []
    for start in tqdm(range(0, len(looks), 512), "comparing", unit=" blocks", disable=len(looks) < 5000):
        block = signs[start : start + 512]
        for others, is_mirrored in ((signs, False), (mirrored, True)):
            bits = (block.shape[1] - block @ others[start:].T) / 2
            for row, column in zip(*np.nonzero(bits <= NEAR_BITS), strict=True):
                first, second = looks[start + row], looks[start + column]
                if column > row and first.digest != second.digest:
                    pair = _duplicate([first.xray, second.xray], bits=int(bits[row, column]), mirrored=is_mirrored)
                    found.append(pair)
    return sorted(found, key=lambda pair: (pair["mirrored"], pair["bits"], pair["files"]))


def _problems(report: dict) -> list[str]:
    """What makes a corpus unfit to train on."""
    problems = []
    if "train" not in report["splits"]:
        problems.append("there is no train split")
    for name, what in (
        ("people_in_several_splits", "people are in more than one split"),
        ("unreadable", "X-rays cannot be read"),
        ("blank", "X-rays are blank"),
    ):
        if report[name]:
            problems.append(f"{len(report[name])} {what}")
    problems += report["disputed_people"]
    problems += describe_left_out(_left_out(report, GRAVE_KINDS))
    crossing = [group for group in report["exact_duplicates"] if len(set(group["splits"]) - {"auto_test"}) > 1]
    if crossing:
        problems.append(f"{len(crossing)} X-rays are in more than one split")
    torn = [group for group in report["exact_duplicates"] if len(group["grades"]) > 1]
    if torn:
        problems.append(f"{len(torn)} X-rays are there twice with different grades")
    return problems


def _left_out(report: dict, kinds: Iterable[str]) -> list[LeftOut]:
    return [LeftOut(**entry) for entry in report["left_out"] if entry["kind"] in kinds]


def _notes(report: dict) -> list[str]:
    """What one should know of a corpus before training on it."""
    notes = [f"no {split} split" for split in ("validation", "test") if split not in report["splits"]]
    for split, counts in report["splits"].items():
        missing = [f"KL{grade}" for grade, count in enumerate(counts["grades"]) if not count]
        if missing and split != "auto_test":
            notes.append(f"{split} has no X-ray of {', '.join(missing)}")
    others = {entry["kind"] for entry in report["left_out"]} - set(GRAVE_KINDS)
    notes += describe_left_out(_left_out(report, others))
    if report["inverted"]:
        notes.append(f"{len(report['inverted'])} X-rays show bone dark on white; read_radiograph sets them right")
    if report["unknown_people"]:
        notes.append(
            f"{report['unknown_people']} X-rays are of unknown people: whether splits share any cannot be told"
        )
    for mirrored, kind in ((False, "near-duplicates"), (True, "near-duplicates of a mirror image")):
        pairs = [pair for pair in report["near_duplicates"] if pair["mirrored"] is mirrored]
        if pairs:
            across = sum(len(pair["splits"]) > 1 for pair in pairs)
            notes.append(f"{len(pairs)} pairs are {kind}, {across} of them in two splits")
    if report["exact_duplicates"]:
        notes.append(f"{len(report['exact_duplicates'])} X-rays are there more than once")
    return notes + report["release_differences"]


def format_report(report: dict) -> str:
    """The report as text for a person."""
    lines = [report["data"], "", f"{'split':12}" + "".join(f"{f'KL{grade}':>7}" for grade in GRADES)]
    lines[-1] += f"{'X-rays':>9}{'people':>9}"
    for split, counts in report["splits"].items():
        cells = "".join(f"{count:7}" for count in counts["grades"])
        lines.append(f"{split:12}{cells}{counts['xrays']:9}{counts['people']:9}")
    if report["grade_names"]:
        told = (
            f"{name} = KL{grade}" for name, grade in sorted(report["grade_names"].items(), key=lambda told: told[1])
        )
        lines += ["", "grades by name: " + _listed(told)]
    lines += ["", "sizes: " + _listed(f"{size} ({count})" for size, count in report["sizes"].items())]
    lines.append("laterality: " + ", ".join(f"{side} {count}" for side, count in report["laterality"].items()))
    for split, counts in report["left_right_differences"].items():
        cells = ", ".join(f"{grade}: {count}" for grade, count in counts.items())
        lines.append(f"people in {split} by the grades between their two knees: {cells}")
    for split in report["missing_release_splits"]:
        lines.append(f"the official release has a {split} split of {sum(RELEASE_COUNTS[split])} X-rays, not here")
    for name in ("unreadable", "blank", "inverted", "people_in_several_splits", "exact_duplicates", "near_duplicates"):
        if report[name]:
            lines += ["", f"{name.replace('_', ' ')}: {len(report[name])}"]
            lines += [f"  {_line(entry)}" for entry in report[name][:_LISTED]]
            if len(report[name]) > _LISTED:
                lines.append(f"  and {len(report[name]) - _LISTED} more; --json lists them all")
    lines += ["", *(f"note: {note}" for note in report["notes"]), *(f"PROBLEM: {text}" for text in report["problems"])]
    lines.append("fit to train on" if report["fit"] else "NOT fit to train on")
    return "\n".join(lines)


def _listed(values) -> str:
    values = list(values)
    return ", ".join(values[:_LISTED]) + (f" and {len(values) - _LISTED} more" if len(values) > _LISTED else "")


def _line(entry: str | dict) -> str:
    if isinstance(entry, str):
        return entry
    if "reason" in entry:
        return entry["reason"]
    person = f"{entry['person_id']}: " if "person_id" in entry else ""
    bits = f" ({entry['bits']} bits differ{', mirrored' if entry['mirrored'] else ''})" if "bits" in entry else ""
    return person + _listed(entry["files"]) + bits


def draw_sheet(data: Path, report: dict, grades: str | None = None) -> Image.Image:
    """A picture of the corpus: some X-rays of each grade as they are read, then the doubtful ones."""
    xrays = [xray for listed in list_files(data, grades).values() for xray in listed]
    by_file = {xray.file: xray for xray in xrays}
    unreadable = {entry["file"] for entry in report["unreadable"]}
    sections = {}
    for grade in GRADES:
        listed = [xray for xray in xrays if xray.grade == grade and xray.file not in unreadable]
        step = max(1, len(listed) // _COLUMNS)
        sections[f"KL{grade}"] = listed[::step][:_COLUMNS]
    rows = 8 * _COLUMNS
    sections["inverted, as stored"] = [by_file[file] for file in report["inverted"][:rows]]
    sections["blank"] = [by_file[file] for file in report["blank"][:rows]]
    for name in ("exact_duplicates", "near_duplicates"):
        files = [file for group in report[name] for file in group["files"][:2]][:rows]
        sections[f"{name.replace('_', ' ')}, in pairs"] = [by_file[file] for file in files]
    strips = [_strip(title, listed) for title, listed in sections.items() if listed]
    sheet = Image.new("L", (_COLUMNS * _THUMBNAIL, sum(strip.height for strip in strips) or 1))
    tops = np.cumsum([0, *(strip.height for strip in strips)])
    for strip, (top, _) in zip(strips, pairwise(tops), strict=True):
        sheet.paste(strip, (0, int(top)))
    return sheet


def _strip(title: str, xrays: list[Xray]) -> Image.Image:
    """A title and the thumbnails of some X-rays, a row to `_COLUMNS`."""
    images = []
    for xray, content in read_contents(xrays):
        radiograph = read_xray(xray, content)
        image = ImageOps.invert(radiograph.image) if radiograph.inverted and "stored" in title else radiograph.image
        images.append(ImageOps.contain(image, (_THUMBNAIL,) * 2))
    tiles = draw_tiles(images, [f"{xray.split[:5]} KL{xray.grade}" for xray in xrays], _COLUMNS, _THUMBNAIL)
    strip = Image.new("L", (tiles.width, _TITLE + tiles.height), GROUND)
    ImageDraw.Draw(strip).text((4, 2), f"{title} ({len(xrays)} shown)", fill=255)
    strip.paste(tiles, (0, _TITLE))
    return strip


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints the report; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Is this corpus of knee X-rays fit to train on?")
    parser.add_argument("data", metavar="DATA", nargs="?", help="the corpus, in any layout (default: KNEE_XRAY_DIR)")
    parser.add_argument("--grades", metavar="NAME=GRADE,...", help=GRADES_HELP)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the whole report as JSON")
    parser.add_argument(
        "--sheet", type=Path, metavar="FILE.png", help="draw X-rays of each grade and the doubtful ones"
    )
    options = parser.parse_args(arguments)
    data = resolve_data_dir(options.data)
    report = audit_corpus(data, options.grades)
    print(format_report(report))
    if options.json:
        write_file(options.json, (json.dumps(report, indent=1, ensure_ascii=False) + "\n").encode())
    if options.sheet:
        write_picture(options.sheet, draw_sheet(data, report, options.grades))
    return 0 if report["fit"] else 1


main = main_of("dataset_script.audit", run)


if __name__ == "__main__":
    sys.exit(main())
