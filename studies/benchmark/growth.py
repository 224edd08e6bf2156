"""`clip-koa grade` of archives: each run is a process of its own.

As they grow, with a tiny model; and with the released model, over what its network alone does.
"""

import itertools
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image
from tqdm.auto import tqdm

import clip_koa
from clip_koa.grading.backends import choose_backend
from clip_koa.grading.grader import BATCH_SIZE, FRAMINGS, Grader
from clip_koa.training.checkpoints import save_model_folder
from clip_koa.training.starting_points import load_starting_point
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import PROMPT_SETS

_DRAWN = 100  # X-rays, which are then linked again and again
_LOOK_SECONDS = 0.1  # between looks at a run
_START = 16  # X-rays: what a process takes to start is measured with a batch of them
_IN_FP32 = 256  # X-rays of the archive that is graded in fp32, which takes long
_LONGEST = 10_000  # X-rays that the released model grades
_EXAMPLES = clip_koa.RELEASED_MODEL.parents[1] / "examples"  # ten X-rays of 224x224 pixels


def measure_growth(counts: tuple[int, ...]) -> dict[str, dict]:
    """X-rays per second and peak memory of `clip-koa grade` for archives of each size, with a tiny model.

    The model is tiny so that what grows with the archive is not hidden behind it. Start-up is taken off.

    Returns:
        For each size `X-rays/s over the first` and `MiB over the first`, ratios to the smallest archive's.
    """
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        start = load_starting_point("tiny", PROMPT_SETS["standard"], [])
        save_model_folder(folder / "model", start.model, start.image_processor, start.tokenizer)
        rates, memory = zip(*_rates(folder / "model", folder, _drawn(folder), counts, "auto"), strict=True)
    return {
        f"{count} X-rays": {"X-rays/s over the first": rate / rates[0], "MiB over the first": peak / memory[0]}
        for count, rate, peak in zip(counts, rates, memory, strict=True)
    }


def measure_archive(counts: tuple[int, ...]) -> dict[str, dict]:
    """X-rays per second of `clip-koa grade` with the released model, over those of its network, and peak memory.

    The network grades pixel values in memory; the command reads files of 224x224 pixels, frames and grades them, and
    writes the table. `as_is` is without framing, for which the command runs a network of its own. Start-up is taken
    off.

    Args:
        counts: X-rays of the archives, at most `_LONGEST`; the first of them without framing too. In fp32 fewer are
            graded.
    """
    figures = {}
    with tempfile.TemporaryDirectory() as temporary:
        folder, examples = Path(temporary), sorted(_EXAMPLES.glob("*.png"))
        models = {"fp32": (clip_koa.RELEASED_MODEL, (_IN_FP32,))}
        if find_spec("openvino") and find_spec("nncf"):
            models["int8"] = (_in_int8(folder, examples), tuple(count for count in counts if count <= _LONGEST))
        for precision, (model, sizes) in models.items():
            alone = _network_alone(model, examples)
            for framing in FRAMINGS:
                some = sizes if framing == "auto" else sizes[:1]
                place = folder / f"{precision}-{framing}"
                place.mkdir()
                for count, (rate, peak) in zip(some, _rates(model, place, examples, some, framing), strict=True):
                    figures[f"{precision}, {framing}, {count} X-rays"] = {
                        "X-rays/s": rate, "over its network's": rate / alone, "MiB": peak,
                    }  # fmt: skip
    return figures


def _network_alone(model: Path, examples: list[Path]) -> float:
    """X-rays per second of a model's network on pixel values in memory."""
    network = Grader(str(model), backend=choose_backend(str(model))).model
    pictures = [Image.open(path) for path in itertools.islice(itertools.cycle(examples), BATCH_SIZE)]
    pixel_values = network.beside.preprocess([picture.convert("L") for picture in pictures])
    network.grade_pixels(pixel_values)
    batches, started = 0, time.perf_counter()
    while batches * BATCH_SIZE < _IN_FP32 // 2:
        network.grade_pixels(pixel_values)
        batches += 1
    return batches * BATCH_SIZE / (time.perf_counter() - started)


def _in_int8(folder: Path, examples: list[Path]) -> Path:
    """The released model in 8 bits, calibrated on the examples: on drawn X-rays it would not know these as knees."""
    from clip_koa.exporting.openvino_export import export_int8

    for split in ("train", "val"):
        for path in examples:
            place = folder / "corpus" / split / path.stem[2] / path.name  # kl0_left.png
            place.parent.mkdir(parents=True, exist_ok=True)
            place.symlink_to(path)
    export_int8(clip_koa.RELEASED_MODEL, folder / "int8", folder / "corpus", len(examples))
    return folder / "int8"


def _drawn(folder: Path) -> list[Path]:
    """Drawn X-rays in a folder."""
    drawn = folder / "drawn"
    if not drawn.exists():
        drawn.mkdir()
        for number in range(_DRAWN):
            draw_knee(number % 5, "LR"[number % 2], number).convert("L").save(drawn / f"{number}.png")
    return sorted(drawn.iterdir())


def link_xrays(folder: Path, count: int, xrays: list[Path] | None = None) -> Path:
    """A folder of that many X-rays, links to a few; default: drawn ones."""
    folder.mkdir()
    for number, source in zip(range(count), itertools.cycle(xrays or _drawn(folder.parent)), strict=False):
        (folder / f"{number:07d}.png").symlink_to(source)
    return folder


def _rates(
    model: Path, folder: Path, xrays: list[Path], counts: tuple[int, ...], framing: str
) -> Iterable[tuple[float, int]]:
    """X-rays per second without start-up, and MiB at the peak, of runs over archives of each size."""
    start = link_xrays(folder / "start", _START, xrays)
    _grade(model, start, framing)  # which compiles the model, once
    starting, _ = _grade(model, start, framing)
    for count in tqdm(counts, desc="growth", unit="archive"):
        seconds, peak = _grade(model, link_xrays(folder / str(count), count, xrays), framing)
        yield (count - _START) / (seconds - starting), peak


def _grade(model: Path, archive: Path, framing: str) -> tuple[float, int]:
    """Seconds that a run takes, and MiB at its peak."""
    with tempfile.TemporaryDirectory(dir=archive.parent) as output:
        options = ["--model", model, "--framing", framing, "--output", output]
        command = [sys.executable, "-m", "clip_koa", "grade", *options, archive]
        started = time.perf_counter()
        process = subprocess.Popen(list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        peak, status = 0, Path("/proc", str(process.pid), "status")
        while process.poll() is None:
            # From the program's start on, unlike ru_maxrss, which begins with what this process had.
            if found := re.search(r"VmHWM:\s+(\d+) kB", status.read_text(encoding="ascii")):
                peak = int(found[1]) // 1024
            time.sleep(_LOOK_SECONDS)
        if process.returncode:
            raise subprocess.CalledProcessError(process.returncode, process.args)
        return time.perf_counter() - started, peak
