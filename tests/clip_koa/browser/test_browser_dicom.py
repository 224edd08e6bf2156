"""DICOM in the page against `read_radiograph`: the same pixels but for one level, or a refusal."""

import numpy as np
import pytest

pytest.importorskip("pydicom", reason="needs the extra dicom")

from dicom_files import CASES, random_file, write_dicom
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    ExplicitVRBigEndian,
    ExplicitVRLittleEndian,
    ImplicitVRLittleEndian,
    JPEGBaseline8Bit,
)

from dataset_script.radiograph import RadiographError, read_radiograph
from dataset_script.synthetic import draw_knee

_READ = """const { readDicom } = await m("dicom");
    try {
        const { gray, laterality } = readDicom(bytes, self.dicomParser);
        return laterality === side ? gray : laterality;
    } catch (error) { if (!error.code) throw error; return [error.code, error.values]; }"""
_KNEE = np.asarray(draw_knee(2, "R", 4, 96), np.uint16)


@pytest.fixture(scope="module")
def read(modules, packed):
    """What the page reads of a file's bytes: the picture, or code and values of a refusal."""
    return lambda content, side="": modules.call(_READ, bytes=content, side=side)


def _differ(found, content) -> int:
    expected = np.asarray(read_radiograph(content).image, np.int16)
    return int(np.abs(found.astype(np.int16) - expected).max())


def test_random_gray_scales(read):
    """A lookup table is refused; what Python refuses, is refused too; all else is read as Python reads it."""
    kinds = {"read": 0, "table": 0, "refused": 0}
    for seed in range(150):
        content, _ = random_file(seed)
        found = read(content)
        if isinstance(found, list) and found[0] == "refused_table":
            kinds["table"] += 1
        elif isinstance(found, list):
            with pytest.raises(RadiographError):
                read_radiograph(content)
            kinds["refused"] += 1
        else:
            assert _differ(found, content) <= 1, seed
            kinds["read"] += 1
    assert kinds["read"] > 40 and kinds["table"] > 30, kinds


@pytest.mark.parametrize("name", [name for name in CASES if "lut" not in name])
def test_gray_scales_that_are_easily_got_wrong(read, name):
    assert _differ(read(CASES[name][0]), CASES[name][0]) <= 1


@pytest.mark.parametrize(
    "attributes",
    [
        {},
        {"PhotometricInterpretation": "MONOCHROME1"},
        {"WindowCenter": 1500.5, "WindowWidth": 2500.0},
        {"WindowCenter": 1500, "WindowWidth": 900, "VOILUTFunction": "LINEAR_EXACT"},
        {"WindowCenter": [1500, 3], "WindowWidth": [900, 3], "VOILUTFunction": "SIGMOID"},
        {"RescaleSlope": -0.5, "RescaleIntercept": 300, "WindowCenter": -100, "WindowWidth": 700},
        {"PixelPaddingValue": 0, "PixelPaddingRangeLimit": 400},
    ],
)
@pytest.mark.parametrize("syntax", [ImplicitVRLittleEndian, ExplicitVRLittleEndian])
def test_a_knee_of_12_bits(read, syntax, attributes):
    content = write_dicom(_KNEE * 16, syntax, BitsStored=12, **attributes)
    assert _differ(read(content), content) <= 1


@pytest.mark.parametrize("bits", [8, 6])
def test_a_knee_of_8_bits_and_less(read, bits):
    content = write_dicom((_KNEE >> (8 - bits)).astype(np.uint8), BitsStored=bits)
    assert _differ(read(content), content) <= 1


@pytest.mark.parametrize(
    "tags, side", [({"ImageLaterality": "R", "Laterality": "L"}, "R"), ({"Laterality": "B"}, "B")]
)
def test_the_side_is_read(read, tags, side):
    content = write_dicom(_KNEE * 16, BitsStored=12, **tags)
    assert read_radiograph(content).laterality == side and _differ(read(content, side), content) <= 1


@pytest.mark.parametrize(
    "content, code, value",
    [
        (write_dicom(_KNEE, ExplicitVRBigEndian), "refused_syntax", "1.2.840.10008.1.2.2"),
        (write_dicom(_KNEE, DeflatedExplicitVRLittleEndian), "refused_syntax", "1.2.840.10008.1.2.1.99"),
        (write_dicom(_KNEE, JPEGBaseline8Bit, frame=b"\xff\xd8\xff\xd9"), "refused_syntax", "1.2.840.10008.1.2.4.50"),
        (write_dicom(_KNEE, Modality="MR"), "refused_modality", "MR"),
        (write_dicom(_KNEE, PhotometricInterpretation="PALETTE COLOR"), "refused_colour", "PALETTE COLOR"),
        (write_dicom(_KNEE, NumberOfFrames=2), "refused_frames", None),
        (write_dicom(_KNEE, BitsAllocated=32), "refused_bits", 32),
        (write_dicom(_KNEE, Rows=4000), "refused_damaged", None),
        (write_dicom(_KNEE, Rows=None), "refused_attribute", "Rows"),
        (write_dicom(_KNEE, WindowCenter=("DS", "9" * 16), WindowWidth=1), "refused_window", None),
        (write_dicom(_KNEE)[:400], "refused_damaged", None),
        (write_dicom(_KNEE)[:-500], "refused_damaged", None),
    ],
)  # fmt: skip
def test_what_is_not_read_is_refused_in_a_sentence(read, content, code, value):
    found, values = read(content)
    assert (found, value) == (code, next(iter(values.values()), None)), (found, values)
