"""What the results say, as coded concepts: SNOMED CT, DICOM and UCUM where they have one, else a scheme of ours.

docs/pacs.md lists every code.
"""

from highdicom.sr import CodedConcept
from pydicom.sr.codedict import codes

from modeling_clip_koa import GRADE_LABELS

# Private schemes begin with 99 (PS3.3, 8.2).
SCHEME = "99CLIPKOA"


def _own(value: str, meaning: str) -> CodedConcept:
    return CodedConcept(value, SCHEME, meaning)


def _known(code) -> CodedConcept:
    return CodedConcept(code.value, code.scheme_designator, code.meaning)


KNEE = _known(codes.SCT.KneeJoint)
SIDES = {"R": _known(codes.SCT.Right), "L": _known(codes.SCT.Left)}
RADIOGRAPHY = _known(codes.SCT.PlainRadiography)
REPORT = _known(codes.DCM.ImagingMeasurementReport)
NO_UNITS = _known(codes.UCUM.NoUnits)

KL_GRADE = _own("KL", "Kellgren-Lawrence grade")
GRADES = tuple(_own(f"KL{grade}", f"Kellgren-Lawrence grade {label[2:]}") for grade, label in enumerate(GRADE_LABELS))
PROBABILITIES = tuple(
    _own(f"P{grade}", f"Probability of Kellgren-Lawrence grade {grade}") for grade in range(len(GRADE_LABELS))
)
IN_SET = _own("SET", "Kellgren-Lawrence grade of the confidence set")
SET_LEVEL = _own("LEVEL", "Level of the confidence set")
EXPECTED_GRADE = _own("EXPECTED", "Expected Kellgren-Lawrence grade")
OSTEOARTHRITIS_PROBABILITY = _own("POA", "Probability of Kellgren-Lawrence grade 2 or above")
ATYPICALITY = _own("ATYPICAL", "Share of knee X-rays that are more typical than this one")
USE = _own("USE", "Intended use")
RESEARCH = _own("RESEARCH", "Research only, not to guide care")
WARNING = _own("WARNING", "What a reader must know before trusting the grade")
CUT_OFF = _own("CUTOFF", "The border of the image cuts this knee off")
UNLIKE = _own("UNLIKE", "Unlike the knee X-rays the model was trained on")
INVERTED = _own("INVERTED", "Bone looked dark: the image was inverted to be graded")
SIDE_SOURCE = _own("SIDE", "Source of the laterality")
SIDE_STATED = _own("STATED", "Stated by the image")
SIDE_ASSUMED = _own("ASSUMED", "Assumed: the right knee at the left of the image")

OWN = (
    KL_GRADE, *GRADES, *PROBABILITIES, IN_SET, SET_LEVEL, EXPECTED_GRADE, OSTEOARTHRITIS_PROBABILITY, ATYPICALITY, USE,
    RESEARCH, WARNING, CUT_OFF, UNLIKE, INVERTED, SIDE_SOURCE, SIDE_STATED, SIDE_ASSUMED,
)  # fmt: skip
STANDARD = (KNEE, *SIDES.values(), RADIOGRAPHY, REPORT, NO_UNITS)
