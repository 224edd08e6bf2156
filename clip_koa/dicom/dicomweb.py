"""`clip-koa fetch`: radiographs are taken from an archive over DICOMweb (PS3.18), and their results put back."""

import logging
import os
import re
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pydicom
import requests
import retrying
from dicomweb_client import DICOMwebClient
from pydicom.dataset import Dataset
from tqdm.auto import tqdm

from clip_koa.dicom.archive import PacsError
from clip_koa.dicom.results import KINDS, DicomResults
from clip_koa.dicom.source import MANUFACTURER, MadeBy, OwnResult, ResultError, identity, quietly, read_source
from dataset_script.dicom import MODALITIES
from dataset_script.exit_status import DONE, INCOMPLETE
from modeling_clip_koa import CLIPKOAError

TOKEN = "CLIP_KOA_DICOMWEB_TOKEN"
_UID = re.compile(r"[0-9.]{1,64}")
_TRIES, _PAUSE = 5, 500  # while it is away or busy; milliseconds between the first two, then twice as long
_CLOSED = (401, 403)  # statuses of an archive that wants to know who asks
_LOG = logging.getLogger(__name__)


@dataclass(frozen=True)
class FetchSettings:
    """What is fetched and graded.

    Attributes:
        model, level: see `Grader`.
        url: of the archive's DICOMweb service.
        studies: study instance UIDs.
        query: KEY=VALUE of a search for studies (QIDO-RS), such as StudyDate=20260101-20260131.
    """

    model: str
    url: str
    studies: tuple[str, ...] = ()
    query: tuple[str, ...] = ()
    level: float = 0.9


@dataclass(frozen=True)
class _Instance:
    study: str
    series: str
    instance: str


def fetch(settings: FetchSettings) -> int:
    """Grades the radiographs of studies that have no results yet; returns the exit status.

    Raises:
        PacsError: nothing to look for, or the archive does not answer as it should.
    """
    for library in ("dicomweb_client", "retrying", "urllib3"):  # which quote what is asked for, and answered
        logging.getLogger(library).setLevel(logging.CRITICAL)
    client = _client(settings)
    counts = dict.fromkeys(("graded", "graded before", "without a grade", "not stored"), 0)
    with tempfile.TemporaryDirectory(prefix="clip-koa-") as place, quietly():
        results = DicomResults.of_model(settings.model, settings.level, Path(place))
        try:
            found = list(_radiographs(client, settings))
            for one in tqdm(found, desc="grading", unit="image"):
                if outcome := _grade(client, one, results):
                    counts[outcome] += 1
        except _BadAnswer as error:
            raise PacsError(f"--dicomweb {settings.url}: {error}") from error
    print(", ".join(f"{number} {what}" for what, number in counts.items()) + ". Research only: not for diagnosis.")
    return INCOMPLETE if counts["without a grade"] or counts["not stored"] else DONE


class _BadAnswer(CLIPKOAError):
    """The archive's answer is none that can be used; the message says why, and nothing of a patient.

    Args:
        of_all: it would say so whatever it is asked for.
    """

    def __init__(self, message: str, of_all: bool = False):
        super().__init__(message)
        self.of_all = of_all


def _client(settings: FetchSettings) -> DICOMwebClient:
    if bool(settings.studies) == bool(settings.query):
        raise PacsError("name studies by --study, or search for them by --query, such as StudyDate=20260131.")
    for study in settings.studies:
        if not _UID.fullmatch(study):
            raise PacsError(f"--study {study}: a study's identifier has digits and points only, 64 at most.")
    address = urlsplit(settings.url)
    if address.scheme not in ("http", "https") or not address.hostname or address.query or "@" in address.netloc:
        raise PacsError(
            f"--dicomweb: write an address such as http://localhost:8042/dicom-web; a token is read from {TOKEN}."
        )
    token = os.environ.get(TOKEN, "").strip()
    client = DICOMwebClient(settings.url, headers={"Authorization": f"Bearer {token}"} if token else None)
    client.set_http_retry_params(retry=True, max_attempts=_TRIES, wait_exponential_multiplier=_PAUSE)
    return client


def _ask(question: Callable, *values, **options):
    """What the archive answers.

    Raises:
        _BadAnswer: with a status that is no success, not at all, or with something else than DICOM.
    """
    try:
        return question(*values, **options)
    except requests.HTTPError as error:
        status = error.response.status_code
        raise _BadAnswer(f"the archive answered with status {status}.", status in _CLOSED) from error
    except retrying.RetryError as error:
        raise _BadAnswer(f"the archive is busy or broken: {_TRIES} tries failed.", of_all=True) from error
    except requests.JSONDecodeError as error:
        raise _BadAnswer(
            "the archive's answer is no DICOM JSON: is this the address of its DICOMweb service?"
        ) from error
    except requests.RequestException as error:
        raise _BadAnswer(f"the archive does not answer ({type(error).__name__}).", of_all=True) from error
    except Exception as error:  # dicomweb-client and pydicom raise nearly every kind on nonsense, and quote it
        raise _BadAnswer("the archive's answer is not one of DICOMweb.") from error


def _radiographs(client: DICOMwebClient, settings: FetchSettings) -> Iterator[_Instance]:
    """The images of the studies that may be radiographs."""
    studies = settings.studies or _studies(client, settings.query)
    for study in dict.fromkeys(studies):
        for series in _search(client.search_for_series, "SeriesInstanceUID", study):
            if _value(series, "Modality") in MODALITIES and _value(series, "Manufacturer") != MANUFACTURER:
                number = _value(series, "SeriesInstanceUID")
                for row in _search(client.search_for_instances, "SOPInstanceUID", study, number):
                    yield _Instance(study, number, _value(row, "SOPInstanceUID"))


def _studies(client: DICOMwebClient, query: tuple[str, ...]) -> list[str]:
    filters = {}
    for pair in query:
        key, equals, value = pair.partition("=")
        if not equals:
            raise PacsError(f"--query {pair}: write KEY=VALUE, such as StudyDate=20260131.")
        if pydicom.datadict.tag_for_keyword(key) is None:
            raise PacsError(f"--query {key}: DICOM has no attribute of this name; use such as StudyDate or PatientID.")
        filters[key] = value
    rows = _search(client.search_for_studies, "StudyInstanceUID", search_filters=filters)
    return [_value(row, "StudyInstanceUID") for row in rows]


def _search(question: Callable, identifier: str, *values, **options) -> list[dict]:
    """All rows of a search, page by page, also of an archive that limits its answers; rows that name nothing are none.

    Args:
        identifier: keyword of what is different in each row.
    """
    found, asked = {}, 0
    while rows := _ask(question, *values, offset=asked, **options):
        if not all(isinstance(row, dict) for row in rows):
            raise _BadAnswer("the archive's answer is not one of DICOMweb.")
        fresh = {_value(row, identifier): row for row in rows}.keys() - found.keys()
        if not fresh:  # an archive that does not know pages gives the first one again
            break
        found |= {_value(row, identifier): row for row in rows}
        asked += len(rows)
    return [row for name, row in found.items() if _UID.fullmatch(name)]


def _grade(client: DICOMwebClient, one: _Instance, results: DicomResults) -> str:
    """Grades an image and stores its results; says what became of it, or nothing for an own result."""
    file = results.folder / "image.dcm"
    try:
        _ask(_retrieve, client, one, file)
        source = read_source(file)
        if _has_results(client, one, source, results.made_by):
            return "graded before"
    except OwnResult:
        return ""
    except ResultError as error:
        _LOG.warning("%s", str(error).split(": ", 1)[1])
        return "without a grade"
    except _BadAnswer as error:
        if error.of_all:
            raise  # as it would be with all others
        _LOG.warning("an image was not fetched: %s", error)
        return "without a grade"
    made = results.write(list(results.grader.grade([str(file)])))
    try:
        return _store(client, made) if made else "without a grade"
    finally:
        for path in made:
            path.unlink()


def _retrieve(client: DICOMwebClient, one: _Instance, file: Path) -> None:
    client.retrieve_instance(one.study, one.series, one.instance).save_as(file, enforce_file_format=True)


def _has_results(client: DICOMwebClient, one: _Instance, source: Dataset, by: MadeBy) -> bool:
    numbers = [identity(source, by, kind)["sop_instance_uid"] for kind in KINDS]
    rows = (
        _ask(client.search_for_instances, one.study, search_filters={"SOPInstanceUID": number}) for number in numbers
    )
    # An archive that ignores what is searched for answers with other instances.
    return all(
        any(_value(row, "SOPInstanceUID") == number for row in found)
        for number, found in zip(numbers, rows, strict=True)
    )


def _store(client: DICOMwebClient, made: list[Path]) -> str:
    """Stores results, and says whether the archive has them all."""
    try:
        answer = _ask(client.store_instances, [pydicom.dcmread(path) for path in made])
    except _BadAnswer as error:
        if error.of_all:
            raise
        _LOG.warning("a result was not stored: %s", error)
        return "not stored"
    if "FailedSOPSequence" in answer and answer.FailedSOPSequence:
        reason = answer.FailedSOPSequence[0].get("FailureReason")
        _LOG.warning("a result was not stored: the archive's reason is 0x%04X", reason or 0)
        return "not stored"
    return "graded"


def _value(row: dict, keyword: str) -> str:
    """An attribute of an answer in DICOM JSON; empty where it has none."""
    tag = f"{pydicom.datadict.tag_for_keyword(keyword):08X}"
    element = row.get(tag)
    return str((element.get("Value") or [""])[0]) if isinstance(element, dict) else ""
