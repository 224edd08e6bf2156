"""The grade of each knee of an image as a DICOM Structured Report (PS3.16, TID 1500, Comprehensive SR)."""

import math
from collections.abc import Sequence

import numpy as np
from highdicom import sr
from pydicom.dataset import Dataset
from pydicom.sr.codedict import codes

from clip_koa.dicom import codes as own
from clip_koa.dicom.source import MANUFACTURER, MadeBy, device_uid, identity, region_uid
from modeling_clip_koa import Grade
from modeling_clip_koa.localisation_clip_koa import MOST_OUTSIDE

_NAME = "CLIP-KOA"


def build_report(
    source: Dataset, knees: Sequence[tuple[Grade, str]], made_by: MadeBy, level: float
) -> sr.ComprehensiveSR:
    """The report of an image.

    Args:
        source: of `read_source`.
        knees: the grade of each knee, and which it is: "R", "L" or "".
        level: of the confidence sets, 0..1.
    """
    device = sr.DeviceObserverIdentifyingAttributes(
        uid=device_uid(made_by), name=_NAME, manufacturer_name=MANUFACTURER, model_name=made_by.model[:64]
    )
    report = sr.MeasurementReport(
        observation_context=sr.ObservationContext(
            observer_device_context=sr.ObserverContext(codes.DCM.Device, device)
        ),
        procedure_reported=own.RADIOGRAPHY,
        imaging_measurements=[
            _knee(source, number, grade, side, made_by, level) for number, (grade, side) in enumerate(knees)
        ],
        title=own.REPORT,
    )
    return sr.ComprehensiveSR(
        [source], report[0], is_complete=True, is_final=False, is_verified=False, **identity(source, made_by, "report")
    )


def _knee(source, number, grade: Grade, side: str, made_by: MadeBy, level: float):
    """One knee: its region in the image, what was measured, and what was judged."""
    return sr.PlanarROIMeasurementsAndQualitativeEvaluations(
        tracking_identifier=sr.TrackingIdentifier(
            uid=region_uid(source, made_by, number), identifier=f"{_NAME} {side or 'knee'} {number + 1}"
        ),
        referenced_region=sr.ImageRegion(
            sr.GraphicTypeValues.POLYLINE,
            corners((source.Columns, source.Rows), grade),
            sr.SourceImageForRegion(source.SOPClassUID, source.SOPInstanceUID),
        ),
        finding_type=own.GRADES[grade.grade],
        finding_sites=[sr.FindingSite(own.KNEE, laterality=own.SIDES.get(side))],
        algorithm_id=sr.AlgorithmIdentification(
            _NAME, made_by.version, [f"model={made_by.model}", f"weights={made_by.digest}", made_by.settings]
        ),
        measurements=_measurements(grade, level),
        qualitative_evaluations=_evaluations(grade, side),
    )


def corners(size: tuple[int, int], grade: Grade) -> np.ndarray:
    """The knee's region as a closed line, (5, 2) of x and y in the image's pixels; without a box the whole image.

    Args:
        size: columns and rows of the image.
    """
    left, top, right, bottom = grade.box or (0, 0, *size)
    line = np.array([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], float)
    turn = math.radians(grade.angle)  # clockwise, as y grows downwards
    middle = line[:4].mean(0)
    line = (line - middle) @ [[math.cos(turn), math.sin(turn)], [-math.sin(turn), math.cos(turn)]] + middle
    return line.clip(0, size)


def _measurements(grade: Grade, level: float) -> list[sr.Measurement]:
    values = dict(zip(own.PROBABILITIES, grade.probabilities, strict=True))
    values |= {
        own.OSTEOARTHRITIS_PROBABILITY: grade.osteoarthritis_probability,
        own.EXPECTED_GRADE: grade.expected_grade,
    }
    if grade.confidence_set:
        values[own.SET_LEVEL] = level
    if grade.atypicality is not None:
        values[own.ATYPICALITY] = grade.atypicality
    return [sr.Measurement(name, round(float(value), 4), own.NO_UNITS) for name, value in values.items()]


def _evaluations(grade: Grade, side: str) -> list[sr.QualitativeEvaluation]:
    found = [(own.KL_GRADE, own.GRADES[grade.grade])]
    found += [(own.IN_SET, own.GRADES[number]) for number in grade.confidence_set]
    if side:
        found.append((own.SIDE_SOURCE, own.SIDE_ASSUMED if grade.side_assumed else own.SIDE_STATED))
    if grade.outside > MOST_OUTSIDE:
        found.append((own.WARNING, own.CUT_OFF))
    if grade.ways or grade.is_atypical:
        found.append((own.WARNING, own.UNLIKE))
    if grade.inverted:
        found.append((own.WARNING, own.INVERTED))
    found.append((own.USE, own.RESEARCH))
    return [sr.QualitativeEvaluation(name, value) for name, value in found]
