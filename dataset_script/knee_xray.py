"""The knee X-ray corpus as a `datasets` builder: a folder of graded X-rays, or generated ones.

The real corpus: P. Chen, Knee Osteoarthritis Severity Grading Dataset, Mendeley Data 2018, 10.17632/56rmx5bjcr.1.
"""

import hashlib
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import datasets

from dataset_script.radiograph import RadiographError, parse_name, read_radiograph
from dataset_script.synthetic import GRADES, draw_corpus

GRADE_LABELS = ("KL0 none", "KL1 doubtful", "KL2 mild", "KL3 moderate", "KL4 severe")
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
# Folder names of each split. auto_test, automatic crops of the test radiographs, stays apart from all of them.
SPLIT_FOLDERS = {
    "train": ("train",),
    "validation": ("val", "validation", "valid"),
    "test": ("test",),
    "auto_test": ("auto_test",),
}
# Where the release and its copies keep the split folders.
_INNER_FOLDERS = (".", "kneeKL224", "ClsKLData/kneeKL224", "KneeXrayData/ClsKLData/kneeKL224")

INSTRUCTIONS = (
    "Pass the folder that holds train/, val/ and test/ as data_dir, or set KNEE_XRAY_DIR to it. The X-rays are "
    "P. Chen's Knee Osteoarthritis Severity Grading Dataset (doi 10.17632/56rmx5bjcr.1, CC BY 4.0): "
    "unpack KneeXrayData.zip and pass its kneeKL224 folder."
)


class CorpusError(ValueError):
    """A corpus that cannot be used; the message names the file or folder and says what would be right."""


def resolve_data_dir(data_dir: str | os.PathLike | None) -> Path:
    """The folder of X-rays as an absolute path: `data_dir`, else the environment's KNEE_XRAY_DIR.

    Raises:
        CorpusError: neither is given, or no such folder; says where to get the data set.
    """
    named_by = "" if data_dir else " (from KNEE_XRAY_DIR)"
    data_dir = data_dir or os.environ.get("KNEE_XRAY_DIR")
    if not data_dir:
        raise CorpusError(f"No knee X-rays were named. {INSTRUCTIONS}")
    if not Path(data_dir).is_dir():
        raise CorpusError(f"{data_dir}{named_by}: there is no such folder. {INSTRUCTIONS}")
    # Absolute: the cache keeps these paths, and is read from other working folders too.
    return Path(data_dir).absolute()


@dataclass
class KneeXrayConfig(datasets.BuilderConfig):
    """Settings of the builder. `folder` reads `data_dir`; the rest is for `synthetic`.

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
    Splits: train, validation, test and auto_test, each only when present.

    Raises:
        CorpusError: no such folder, no split, an empty one, a grade folder outside 0..4, an X-ray that can't be read,
            or a person in two splits.
    """

    # Part of the cache's name: raise it when the same files or settings come to give other examples.
    VERSION = datasets.Version("1.1.0")
    BUILDER_CONFIG_CLASS = KneeXrayConfig
    BUILDER_CONFIGS = [
        KneeXrayConfig(name="folder", version=VERSION, description="X-rays in {split}/{grade}/{file}"),
        KneeXrayConfig(name="synthetic", version=VERSION, description="generated X-rays"),
    ]

    def __init__(self, config_name: str, data_dir: str | os.PathLike | None = None, **kwargs):
        self._files = None
        if config_name == "folder":
            data_dir = str(resolve_data_dir(data_dir))
            self._files = find_files(Path(data_dir))
            kwargs["hash"] = manifest_digest(self._files, Path(data_dir))
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
            if isinstance(error.__cause__, RadiographError):
                raise CorpusError(str(error.__cause__)) from error.__cause__
            raise

    def _info(self) -> datasets.DatasetInfo:
        return datasets.DatasetInfo(
            description="Knee X-rays with Kellgren-Lawrence grades.",
            features=datasets.Features(
                {
                    "image": datasets.Image(),
                    "label": datasets.ClassLabel(names=list(GRADE_LABELS)),
                    "person_id": datasets.Value("string"),
                    "laterality": datasets.Value("string"),
                    "file": datasets.Value("string"),
                }
            ),
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
        with ThreadPoolExecutor() as pool:
            checked = pool.map(_check, (path for path, _, _ in files))
            for key, ((path, grade, relative), (person_id, laterality)) in enumerate(zip(files, checked, strict=True)):
                yield (
                    key,
                    {
                        "image": str(path),
                        "label": grade,
                        "person_id": person_id or "",
                        "laterality": laterality or "",
                        "file": relative,
                    },
                )


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


def find_files(data_dir: Path) -> dict[str, list[tuple[Path, int, str]]]:
    """The X-rays of each split: (path, grade, path below `data_dir`), sorted.

    Raises:
        CorpusError: no split, an empty one, two folders for one, an X-ray in no grade folder, a grade folder outside
            0..4, or a person in two splits.
    """
    splits = {}
    for inner in _INNER_FOLDERS:
        for split, names in SPLIT_FOLDERS.items():
            folders = [data_dir / inner / name for name in names if (data_dir / inner / name).is_dir()]
            if len(folders) > 1:
                raise CorpusError(f"{folders[0]} and {folders[1]} both name the {split} split: keep one of them.")
            if folders:
                splits[split] = _find_split(folders[0], data_dir)
        if splits:
            break
    if not splits:
        raise CorpusError(f"{data_dir} holds no train, val or test folder. {INSTRUCTIONS}")
    _refuse_shared_people(splits)
    return splits


def _find_split(folder: Path, data_dir: Path) -> list[tuple[Path, int, str]]:
    files = []
    for grade_folder in _visible(folder):
        if not grade_folder.is_dir():
            if grade_folder.suffix.lower() in SUFFIXES:
                raise CorpusError(f"{grade_folder} has no grade: put it into {folder.name}/0 to {folder.name}/4.")
            continue
        if grade_folder.name not in map(str, GRADES):
            raise CorpusError(f"{grade_folder} is no grade: the folders in {folder.name}/ must be named 0 to 4.")
        for path in _visible(grade_folder):
            if path.suffix.lower() in SUFFIXES:
                _refuse_unspeakable_name(path)
                files.append((path, int(grade_folder.name), path.relative_to(data_dir).as_posix()))
    if not files:
        raise CorpusError(f"{folder} is empty: it must hold {{grade}}/{{file}} with {', '.join(SUFFIXES)} files.")
    return files


def _visible(folder: Path) -> list[Path]:
    """What a folder holds, sorted, without what macOS leaves there (.DS_Store, ._name, __MACOSX)."""
    return sorted(path for path in folder.iterdir() if not path.name.startswith((".", "__MACOSX")))


def _refuse_unspeakable_name(path: Path) -> None:
    try:
        str(path).encode()
    except UnicodeEncodeError:  # bytes of another encoding, which Arrow cannot keep
        raise CorpusError(f"{os.fsencode(path)!r}: the name is not UTF-8; rename the file.") from None


def _refuse_shared_people(splits: dict) -> None:
    seen = {}  # person -> (split, file)
    for split, files in splits.items():
        if split == "auto_test":  # crops of the test people
            continue
        for path, _, relative in files:
            person = parse_name(path.name)[0]
            first_split, first_file = seen.setdefault(person, (split, relative)) if person else (split, relative)
            if first_split != split:
                raise CorpusError(
                    f"Person {person} is in two splits ({first_file} and {relative}): "
                    "both knees of a person, and every visit, belong in one split."
                )


def manifest_digest(files: dict, data_dir: Path) -> str:
    """Digest of the place, names, sizes and times of all files, which the cache of `datasets` would not look at."""
    digest = hashlib.sha256(os.fsencode(data_dir))
    for split, rows in files.items():
        for path, grade, relative in rows:
            status = path.stat()
            digest.update(f"\0{split}\0{grade}\0{status.st_size}\0{status.st_mtime_ns}\0".encode())
            digest.update(os.fsencode(relative))
    return digest.hexdigest()[:16]


def _check(path: Path) -> tuple[str | None, str | None]:
    """Reads a radiograph for the sake of its error; person id and laterality are all that is kept."""
    radiograph = read_radiograph(path)
    return radiograph.person_id, radiograph.laterality
