"""The image that results are of: its patient and study, and numbers that are derived from it."""

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import pydicom
from highdicom import SpecificCharacterSetValues
from pydicom.dataset import Dataset
from pydicom.uid import UID, generate_uid

from clip_koa.grading.provenance import describe, without_code
from dataset_script.dicom import read_study
from modeling_clip_koa import CLIPKOAError

MANUFACTURER = "CLIP-KOA"
# Attributes that each object must carry, empty where the image lacks them (type 2 of the patient and study modules).
_EMPTY = (
    "PatientID", "PatientName", "PatientBirthDate", "PatientSex", "AccessionNumber", "StudyID", "StudyDate",
    "StudyTime", "ReferringPhysicianName",
)  # fmt: skip
# Without one of each there is no study to put a result into.
_NEEDED = ("SOPClassUID", "SOPInstanceUID", "StudyInstanceUID", "SeriesInstanceUID", "Rows", "Columns")
_LARGEST_NUMBER = 2**31 - 1  # of an integer string
_KINDS = {"report": 9701, "picture": 9702}  # numbers of the two series in a study


class ResultError(CLIPKOAError, ValueError):
    """An image that no DICOM result can be made of; the message names it and says why."""


class OwnResult(ResultError):
    """An image that is a result of ours."""


@dataclass(frozen=True)
class MadeBy:
    """What graded: it is in every object, and identifiers depend on it."""

    model: str  # name of the model
    digest: str  # of its weights, configuration and calibration
    settings: str  # what a grade depends on besides, such as `level=0.9 framing=auto`
    partner: str = ""  # the X-ray of the person's other knee, where the grade was combined with its

    @classmethod
    def of(cls, model: str, described: str) -> "MadeBy":
        """Of a model folder or Hub id, and of what `clip_koa.grading.run.made_by` says of its grades."""
        settings = dict(item.split("=", 1) for item in without_code(described).split())
        digest = settings.pop("model")
        name = Path(model).resolve().name if Path(model).is_dir() else model
        return cls(name, digest, describe(**settings))

    @property
    def version(self) -> str:
        """Of CLIP-KOA."""
        try:
            return metadata.version("clip-koa")
        except metadata.PackageNotFoundError:
            return "not installed"


@contextmanager
def quietly() -> Iterator[None]:
    """Keeps pydicom's warnings, which quote what a file says of its patient, from being printed or logged."""
    log = logging.getLogger("pydicom")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        log.setLevel(level)


def read_source(file: str | Path | bytes, name: str = "") -> Dataset:
    """The attributes of a DICOM image, without its pixels.

    Args:
        file: a path, or the file's bytes.
        name: what to call it in errors; default: its path.

    Raises:
        ResultError: no DICOM file, one that names no study to put a result into, or (`OwnResult`) a result.
    """
    name = name or str(file)
    try:
        with quietly():
            read_study(file)  # which refuses a file that inflates without end
            source = pydicom.dcmread(io.BytesIO(file) if isinstance(file, bytes) else file, stop_before_pixels=True)
            own = str(source.get("Manufacturer")).strip().upper() == MANUFACTURER
            missing = [keyword for keyword in _NEEDED if not source.get(keyword) or source[keyword].VM > 1]
            if not _is_written(source.get("SpecificCharacterSet")):
                source.decode()
                source.SpecificCharacterSet = "ISO_IR 192"  # UTF-8, in which all can be written
    except Exception as error:  # pydicom raises nearly every kind there is on damaged files
        raise ResultError(f"{name}: no DICOM results, since its attributes are damaged.") from error
    if own:
        raise OwnResult(f"{name}: no DICOM results, since it is one itself.")
    if missing:
        raise ResultError(f"{name}: no DICOM results, since it has no {', '.join(missing)}.")
    for keyword in _EMPTY:
        if keyword not in source:
            setattr(source, keyword, None)
    return source


def _is_written(character_set) -> bool:
    """Whether highdicom writes a character set: one of a single value that the standard has."""
    return character_set in [known.value for known in SpecificCharacterSetValues]


def identity(source: Dataset, made_by: MadeBy, kind: str) -> dict:
    """Series and instance of a result, for highdicom: the same image, model, settings and version give the same.

    So does the same X-ray of the other knee, where both grades were combined.

    Args:
        kind: report or picture.
    """
    what = (kind, made_by.version, made_by.digest, made_by.settings, made_by.partner)
    return {
        "series_instance_uid": _uid("series", source.StudyInstanceUID, *what),
        "series_number": _KINDS[kind],
        "sop_instance_uid": _uid("instance", source.SOPInstanceUID, *what),
        "instance_number": _instance_number(source),
        "manufacturer": MANUFACTURER,
    }


def _instance_number(source: Dataset) -> int:
    """The image's, or 1 where it has none that DICOM allows (an integer string: PS3.5, table 6.2-1)."""
    try:
        return min(max(1, int(source.get("InstanceNumber") or 1)), _LARGEST_NUMBER)
    except (TypeError, ValueError):
        return 1


def device_uid(made_by: MadeBy) -> UID:
    """Of the model as an observer."""
    return _uid("device", made_by.digest)


def region_uid(source: Dataset, made_by: MadeBy, knee: int) -> UID:
    """Of the knee's region as something that can be followed; `knee` counts those of the image."""
    return _uid("region", source.SOPInstanceUID, made_by.digest, made_by.settings, str(knee))


def _uid(*parts: str) -> UID:
    return generate_uid(entropy_srcs=[MANUFACTURER, *parts])
