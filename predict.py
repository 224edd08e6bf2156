"""Grade knee X-rays: for each, the KL grade, its probabilities, and how sure the model is.

    python predict.py XRAY_OR_FOLDER...
    python predict.py --output grades.csv 'archive/**/*.dcm'
    python predict.py --explain maps XRAY_OR_FOLDER...
    accelerate launch predict.py --output FOLDER 'archive/**/*.dcm'

The first prints a line for each X-ray and one for its mirror image. The second writes a table (.csv, .jsonl,
.parquet). Started again after a stop it goes on where it was; on a folder that has grown it grades what is new. The
third also lays heat maps over the X-rays, of what speaks for their grade. The fourth spreads over processes, each of
which writes a Parquet part of the table into the folder. The exit status is 0 where every X-ray was graded, 1 where
one was not (of several processes the last tells), 2 where nothing could be done. Research only, no medical device.
"""

import gc

# What is imported stays: looking for garbage meanwhile takes a quarter of the time to the first grade.
gc.disable()

import argparse
import hashlib
import io
import os
import sys
from pathlib import Path

import torch
from tqdm.auto import tqdm

from clip_koa import RELEASED_MODEL
from clip_koa.files import as_text, path_of, write_file
from clip_koa.grading import provenance
from clip_koa.grading.grade_table import (
    FORMATS,
    count_ungraded,
    is_being_made,
    list_parts,
    part_of,
    read_about,
    share_of,
    table_row,
)
from clip_koa.grading.grader import BACKENDS, BATCH_SIZE, GradedXray, Grader, find_xrays
from clip_koa.grading.growing_table import GrowingTable
from clip_koa.memory import keep_freed_memory
from modeling_clip_koa import PRECISIONS

gc.freeze()
gc.enable()

_STEM_BYTES = 180  # of a heat map's name, which may hold 255


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
        help="table to write or bring up to date: .csv, .jsonl, .parquet, or a folder for parts (default: print)",
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
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # a name may hold what the terminal's encoding does not
    try:
        return grade_inputs(options)
    except (ImportError, OSError, ValueError) as error:
        # Bytes of a name that are no UTF-8 are shown as `as_text` shows them.
        print(f"predict.py: {os.fsencode(_told(error)).decode('utf-8', 'backslashreplace')}", file=sys.stderr)
        return 2


def _told(error: Exception) -> str:
    # The system names each file but the one that lines are printed to.
    if isinstance(error, OSError) and error.errno and error.filename is None:
        return f"what it prints could not be written: {os.strerror(error.errno)}."
    return str(error)


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
    if not options.output:
        grader, maps = load(options, processes)
        ungraded = print_grades(grader, [files[number] for number in share], options.level, maps)
    else:
        output = part_of(options.output, process, processes) if in_parts else options.output
        with GrowingTable(output) as table:
            grader, maps = load(options, processes)
            others = [part for part in list_parts(options.output) if part != output] if in_parts else []
            table.begin(files, made_by(options, grader), share, others, maps.is_there if maps else None)
            ungraded = write_table(grader, table, maps)
    if not grader.is_calibrated:
        print("No confidence sets: the model is not calibrated (calibrate.py does it).")
    print("The grade is read from both views averaged. Research only: not for diagnosis.")
    if options.output and in_parts:
        return parts_status(options.output, processes, table.about)
    return 1 if ungraded else 0


def load(options: argparse.Namespace, processes: int) -> tuple[Grader, "HeatMaps | None"]:
    """The grader, and what writes heat maps where they are asked for."""
    grader = Grader(
        options.model, options.level, _device(processes), options.backend, options.precision, options.keep_polarity
    )
    return grader, HeatMaps(grader, options.explain) if options.explain else None


def made_by(options: argparse.Namespace, grader: Grader) -> str:
    """What the rows of a table depend on besides the X-rays."""
    return provenance.describe(
        model=provenance.model_digest(options.model), code=provenance.code_digest(), level=options.level,
        backend=options.backend, precision=grader.precision, keep_polarity=options.keep_polarity,
    )  # fmt: skip


def parts_status(folder: Path, processes: int, about: str) -> int:
    """The exit status of a process whose part is whole: the last to finish tells for all whether one was not graded.

    A launcher stops all processes when one fails, so that none may while another still grades.

    Args:
        about: what the parts of these inputs say of themselves.
    """
    parts = [part for part in list_parts(folder) if read_about(part) == about and not is_being_made(part)]
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
    """Writes X-rays under their heat maps, each under a name of its own that stays as the archive grows."""

    def __init__(self, grader: Grader, folder: Path):
        self.grader, self.folder = grader, folder
        folder.mkdir(parents=True, exist_ok=True)

    def path(self, file: str, label: str) -> Path:
        """Where the map of a file with that grade's label lies; equal names in different folders do not collide."""
        stem = as_text(Path(file).stem).encode()[:_STEM_BYTES].decode(errors="ignore")
        digest = hashlib.sha256(os.fsencode(file)).hexdigest()[:8]
        return self.folder / f"{stem}-{digest}-{label.split()[0]}.png"

    def is_there(self, row: dict) -> bool:
        """Whether the X-ray of a table's row has its map."""
        return self.path(path_of(row["file"]), row["name"]).exists()

    def write(self, xray: GradedXray) -> None:
        """Writes the picture of an X-ray in place of that of an earlier grade, unless it could not be graded."""
        if xray.error:
            return
        picture = io.BytesIO()
        self.grader.explain(xray).overlay().save(picture, "PNG")
        path = write_file(self.path(xray.file, xray.grade.name), picture.getvalue())
        for label in self.grader.labels:
            if self.path(xray.file, label) != path:
                self.path(xray.file, label).unlink(missing_ok=True)


def write_table(grader: Grader, table: GrowingTable, maps: HeatMaps | None = None) -> int:
    """Grades what the table has no row of, and puts it in its place; returns how many X-rays were not graded."""
    if table.gone:
        named = ", ".join(table.gone_names) + ("" if table.gone == len(table.gone_names) else ", ...")
        print(f"{table.gone} X-rays of the table are no longer named, and leave it: {named}")
    if other := table.count_of_other_code():
        print(
            f"{other} rows stay that another version of the code graded (column made_by): to grade all anew, remove "
            f"{as_text(table.path)}."
        )
    if table.is_current:
        ungraded = table.finish()
        print(f"{as_text(table.path)} is up to date: {len(table.share)} X-rays.")
        return ungraded
    with tqdm(total=len(table.share), initial=table.kept, desc="grading", unit="X-ray") as bar:
        for waiting in table.batches(BATCH_SIZE):
            graded = list(grader.grade([xray.file for xray in waiting]))
            for xray in graded if maps else ():
                maps.write(xray)
            table.add(waiting, map(table_row, graded))
            bar.update(len(waiting))
    ungraded, total = table.finish(), len(table.share)
    earlier = f" ({table.kept} of them before, {table.changed} again as the file had changed)" if table.kept else ""
    print(f"{as_text(table.path)}: {total - ungraded} X-rays graded{earlier}, {ungraded} not.")
    return ungraded


def print_grades(grader: Grader, files: list[str], level: float, maps: HeatMaps | None) -> int:
    """Prints a line for each X-ray and one for its mirror image; returns how many were not graded."""
    width = max(len(as_text(file)) for file in files)
    print(
        f"{'file':{width}}  {'grade':12}  {f'set {level:.0%}':8}  {'view':6}  "
        + "  ".join(f"{label:>12}" for label in grader.labels)
    )
    unread = 0
    for xray in grader.grade(files):
        if maps:
            maps.write(xray)
        if xray.error:
            unread += 1
            print(f"{as_text(xray.file):{width}}  not graded: {as_text(xray.error)}")
        else:
            _print_views(xray, width)
            for warning in xray.warnings:
                print(f"{'':{width}}  {warning}")
    return unread


def _print_views(xray: GradedXray, width: int) -> None:
    grade = xray.grade
    for view, probabilities in (("image", grade.image_probabilities), ("mirror", grade.mirror_probabilities)):
        first = (as_text(xray.file), grade.name, _range(grade.confidence_set)) if view == "image" else ("", "", "")
        print(
            f"{first[0]:{width}}  {first[1]:12}  {first[2]:8}  {view:6}  "
            + "  ".join(f"{probability:12.3f}" for probability in probabilities)
        )


def _range(grades: tuple[int, ...]) -> str:
    """Neighbouring grades in words: `2`, `2 to 3`, nothing for none."""
    return " to ".join(dict.fromkeys((str(grades[0]), str(grades[-1])))) if grades else ""


if __name__ == "__main__":
    sys.exit(main())
