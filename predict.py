"""Grade knee X-rays: for each, the KL grade, its probabilities, and how sure the model is.

    python predict.py XRAY_OR_FOLDER...
    python predict.py --output grades.csv 'archive/**/*.dcm'
    python predict.py --explain maps XRAY_OR_FOLDER...
    accelerate launch predict.py --output FOLDER 'archive/**/*.dcm'

The first prints a line for each X-ray and one for its mirror image. The second writes a table (.csv, .jsonl, .parquet)
and goes on where it was when it is started again after a stop. The third also lays heat maps over the X-rays, of what
speaks for their grade. The fourth spreads over processes, each of which writes a Parquet part of the table into the
folder. The exit status is 0 where every X-ray was graded, 1 where one was not (of several processes the last tells), 2
where nothing could be done. Research only, no medical device.
"""

import gc

# What is imported stays: looking for garbage meanwhile takes a quarter of the time to the first grade.
gc.disable()

import argparse
import io
import os
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from clip_koa import RELEASED_MODEL
from clip_koa.files import write_file
from clip_koa.grading.grade_table import (
    FORMATS,
    GradeTable,
    check_part,
    count_ungraded,
    part_of,
    share_of,
    table_row,
    whole_parts,
)
from clip_koa.grading.grader import BACKENDS, BATCH_SIZE, GradedXray, Grader, find_xrays
from clip_koa.memory import keep_freed_memory
from modeling_clip_koa import PRECISIONS

gc.freeze()
gc.enable()


def parse_options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line; exits with a message where it is wrong."""
    parser = argparse.ArgumentParser(description="Grade knee X-rays. Research only, no medical device.")
    parser.add_argument(
        "--model", default=str(RELEASED_MODEL),
        help="model folder, such as runs/demo/best, or Hub id (default: models/clip-koa-small, the released one)",
    )  # fmt: skip
    parser.add_argument("inputs", nargs="+", metavar="XRAY_OR_FOLDER", help="files, folders of them, or patterns")
    parser.add_argument(
        "--output", type=Path,
        help="table to write: .csv, .jsonl, .parquet, or a folder for parts (default: print)",
    )  # fmt: skip
    parser.add_argument(
        "--level", type=float, default=0.9,
        help="how often the confidence set is to hold the true grade (default: 0.9; for calibrated models)",
    )  # fmt: skip
    parser.add_argument(
        "--backend", choices=BACKENDS, default="pytorch",
        help="what runs the model; for onnx, --model is a folder that export_onnx.py wrote (default: pytorch)",
    )  # fmt: skip
    parser.add_argument(
        "--precision", choices=PRECISIONS, default="fp32",
        help="bf16: faster where the hardware has it, not quite the same; auto: bf16 there (default: fp32)",
    )  # fmt: skip
    parser.add_argument(
        "--keep-polarity", action="store_true",
        help="grade X-rays that show bone dark as they are (default: they are inverted first, and it is said)",
    )  # fmt: skip
    parser.add_argument("--explain", type=Path, metavar="DIR", help="write the X-rays under their heat maps there")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> int:
    """Grades; returns the exit status."""
    options = parse_options(arguments)
    keep_freed_memory()
    try:
        return grade_inputs(options)
    except (FileNotFoundError, ImportError, OSError, ValueError) as error:
        print(f"predict.py: {error}", file=sys.stderr)
        return 2


def grade_inputs(options: argparse.Namespace) -> int:
    """Grades this process's share of the inputs; returns the exit status.

    Raises:
        FileNotFoundError, OSError, ValueError: nothing can be done; the message says why.
    """
    files = find_xrays(options.inputs)
    # As `accelerate launch` and torchrun set them. Processes need not talk to each other, so none waits for another.
    process, processes = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    in_parts = options.output and options.output.suffix not in FORMATS
    if processes > 1 and not in_parts:
        raise ValueError(
            f"--output {options.output}: {processes} processes write their parts into a folder; name one."
        )
    share = share_of(len(files), process, processes)
    about = {"model": options.model, "level": options.level, "files": len(files), "share": [share.start, share.stop]}
    about |= {"backend": options.backend, "precision": options.precision}
    about |= {"keep_polarity": options.keep_polarity}
    output = part_of(options.output, process, processes) if in_parts else options.output
    if in_parts and output.exists():
        check_part(output, about)
        print(f"{output} is whole already.")
        return parts_status(options.output, processes)

    table = GradeTable(output, about) if output else None
    grader = Grader(
        options.model, options.level, _device(processes), options.backend, options.precision, options.keep_polarity
    )
    maps = HeatMaps(grader, options.explain, share.start) if options.explain else None
    files = files[share.start : share.stop]
    unread = write_table(grader, files, table, maps) if table else print_grades(grader, files, options.level, maps)
    if not grader.is_calibrated:
        print("No confidence sets: the model is not calibrated (calibrate.py does it).")
    print("The grade is read from both views averaged. Research only: not for diagnosis.")
    if in_parts:
        return parts_status(options.output, processes)
    return 1 if unread else 0


def parts_status(folder: Path, processes: int) -> int:
    """The exit status of a process whose part is whole: the last to finish tells for all whether one was not graded.

    A launcher stops all processes when one fails, so that none may while another still grades.
    """
    parts = whole_parts(folder)
    if len(parts) < processes:
        print("Other parts are not whole yet: the last process tells by its exit status whether all were graded.")
        return 0
    return 1 if sum(map(count_ungraded, parts)) else 0


def _device(processes: int) -> str | None:
    """The GPU of this process, where there are several processes and GPUs; else the grader's choice."""
    if processes == 1 or not torch.cuda.is_available():
        return None
    return f"cuda:{int(os.environ.get('LOCAL_RANK', 0)) % torch.cuda.device_count()}"


class HeatMaps:
    """Writes X-rays under their heat maps, numbered in the order of the input, so that equal names do not collide."""

    def __init__(self, grader: Grader, folder: Path, first: int):
        self.grader, self.folder, self.first = grader, folder, first
        folder.mkdir(parents=True, exist_ok=True)

    def write(self, number: int, xray: GradedXray) -> None:
        """Writes the picture of the X-ray of that number in the process's share, unless it could not be graded."""
        if xray.error:
            return
        picture = io.BytesIO()
        self.grader.explain(xray).overlay().save(picture, "PNG")
        name = f"{self.first + number:06d}-{Path(xray.file).stem}-{xray.grade.name.split()[0]}.png"
        write_file(self.folder / name, picture.getvalue())


def write_table(grader: Grader, files: list[str], table: GradeTable, maps: HeatMaps | None) -> int:
    """Writes the table of all files; returns how many were not graded.

    Raises:
        ValueError: the rows that are there are not of these files.
    """
    for row, file in zip(table.read(), files, strict=False):
        if row["file"] != file:
            raise ValueError(f"{table.rows} holds {row['file']} where {file} should be: remove it to begin anew.")
    with tqdm(total=len(files), initial=table.done, desc="grading", unit="X-ray") as bar:
        for start in range(table.done, len(files), BATCH_SIZE):
            batch = list(grader.grade(files[start : start + BATCH_SIZE]))
            for number, xray in enumerate(batch if maps else (), start + 1):
                maps.write(number, xray)
            table.add(map(table_row, batch))
            bar.update(len(batch))
    unread = sum(row["grade"] is None for row in table.read())
    print(f"{table.finish()}: {len(files) - unread} X-rays graded, {unread} not.")
    return unread


def print_grades(grader: Grader, files: list[str], level: float, maps: HeatMaps | None) -> int:
    """Prints a line for each X-ray and one for its mirror image; returns how many were not graded."""
    width = max(len(file) for file in files)
    print(
        f"{'file':{width}}  {'grade':12}  {f'set {level:.0%}':8}  {'view':6}  "
        + "  ".join(f"{label:>12}" for label in grader.labels)
    )
    unread = 0
    for number, xray in enumerate(grader.grade(files), 1):
        if maps:
            maps.write(number, xray)
        if xray.error:
            unread += 1
            print(f"{xray.file:{width}}  not graded: {xray.error}")
        else:
            _print_views(xray, width)
            for warning in xray.warnings:
                print(f"{'':{width}}  {warning}")
    return unread


def _print_views(xray: GradedXray, width: int) -> None:
    grade = xray.grade
    for view, probabilities in (("image", grade.image_probabilities), ("mirror", grade.mirror_probabilities)):
        first = (xray.file, grade.name, _range(grade.confidence_set)) if view == "image" else ("", "", "")
        print(
            f"{first[0]:{width}}  {first[1]:12}  {first[2]:8}  {view:6}  "
            + "  ".join(f"{probability:12.3f}" for probability in probabilities)
        )


def _range(grades: tuple[int, ...]) -> str:
    """Neighbouring grades in words: `2`, `2 to 3`, nothing for none."""
    return " to ".join(dict.fromkeys((str(grades[0]), str(grades[-1])))) if grades else ""


if __name__ == "__main__":
    sys.exit(main())
