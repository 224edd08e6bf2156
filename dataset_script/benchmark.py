"""Measures the corpus: reading against bare Pillow, building the Arrow cache, streaming many X-rays in flat memory.

python -m dataset_script.benchmark                             # on generated X-rays
python -m dataset_script.benchmark --data DATA --stream 100000
"""

import argparse
import io
import os
import sys
import tempfile
import threading
import time
from pathlib import Path

import datasets
from PIL import Image
from tqdm import tqdm

from dataset_script.exit_status import main_of
from dataset_script.knee_xray import KneeXray
from dataset_script.layouts import CorpusError, find_files, read_contents, resolve_data_dir
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee

REPEATS = 9


class Memory:
    """Samples the resident memory of this process, in MB, 20 times a second, while the `with` block runs."""

    def __enter__(self):
        self.samples, self._stop = [resident_memory()], threading.Event()
        self._thread = threading.Thread(target=self._sample, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._stop.set()
        self._thread.join()
        self.samples.append(resident_memory())

    def _sample(self):
        while not self._stop.wait(0.05):
            self.samples.append(resident_memory())

    @property
    def growth(self) -> float:
        """By how much the peak of the second half is above that of the first."""
        half = max(1, len(self.samples) // 2)
        return max(self.samples[half:]) - max(self.samples[:half])


def resident_memory() -> float:
    """Of this process, in MB; Linux."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1024**2


def measure_reading(folder: Path, data: Path | None, count: int) -> str:
    """Time of `read_radiograph` on 8-bit gray PNG files of 224 pixels, over that of opening and loading in Pillow."""
    contents = []
    if data:
        xrays = [xray for listed in find_files(data).values() for xray in listed]
        for xray, content in read_contents(xrays[:: max(1, len(xrays) // count)][:count]):
            contents.append(read_radiograph(content, name=xray.file).image)
    else:
        contents = [draw_knee(number % 5, "LR"[number % 2], number) for number in range(count)]
    files = [folder / f"{number}.png" for number in range(len(contents))]
    for file, image in zip(files, contents, strict=True):
        image.save(file)

    def decode():
        for file in files:
            with Image.open(file) as image:
                image.load()

    def read():
        for file in files:
            read_radiograph(file)

    times = {decode: [], read: []}
    for _ in range(REPEATS):  # in turn, so that whatever else the machine does meets both
        for function, measured in times.items():
            start = time.perf_counter()
            function()
            measured.append((time.perf_counter() - start) / len(files) * 1000)
    bare, ours = min(times[decode]), min(times[read])
    return (
        f"reading {len(files)} PNG files: Pillow {bare:.3f} ms, read_radiograph {ours:.3f} ms, {ours / bare:.2f} times"
    )


def measure_building(folder: Path, data: Path) -> str:
    """Time and memory of building the Arrow cache, with nothing cached."""
    start = time.perf_counter()
    with Memory() as memory:
        builder = KneeXray("folder", data_dir=data, cache_dir=str(folder / "cache"))
        builder.download_and_prepare()
    seconds = time.perf_counter() - start
    count = sum(len(rows) for rows in builder.as_dataset().values())
    return (
        f"building the Arrow cache of {count} X-rays: {seconds:.1f} s, peak {max(memory.samples):.0f} MB, "
        f"second half {memory.growth:+.1f} MB over the first"
    )


def measure_streaming(folder: Path, count: int, distinct: int = 200) -> str:
    """Time and memory of streaming `count` X-rays from a folder: links to some hundred generated ones."""
    encoded = []
    for number in range(min(distinct, count)):
        buffer = io.BytesIO()
        draw_knee(number % 5, "L", number, image_size=64).save(buffer, "PNG")
        encoded.append(folder / f"{number}.png")
        encoded[-1].write_bytes(buffer.getvalue())
    for grade in range(5):
        (folder / "corpus" / "train" / str(grade)).mkdir(parents=True)
    for number in tqdm(range(count), "linking", unit=" files"):
        source = encoded[number % len(encoded)]
        os.link(source, folder / "corpus" / "train" / str(number % 5) / f"{1_000_000 + number}L.png")
    rows = KneeXray("folder", data_dir=folder / "corpus", cache_dir=str(folder / "cache")).as_streaming_dataset()[
        "train"
    ]
    start, seen = time.perf_counter(), 0
    with Memory() as memory:
        for row in tqdm(rows, "streaming", count, unit=" X-rays"):
            seen += row["image"].size == (64, 64)
    seconds = time.perf_counter() - start
    if seen != count:
        raise CorpusError(f"{count} X-rays were written, but {seen} came out of the stream.")
    return (
        f"streaming {seen} X-rays: {seconds:.0f} s, peak {max(memory.samples):.0f} MB, "
        f"second half {memory.growth:+.1f} MB over the first"
    )


def run(arguments: list[str] | None, prog: str) -> int:
    """Prints a line for each measurement; returns the exit status."""
    parser = argparse.ArgumentParser(prog=prog, description="Measure the speed and the memory of the corpus.")
    parser.add_argument("--data", metavar="DATA", help="a corpus to build the Arrow cache of, and to read X-rays of")
    parser.add_argument("--count", type=int, default=300, help="PNG files that reading is measured on (default: 300)")
    parser.add_argument("--stream", type=int, default=2000, help="X-rays that are streamed, 0: none (default: 2000)")
    options = parser.parse_args(arguments)
    datasets.disable_progress_bars()
    data = resolve_data_dir(options.data) if options.data else None
    for name in ("reading", "building", "streaming"):
        with tempfile.TemporaryDirectory(prefix="knee-xray-benchmark-") as folder:
            if name == "reading":
                print(measure_reading(Path(folder), data, options.count), flush=True)
            elif name == "building" and data:
                print(measure_building(Path(folder), data), flush=True)
            elif name == "streaming" and options.stream:
                print(measure_streaming(Path(folder), options.stream), flush=True)
    return 0


main = main_of("dataset_script.benchmark", run)


if __name__ == "__main__":
    sys.exit(main())
