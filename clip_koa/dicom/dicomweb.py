"""`clip-koa fetch`: radiographs are taken from an archive over DICOMweb (PS3.18), and their results put back."""

import logging
import os
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pydicom
import requests
from dicomweb_client import DICOMwebClient
from tqdm.auto import tqdm

from clip_koa.dicom.archive import PacsError
from clip_koa.dicom.results import KINDS, DicomResults
from clip_koa.dicom.source import MANUFACTURER, MadeBy, OwnResult, ResultError, identity, read_source
from clip_koa.grading.grader import Grader
from clip_koa.grading.run import GradeRun, made_by
from dataset_script.dicom import MODALITIES
from dataset_script.exit_status import DONE, INCOMPLETE

TOKEN = "CLIP_KOA_DICOMWEB_TOKEN"
_SECONDS = 60
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
    if bool(settings.studies) == bool(settings.query):
        raise PacsError("name studies by --study, or search for them by --query, such as StudyDate=20260131.")
    token = os.environ.get(TOKEN)
    client = DICOMwebClient(settings.url, headers={"Authorization": f"Bearer {token}"} if token else None)
    client.set_http_retry_params(retry=True, max_attempts=5, wait_exponential_multiplier=500)
    run = GradeRun([], settings.model, level=settings.level)
    grader = Grader(settings.model, settings.level, framing=run.framing)
    counts = dict.fromkeys(("graded", "graded before", "without a grade"), 0)
    with tempfile.TemporaryDirectory(prefix="clip-koa-") as place:
        results = DicomResults(grader, Path(place), MadeBy.of(settings.model, made_by(run, grader)))
        try:
            found = list(_radiographs(client, settings))
            for one in tqdm(found, desc="grading", unit="image"):
                if outcome := _grade(client, one, results):
                    counts[outcome] += 1
        except requests.RequestException as error:
            raise PacsError(f"--dicomweb {settings.url}: {_reason(error)}") from error
    print(", ".join(f"{number} {what}" for what, number in counts.items()) + ". Research only: not for diagnosis.")
    return INCOMPLETE if counts["without a grade"] else DONE


def _radiographs(client: DICOMwebClient, settings: FetchSettings) -> Iterator[_Instance]:
    """The images of the studies that may be radiographs."""
    studies = settings.studies or [_value(row, "StudyInstanceUID") for row in _search(client, settings.query)]
    for study in studies:
        for series in client.search_for_series(study):
            if _value(series, "Modality") in MODALITIES and _value(series, "Manufacturer") != MANUFACTURER:
                number = _value(series, "SeriesInstanceUID")
                for row in client.search_for_instances(study, number):
                    yield _Instance(study, number, _value(row, "SOPInstanceUID"))


def _search(client: DICOMwebClient, query: tuple[str, ...]) -> list[dict]:
    wrong = [pair for pair in query if "=" not in pair]
    if wrong:
        raise PacsError(f"--query {wrong[0]}: write KEY=VALUE, such as StudyDate=20260131.")
    filters = dict(pair.split("=", 1) for pair in query)
    for key in filters:
        if pydicom.datadict.tag_for_keyword(key) is None:
            raise PacsError(f"--query {key}: DICOM has no attribute of this name; use such as StudyDate or PatientID.")
    return client.search_for_studies(search_filters=filters)


def _grade(client: DICOMwebClient, one: _Instance, results: DicomResults) -> str:
    """Grades an image and stores its results; says what became of it, or nothing for an own result."""
    file = results.folder / "image.dcm"
    client.retrieve_instance(one.study, one.series, one.instance).save_as(file, enforce_file_format=True)
    try:
        source = read_source(file)
    except OwnResult:
        return ""
    except ResultError as error:
        _LOG.warning("%s", str(error).split(": ", 1)[1])
        return "without a grade"
    numbers = [identity(source, results.made_by, kind)["sop_instance_uid"] for kind in KINDS]
    if all(client.search_for_instances(one.study, search_filters={"SOPInstanceUID": number}) for number in numbers):
        return "graded before"
    graded = [xray for xray in results.grader.grade([str(file)]) if not xray.error]
    if not graded:
        return "without a grade"
    made = results.write(graded)
    if not made:
        return "without a grade"
    client.store_instances([pydicom.dcmread(path) for path in made])
    for path in made:
        path.unlink()
    return "graded"


def _value(row: dict, keyword: str) -> str:
    """An attribute of an answer in DICOM JSON; empty where it has none."""
    tag = f"{pydicom.datadict.tag_for_keyword(keyword):08X}"
    return str((row.get(tag, {}).get("Value") or [""])[0])


def _reason(error: requests.RequestException) -> str:
    """Why a request failed, without what it asked for, which may name a patient."""
    if error.response is not None:
        return f"the archive answered {error.response.status_code} {error.response.reason}."
    return f"the archive does not answer ({type(error).__name__})."
