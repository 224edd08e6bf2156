"""The knee X-ray corpus as a `datasets` builder: graded X-rays in any layout of `layouts`, or generated ones.

The real corpus: P. Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data 2018, 10.17632/56rmx5bjcr.1.
"""

import io
import logging
import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets
from PIL import Image, ImageChops

from dataset_script.layouts import (
    CorpusError,
    Xray,
    find_files,
    manifest_digest,
    read_contents,
    release_differences,
    resolve_data_dir,
)
from dataset_script.radiograph import Radiograph, RadiographError, read_radiograph
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
_READ_AHEAD = 16

logger = logging.getLogger(__name__)


@dataclass
class KneeXrayConfig(datasets.BuilderConfig):
    """Settings of the builder. `folder` reads `data_dir`, whatever layout it has; the rest is for `synthetic`.

    Args:
        people: number of generated people in train; validation and test have an eighth of it each, at least 20.
        image_size: side of the generated X-rays, in pixels.
        overlap: how far neighbouring grades overlap, in grades (standard deviation); 0: not at all.
        seed: of the generated X-rays.
    """

    people: int = 400
    image_size: int = 224
    overlap: float = 0.15
    seed: int = 0


class KneeXray(datasets.GeneratorBasedBuilder):
    """Graded knee X-rays. Instantiate it: `KneeXray("folder", data_dir=...)` or `KneeXray("synthetic", people=50)`.

    Features: `image`, `label` (KL grade), `person_id`, `laterality` ("L", "R" or ""), `file` (below the data folder).
    `image` decodes to the picture that `read_radiograph` makes, which is what training sees: an X-ray's file as it is,
    by its path or, out of archives and Parquet, by its bytes, where it holds just that, 8-bit, gray, upright and bone
    bright; else the picture as PNG. Splits: train, validation, test and auto_test, each only when
    present. Counts that differ from the official release's are logged.

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
            self._files = find_files(Path(data_dir))
            kwargs["hash"] = manifest_digest(self._files, Path(data_dir))
            for difference in release_differences(self._files):
                logger.warning("%s: %s.", data_dir, difference)
        super().__init__(config_name=config_name, data_dir=data_dir, **kwargs)

    @property
    def manifest_digest(self) -> str:
        """Digest of what the corpus consists of: names, sizes and times of the files, or the generator's settings."""
        return self.hash if self._files is not None else self.config_id

    def download_and_prepare(self, *args, **kwargs):
        """As in `datasets`, but an X-ray that can't be read is reported itself, not what `datasets` wraps it in."""
        try:
            super().download_and_prepare(*args, **kwargs)
        except datasets.exceptions.DatasetGenerationError as error:
            if isinstance(error.__cause__, (RadiographError, CorpusError)):
                raise CorpusError(str(error.__cause__)) from error.__cause__
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

    def _generate_examples(self, split: str, files: list | None = None, people: int = 0):
        if files is None:
            config = self.config
            drawings = draw_corpus(split, people, config.seed, config.image_size, config.overlap)
            for key, drawing in enumerate(drawings):
                yield (
                    key,
                    {
                        "image": drawing.image,
                        "label": drawing.grade,
                        "person_id": drawing.person_id,
                        "laterality": drawing.laterality,
                        "file": f"{split}/{drawing.grade}/{drawing.person_id}{drawing.laterality}.png",
                    },
                )
            return
        # Every X-ray is decoded once here, so that training never meets one that cannot be read.
        yield from enumerate(map_ahead(lambda read: _example(*read), read_contents(files)))


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


def map_ahead(function: Callable, items: Iterable) -> Iterator:
    """`map` in threads, in order, a bounded number of items ahead, so that memory stays flat over any number."""
    with ThreadPoolExecutor() as pool:
        running = deque()
        for item in items:
            running.append(pool.submit(function, item))
            if len(running) >= _READ_AHEAD:
                yield running.popleft().result()
        while running:
            yield running.popleft().result()


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
