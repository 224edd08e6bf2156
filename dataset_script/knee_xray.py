"""The knee X-ray corpus as a `datasets` builder: graded X-rays in any layout of `layouts`, or generated ones.

The real corpus: P. Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data 2018, 10.17632/56rmx5bjcr.1.
"""

import ctypes
import io
import logging
import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow
from PIL import Image, ImageChops

from dataset_script import dicom
from dataset_script.layouts import find_files, manifest_digest, read_contents, release_differences, resolve_data_dir
from dataset_script.listing import Xray, describe_disputes, describe_left_out
from dataset_script.names import CorpusError
from dataset_script.radiograph import FORMATS, MAX_BYTES, Radiograph, RadiographError, read_radiograph
from dataset_script.sniffing import HEAD_BYTES, read_head
from dataset_script.synthetic import draw_corpus

GRADE_LABELS = ("KL0 none", "KL1 doubtful", "KL2 mild", "KL3 moderate", "KL4 severe")
FEATURES = datasets.Features(
    {
        "image": datasets.Image(),
        "label": datasets.ClassLabel(names=list(GRADE_LABELS)),
        "person_id": datasets.Value("string"),
        "laterality": datasets.Value("string"),
        "file": datasets.Value("string"),
    }
)
# What is in memory at once: X-rays and bytes that wait to be decoded, and rows and bytes that wait to be written.
_READ_AHEAD, _BYTES_AHEAD = 16, 96 * 1024**2
_ROWS_OF_BATCH, _BYTES_OF_BATCH = 100, 32 * 1024**2

logger = logging.getLogger(__name__)


@dataclass
class KneeXrayConfig(datasets.BuilderConfig):
    """Settings of the builder. `folder` reads `data_dir`, whatever layout it has, by `grades`; the rest: `synthetic`.

    Args:
        grades: which grades the names of folders and labels mean, as `Early=2,Late=4` (see `names.GradeNames`).
        people: number of generated people in train; validation and test have an eighth of it each, at least 20.
        image_size: side of the generated X-rays, in pixels.
        overlap: how far neighbouring grades overlap, in grades (standard deviation); 0: not at all.
        seed: of the generated X-rays.
    """

    grades: str | None = None
    people: int = 400
    image_size: int = 224
    overlap: float = 0.15
    seed: int = 0


class KneeXray(datasets.ArrowBasedBuilder):
    """Graded knee X-rays. Instantiate it: `KneeXray("folder", data_dir=...)` or `KneeXray("synthetic", people=50)`.

    Features: `image`, `label` (KL grade), `person_id`, `laterality` ("L", "R" or ""), `file` (below the data folder).
    `image` decodes to the picture that `read_radiograph` makes, which is what training sees: an X-ray's file as it is,
    by its path or, out of archives and Parquet, by its bytes, where it holds just that, 8-bit, gray, upright and bone
    bright; else the picture as PNG. Splits: train, validation, test and auto_test, each only when present. What lies
    in the data and was not taken is logged, as are counts that differ from the official release's.

    Raises:
        CorpusError: no such data, an unknown layout (see `layouts.list_files`), an X-ray that can't be read, shows
            both knees or contradicts its side, or a person in two splits.
    """

    # Part of the cache's name: raise it when the same files or settings come to give other examples.
    VERSION = datasets.Version("1.3.0")
    BUILDER_CONFIG_CLASS = KneeXrayConfig
    BUILDER_CONFIGS = [
        KneeXrayConfig(name="folder", version=VERSION, description="X-rays of a folder, archive, table or Parquet"),
        KneeXrayConfig(name="synthetic", version=VERSION, description="generated X-rays"),
    ]

    def __init__(self, config_name: str, data_dir: str | os.PathLike | None = None, **kwargs):
        self._files = None
        if config_name == "folder":
            data_dir = str(resolve_data_dir(data_dir))
            self._files = find_files(Path(data_dir), kwargs.get("grades"))
            kwargs["hash"] = manifest_digest(self._files, Path(data_dir))
            remarks = describe_left_out(self._files.left_out) + describe_disputes(self._files)
            for remark in remarks + release_differences(self._files):
                logger.warning("%s: %s.", data_dir, remark)
        super().__init__(config_name=config_name, data_dir=data_dir, **kwargs)

    @property
    def manifest_digest(self) -> str:
        """Digest of what the corpus consists of: names, sizes and times of the files, or the generator's settings."""
        return self.hash if self._files is not None else self.config_id

    def _prepare_split_single(self, *args, **kwargs):
        """As in `datasets`, but an X-ray that can't be read is reported itself, not what `datasets` wraps it in.

        Here, since of an error in another process no cause comes through.
        """
        try:
            yield from super()._prepare_split_single(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, (RadiographError, CorpusError)):
                raise CorpusError(str(error.__cause__)) from error.__cause__
            if isinstance(error.__cause__, OSError):
                raise CorpusError(f"{self._cache_dir_root} cannot hold the corpus: {error.__cause__}") from error
            raise

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Knee X-rays with Kellgren-Lawrence grades.",
            features=FEATURES,
            homepage="https://doi.org/10.17632/56rmx5bjcr.1",
            license="CC BY 4.0",
        )

    def _split_generators(self, dl_manager):
        if self._files is None:
            sizes = {"train": self.config.people}
            sizes["validation"] = sizes["test"] = max(20, self.config.people // 8)
            return [
                datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "people": people})
                for split, people in sizes.items()
            ]
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"split": split, "files": files})
            for split, files in self._files.items()
        ]

    def _generate_tables(self, split: str, files: list | None = None, people: int = 0):
        # Every X-ray is decoded once here, so that training never meets one that cannot be read.
        rows = self._draw(split, people) if files is None else read_ahead(_example, files)
        for number, batch in enumerate(in_batches(rows)):
            encoded = [FEATURES.encode_example(row) for row in batch]
            yield number, pyarrow.Table.from_pylist(encoded, schema=FEATURES.arrow_schema)

    def _draw(self, split: str, people: int) -> Iterator[dict]:
        config = self.config
        for drawing in draw_corpus(split, people, config.seed, config.image_size, config.overlap):
            yield {
                "image": {"bytes": encode_png(drawing.image), "path": None},
                "label": drawing.grade,
                "person_id": drawing.person_id,
                "laterality": drawing.laterality,
                "file": f"{split}/{drawing.grade}/{drawing.person_id}{drawing.laterality}.png",
            }


def load_knee_xray(
    data_dir: str | os.PathLike | None = None, *, synthetic: bool = False, cache_dir: str | None = None, **settings
) -> datasets.DatasetDict:
    """All splits of the corpus, built once and cached.

    Args:
        data_dir: folder of X-rays; default: the environment's KNEE_XRAY_DIR.
        synthetic: generated X-rays instead; `settings` are then those of `KneeXrayConfig`.
        cache_dir: of `datasets`; default: its own.

    Raises:
        CorpusError: see `KneeXray`.
    """
    builder = KneeXray("synthetic" if synthetic else "folder", data_dir=data_dir, cache_dir=cache_dir, **settings)
    builder.download_and_prepare()
    return builder.as_dataset()


def read_ahead(function: Callable, xrays: Iterable[Xray]) -> Iterator:
    """`function(xray, content)` of every X-ray, as `map_ahead`, with what `read_contents` gives.

    However large the X-rays are, together they take little more memory than one of the largest does.
    """
    return map_ahead(lambda read: function(*read), read_contents(xrays), lambda read: _weigh(read[1]))


def map_ahead(function: Callable, items: Iterable, weigh: Callable = lambda item: 0) -> Iterator:
    """`map` in threads, in order, a bounded number of items and bytes ahead: memory stays flat over any number.

    Args:
        function: of an item.
        items: what it is applied to.
        weigh: how many bytes of memory an item takes.
    """

    def run_heavy(item):
        try:
            return function(item)
        finally:
            _give_back_memory()

    # Heavy items have a thread to themselves, since the C library keeps for each thread what it once took.
    with ThreadPoolExecutor() as light, ThreadPoolExecutor(1) as heavy:
        running, ahead = deque(), 0
        for item in items:
            weight = weigh(item)
            is_heavy = weight > _BYTES_AHEAD // 3
            future = heavy.submit(run_heavy, item) if is_heavy else light.submit(function, item)
            running.append((future, weight))
            del item  # or it would stay while the next is read
            ahead += weight
            while len(running) >= _READ_AHEAD or ahead > _BYTES_AHEAD:
                done, weight = running.popleft()
                ahead -= weight
                yield done.result()
        while running:
            yield running.popleft()[0].result()


def _give_back_memory() -> None:
    """Has glibc give freed memory back to the system, which it keeps of images in pieces; elsewhere does nothing."""
    if sys.platform.startswith("linux"):
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
        if trim is not None:
            trim(0)


def in_batches(rows: Iterable[dict]) -> Iterator[list[dict]]:
    """Rows of the corpus, a bounded number of them and of bytes of images at a time.

    Never one alone but the last, since `datasets` keeps tables of one row until it has many.
    """
    batch, size = [], 0
    for row in rows:
        image = row["image"]
        batch.append(row)
        size += len(image["bytes"] or b"") if isinstance(image, dict) else 0
        if len(batch) >= _ROWS_OF_BATCH or (size >= _BYTES_OF_BATCH and len(batch) > 1):
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _weigh(content: Path | bytes) -> int:
    """Bytes that an X-ray takes, or four for each pixel that its header says it has, where that is more."""
    size = pixels = 0
    try:
        is_path = not isinstance(content, bytes)
        head, size = (
            (read_head(content), os.path.getsize(content)) if is_path else (content[:HEAD_BYTES], len(content))
        )
        if size > MAX_BYTES:
            pass  # it will be refused
        elif dicom.is_dicom(head):
            pixels = dicom.count_pixels(content)
        elif head:
            with Image.open(content if is_path else io.BytesIO(content), formats=FORMATS) as opened:
                pixels = opened.width * opened.height
    except Exception:  # the reader will say what is wrong with it
        pass
    return max(size, 4 * pixels)


def read_xray(xray: Xray, content: Path | bytes) -> Radiograph:
    """Reads an X-ray of a corpus, from what `read_contents` gives.

    Raises:
        RadiographError: it can't be read.
        CorpusError: it shows both knees, or says another side than the layout.
    """
    name = str(xray.path) if xray.member is None else f"{xray.path}/{xray.member}"
    radiograph = read_radiograph(content, name=name)
    if radiograph.laterality == "B":
        raise CorpusError(f"{name} shows both knees: cut it to the one that is graded.")
    if xray.laterality and radiograph.laterality and xray.laterality != radiograph.laterality:
        raise CorpusError(
            f"{name} is listed as {xray.laterality} but is the side {radiograph.laterality}: one of the two is wrong."
        )
    return radiograph


def _example(xray: Xray, content: Path | bytes) -> dict:
    radiograph = read_xray(xray, content)
    return {
        "image": _stored_image(content, radiograph),
        "label": xray.grade,
        "person_id": xray.person_id or radiograph.person_id or "",
        "laterality": xray.laterality or radiograph.laterality or "",
        "file": xray.file,
    }


def _stored_image(content, radiograph: Radiograph) -> dict:
    """The cell that decodes to the radiograph's picture: its file where that does, else the picture as PNG."""
    # Bytes go without a path: `datasets` would take a file of that name in the working folder instead. And `Path` is
    # no name to ask for here, since `datasets` replaces it in the modules of builders.
    in_memory = isinstance(content, bytes)
    file = {"bytes": content if in_memory else None, "path": None if in_memory else str(content)}
    if not radiograph.is_dicom and not radiograph.inverted:
        decoded = datasets.Image().decode_example(file)
        bands = decoded.split() if decoded.mode in ("L", "RGB") else ()
        if bands and all(ImageChops.difference(band, radiograph.image).getbbox() is None for band in bands):
            return file
    return {"bytes": encode_png(radiograph.image), "path": None}


def encode_png(image: Image.Image) -> bytes:
    """An X-ray (PIL, mode L) as a PNG that holds its pixels and nothing else."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
