"""What a DICOM file may leave out, leave empty, or fill with something else: absent, or refused in a sentence."""

import io
import warnings
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_script.dicom import read_identity
from dataset_script.radiograph import RadiographError, read_radiograph

pytest.importorskip("pydicom")

import pydicom  # noqa: E402
from dicom_files import SIDE, Raw, table_of, write_dicom  # noqa: E402
from pydicom.datadict import keyword_for_tag  # noqa: E402
from pydicom.sequence import Sequence  # noqa: E402

FILES = Path(__file__).parents[1] / "data" / "dicom"
NEEDED = {"PhotometricInterpretation", "Rows", "Columns", "BitsAllocated", "BitsStored", "PixelRepresentation"}
PALETTE = {
    f"{name}PaletteColorLookupTable{part}" for name in ("Red", "Green", "Blue") for part in ("Data", "Descriptor")
}
CELLS = np.arange(SIDE * SIDE, dtype=np.uint16).reshape(SIDE, SIDE) * 4
SCALE = {"BitsStored": 12, "WindowCenter": 2048, "WindowWidth": 4096, "RescaleSlope": 1, "RescaleIntercept": 0}
READ = sorted(
    NEEDED
    | set(SCALE)
    | {
        "Modality", "NumberOfFrames", "SamplesPerPixel", "PlanarConfiguration", "HighBit", "PixelPaddingValue",
        "PixelPaddingRangeLimit", "ModalityLUTSequence", "VOILUTSequence", "VOILUTFunction", "PresentationLUTShape",
        "PresentationLUTSequence", "ImageLaterality", "Laterality", "ViewPosition", "PixelSpacing",
        "ImagerPixelSpacing", "PatientID", "SOPClassUID",
    }
)  # fmt: skip


@pytest.fixture(autouse=True)
def quiet():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pydicom's, of values that are none
        yield


def _refusal(content: bytes) -> str | None:
    """Why a file is refused, in one line that blames no damage but too few pixels; None where it is read."""
    try:
        radiograph = read_radiograph(content, name="x.dcm")
    except RadiographError as error:
        message = str(error)
        assert "\n" not in message and message.endswith("."), message
        assert "damaged" not in message or "need" in message and "bytes" in message, message
        return message
    assert radiograph.image.mode == "L"
    return None


@pytest.mark.parametrize("action", ["empty", "absent"])
@pytest.mark.parametrize(
    "name", ["window", "voi_lut", "rescale", "padding", "rgb", "palette", "jpeg_2000", "rle", "deflated", "implicit"]
)
def test_every_element_may_be_empty_or_absent(name, action):
    """Where it is not one of the few that every image has to give, and the image stays as it is."""
    original = pydicom.dcmread(FILES / f"{name}.dcm")
    compressed = name in ("jpeg_2000", "rle")
    for tag in [element.tag for element in original.file_meta] + [element.tag for element in original]:
        keyword = keyword_for_tag(tag)
        dataset = pydicom.dcmread(FILES / f"{name}.dcm")
        holder = dataset.file_meta if tag.group == 2 else dataset
        if action == "absent":
            del holder[tag]
        elif keyword == "FileMetaInformationGroupLength" or (keyword, compressed) == ("PixelData", True):
            continue  # pydicom writes no such file; see below for the former
        else:
            holder[tag].value = [] if holder[tag].VR == "SQ" else None
        buffer = io.BytesIO()
        implicit, little = original.original_encoding
        dataset.save_as(buffer, implicit_vr=implicit, little_endian=little)
        refusal = _refusal(buffer.getvalue())
        if keyword in NEEDED:
            assert refusal == f"x.dcm is a DICOM file without {keyword}, which every DICOM image has to give."
        elif keyword == "PixelData":
            assert refusal == "x.dcm is a DICOM file without pixel data."
        elif keyword == "TransferSyntaxUID" and compressed:
            assert "does not name the transfer syntax" in refusal
        else:
            assert refusal is None or keyword in PALETTE and "palette without" in refusal, keyword


@pytest.mark.parametrize("name", ["window", "deflated"])
@pytest.mark.parametrize("length", [b"", b"\4\0\0\0", b"\xff\xff\xff\0"])
def test_an_empty_or_wrong_length_of_the_file_meta_information_does_not_hinder(name, length, tmp_path):
    content = (FILES / f"{name}.dcm").read_bytes()
    path = tmp_path / "x.dcm"
    path.write_bytes(content[:138] + len(length).to_bytes(2, "little") + length + content[144:])
    assert read_radiograph(path).image.tobytes() == read_radiograph(FILES / f"{name}.dcm").image.tobytes()
    assert read_identity(path) == read_identity(path.read_bytes()) == ("GENERATED-7", "L")


def test_an_id_of_many_megabytes_is_not_read(tmp_path):
    dataset = pydicom.dcmread(FILES / "implicit.dcm")
    dataset.PatientID = "x" * (1 << 20)
    dataset.save_as(tmp_path / "x.dcm")
    assert read_identity(tmp_path / "x.dcm") == (None, "L")


@pytest.mark.parametrize(
    "one, other",
    [
        ({"RescaleIntercept": Raw("DS", b"")}, {"RescaleIntercept": None, "RescaleSlope": None}),
        ({"RescaleSlope": Raw("DS", b" ")}, {"RescaleIntercept": None, "RescaleSlope": None}),
        ({"WindowCenter": Raw("DS", b"")}, {"WindowCenter": None, "WindowWidth": None}),
        ({"WindowWidth": None}, {"WindowCenter": None, "WindowWidth": None}),
        ({"WindowCenter": Raw("DS", b"\\7")}, {"WindowCenter": None, "WindowWidth": None}),
        ({"VOILUTFunction": Raw("CS", b"")}, {}),
        ({"VOILUTSequence": Sequence([])}, {}),
        ({"VOILUTSequence": Sequence([pydicom.Dataset()])}, {}),
        ({"ModalityLUTSequence": Sequence([pydicom.Dataset()])}, {}),
        ({"PresentationLUTShape": Raw("CS", b"")}, {}),
        ({"HighBit": Raw("US", b"")}, {}),
        ({"SamplesPerPixel": None}, {}),
        ({"NumberOfFrames": Raw("IS", b"")}, {}),
        ({"Modality": Raw("CS", b"")}, {}),
        ({"Rows": ("DS", SIDE), "BitsStored": ("UL", 12)}, {}),  # another type of number is a number
    ],
)
def test_empty_is_absent(one, other):
    images = [read_radiograph(write_dicom(CELLS, **(SCALE | change))).image for change in (one, other)]
    assert images[0].tobytes() == images[1].tobytes()


@pytest.mark.parametrize(
    "attributes, reason",
    [
        ({"RescaleSlope": Raw("DS", b"abc")}, "has a RescaleSlope of 'abc', which is not a finite number."),
        ({"RescaleSlope": Raw("DS", b"nan")}, "has a RescaleSlope of 'nan', which is not a finite number."),
        ({"RescaleIntercept": Raw("DS", b"-inf")}, "has a RescaleIntercept of '-inf', which is not a finite number."),
        ({"WindowWidth": Raw("DS", b"1e400")}, "has a WindowWidth of '1e400', which is not a finite number."),
        ({"WindowCenter": Raw("OB", b"12")}, "has a WindowCenter of the type OB, which is not a number."),
        ({"RescaleSlope": 1e200}, "has a rescale slope of 1e+200 and intercept of 0, which cannot be."),
        ({"Rows": ("DS", 32.5)}, "has a Rows of 32.5, which is not a whole number of 32 bits."),
        ({"Rows": Raw("US", b"\1\0")}, "has 32x1 pixels: a radiograph has at least 32 on each side."),
        ({"Rows": Raw("UL", b"\1\0")}, "has a Rows of 2 bytes, too few for a number."),
        ({"VOILUTSequence": Raw("LO", b"abc")}, "has a VOILUTSequence that is not a sequence of items."),
        ({"SamplesPerPixel": 3}, "has 3 samples a pixel, which the photometric interpretation MONOCHROME2 has not."),
        ({"PixelRepresentation": 2}, "has a PixelRepresentation of 2, which is neither 0 nor 1."),
        ({"BitsAllocated": 32}, "stores 32 bits a pixel: radiographs have 8 to 16."),
    ],
)
def test_what_is_no_value_is_told_by_name(attributes, reason):
    assert _refusal(write_dicom(CELLS, **(SCALE | attributes))) == f"x.dcm {reason}"


def test_a_table_without_three_numbers_before_it_is_refused():
    sequence = table_of(range(16), 0, 8)
    sequence[0].add_new("LUTDescriptor", "US", [16, 0])
    assert "LUTDescriptor that is not three" in _refusal(write_dicom(CELLS, **SCALE, VOILUTSequence=sequence))


@pytest.mark.parametrize("name", ["PixelSpacing", "ImageLaterality", "ViewPosition", "PatientID"])
def test_what_is_not_of_the_picture_is_absent_where_it_is_none(name):
    radiograph = read_radiograph(write_dicom(CELLS, **SCALE, **{name: Raw("OB", b"\1\2\3\4")}))
    told = (radiograph.pixel_spacing, radiograph.laterality, radiograph.view)
    assert told == (None, None, None) and radiograph.person_id == (None if name == "PatientID" else "GENERATED-7")


@given(
    st.sampled_from(READ),
    st.sampled_from(
        ["AE", "AT", "CS", "DS", "FD", "FL", "IS", "LO", "OB", "OW", "PN", "SL", "SS", "UI", "UL", "UN", "US"]
    ),
    st.one_of(st.binary(max_size=20), st.text("0123456789+-.eE\\ nif", max_size=20).map(str.encode)),
)
@settings(max_examples=250, derandomize=True)
def test_any_bytes_in_any_element_are_a_picture_or_a_sentence(keyword, vr, value):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        _refusal(
            write_dicom(CELLS, **(SCALE | {"PixelPaddingValue": 4095, "HighBit": 11} | {keyword: Raw(vr, value)}))
        )


def test_a_million_values_where_one_is_expected_cost_no_time():
    import time

    many = Raw("UT", b"1\\" * 20_000_000)
    content = write_dicom(CELLS, **(SCALE | {"WindowCenter": many, "PixelSpacing": many, "NumberOfFrames": many}))
    start = time.process_time()
    read_radiograph(content)
    assert time.process_time() - start < 2
