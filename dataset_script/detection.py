"""DetKneeData: films of both knees with the boxes of their joints, as the data set's archive holds them.

They lie in `DetKneeData/H5/{train,val,test}H5/*.h5`, one film a file, in HDF5 as deepdish 0.3 writes it: an array is a
data set, a number or text is an attribute of its group, and a list or tuple of N is a group with the title `list:N`
whose entries are i0, i1 and so on. Of a file `images`, `gt_boxes` and `origin_im` are read. Needs the extra
`detection` (h5py).
"""

import contextlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image

from dataset_script.archives import open_archive, read_member
from dataset_script.names import CorpusError
from dataset_script.pixels import MAX_PIXELS, MIN_SIDE, window

FOLDERS = {"train": "trainh5", "validation": "valh5", "test": "testh5"}
MISSING_EXTRA = "DetKneeData is HDF5, which needs the extra `detection`: pip install 'clip-koa[detection]'."
_MOST_ENTRIES = 256  # of a list, as deepdish writes it
_ARCHIVES = (".zip",)


@dataclass(frozen=True)
class DetectionFilm:
    """A film (PIL image, mode L), and the boxes of its knees in its pixels, right knee first.

    A box is (left, top, right, bottom); `person` is as the file says it, "" where it does not; `name` is the file.
    """

    image: Image.Image
    boxes: tuple[tuple[float, float, float, float], tuple[float, float, float, float]]
    person: str
    name: str


def read_detection_films(data: str | Path, split: str) -> Iterator[DetectionFilm]:
    """The films of a split, in the order of their files' names.

    Args:
        data: the data set's archive (.zip), or a folder at or above `H5`, or one of its three folders.
        split: train, validation or test.

    Raises:
        CorpusError: no h5py, no such data or split, or a file that is damaged or holds something else.
    """
    data = Path(data)
    _h5py()
    if split not in FOLDERS:
        raise CorpusError(f"The split {split}: DetKneeData has {', '.join(FOLDERS)}.")
    if data.is_dir():
        files = sorted(path for path in data.rglob("*.h5") if path.parent.name.lower() == FOLDERS[split])
        _need_files(files, data, split)
        for path in files:
            try:
                content = path.read_bytes()
            except OSError as error:
                raise CorpusError(f"{path} cannot be read: {error.strerror}.") from error
            yield from read_file(content, str(path))
        return
    if data.suffix.lower() not in _ARCHIVES or not data.is_file():
        raise CorpusError(f"{data}: name the .zip archive or the unpacked folder that holds DetKneeData.")
    with open_archive(data) as opened:
        names = sorted(name for name in opened.namelist() if _is_of(name, split))
        _need_files(names, data, split)
        for name in names:
            yield from read_file(read_member(opened, name), f"{data}/{name}")


def _is_of(name: str, split: str) -> bool:
    path = PurePosixPath(name)
    return path.suffix == ".h5" and path.parent.name.lower() == FOLDERS[split]


def _need_files(files: list, data: Path, split: str) -> None:
    if not files:
        folder = FOLDERS[split].replace("h5", "H5")
        raise CorpusError(f"{data} holds no {folder}/*.h5: name the archive or folder that holds DetKneeData.")


def _h5py():
    try:
        import h5py
    except ModuleNotFoundError:
        raise CorpusError(MISSING_EXTRA) from None
    with contextlib.suppress(ImportError):
        import hdf5plugin  # noqa: F401  # reads blosc, which deepdish wrote before 2016
    return h5py


def read_file(content: bytes, name: str) -> list[DetectionFilm]:
    """The films of one file's bytes, one as a rule; raises `CorpusError` that names it."""
    h5py = _h5py()
    try:
        with h5py.File(io.BytesIO(content), "r") as file:
            images, boxes = _value(file, "images"), _value(file, "gt_boxes")
            people = np.ravel(_value(file, "origin_im")) if _has(file, "origin_im") else np.array([""])
        boxes = np.asarray(boxes, np.float64).reshape(-1, 2, 4)
        images = _gray(np.asarray(images), len(boxes))
    except CorpusError as error:
        raise CorpusError(f"{name} {error}") from error
    except Exception as error:  # HDF5 raises nearly every kind there is on damaged files
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise CorpusError(f"{name} is damaged, or no film of DetKneeData: {reason}") from error
    people = [_text(person) for person in people] if len(people) == len(boxes) else [""] * len(boxes)
    films = []
    for image, two, person in zip(images, boxes, people, strict=True):
        _check_boxes(two, image.size, name)
        films.append(DetectionFilm(image, tuple(map(tuple, two.tolist())), person, name))
    return films


def _has(group, name: str) -> bool:
    return name in group.attrs or name in group


def _value(group, name: str):
    """What deepdish saved under a name: an array, a number, a text, or a list of these."""
    h5py = _h5py()
    if name in group.attrs:
        return group.attrs[name]
    if not isinstance(group.get(name, getlink=True), (h5py.HardLink, h5py.SoftLink)):
        raise CorpusError(f"holds no {name}: it is no film of DetKneeData.")
    node = group[name]
    if isinstance(node, h5py.Dataset):
        if node.size > 3 * MAX_PIXELS or node.dtype.kind not in "biuf":
            raise CorpusError(f"has {name} of {node.size:,} values of the type {node.dtype}: it is no film.")
        settings = node.id.get_create_plist()
        filters = [settings.get_filter(place)[0] for place in range(settings.get_nfilters())]
        if not all(map(h5py.h5z.filter_avail, filters)):
            raise CorpusError(f"is compressed otherwise than by zlib (filters {filters}): pip install hdf5plugin.")
        return node[()]
    kind, _, count = _text(node.attrs.get("TITLE", b"")).partition(":")
    if kind not in ("list", "tuple") or not count.isdecimal() or int(count) > _MOST_ENTRIES:
        raise CorpusError(f"has a {name} that is neither an array nor a list.")
    return [_value(node, f"i{place}") for place in range(int(count))]


def _text(value) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def _gray(values: np.ndarray, count: int) -> list[Image.Image]:
    """Pictures (mode L) of an array (H, W), (N, H, W), or either with 1 or 3 equal channels."""
    if values.ndim >= 3 and values.shape[-1] in (1, 3):
        values = values[..., 0]
    while values.ndim > 3 and 1 in values.shape[:-2]:
        values = values.squeeze(values.shape.index(1))
    if values.ndim == 3 and count == 1:
        values = values[0]  # its channels come first
    values = values[None] if values.ndim == 2 else values
    if values.ndim != 3 or len(values) != count or min(values.shape[1:]) < MIN_SIDE:
        raise CorpusError(f"has images of shape {values.shape} and boxes of {count} films: it is no film.")
    return [Image.fromarray(_eight_bits(one)) for one in values]


def _eight_bits(values: np.ndarray) -> np.ndarray:
    """Gray values 0..255 as they are, shares of 1 times 255, others through the window of radiographs."""
    if values.dtype == np.uint8:
        return values
    low, high = float(values.min()), float(values.max())
    if low < 0 or not high <= 255:
        return window(values)
    return np.rint(values * (255.0 if high <= 1 and values.dtype.kind == "f" else 1.0)).astype(np.uint8)


def _check_boxes(boxes: np.ndarray, size: tuple[int, int], name: str) -> None:
    """Refuses boxes that are none, or of which more than a tenth lies outside of the film."""
    sides = boxes[:, 2:] - boxes[:, :2]
    inside = boxes[:, 2:].clip(max=size) - boxes[:, :2].clip(min=0)
    if not np.isfinite(boxes).all() or (sides <= 0).any() or (inside < 0.9 * sides).any():
        raise CorpusError(f"{name} has boxes {boxes.tolist()}, which do not lie in its {size[0]}x{size[1]} pixels.")
