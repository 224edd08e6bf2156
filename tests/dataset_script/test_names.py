"""What names mean, and what first bytes tell, against the libraries that know."""

import io

import pytest
from datasets.data_files import SPLIT_KEYWORDS
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dataset_script.names import CorpusError, GradeNames, split_in_path, split_of
from dataset_script.radiograph import FORMATS
from dataset_script.sniffing import HEAD_BYTES, is_xray, why_left_out
from dataset_script.synthetic import draw_knee


def test_the_keywords_of_datasets_are_understood():
    for split, names in SPLIT_KEYWORDS.items():
        for name in names:
            for written in (name, name.upper(), name.title(), f"{name}_set", f"{name} images"):
                assert split_of(written) == str(split), written
            assert split_in_path(f"data/{name}-00000-of-00002.parquet") == str(split)


@pytest.mark.parametrize("name", ["train_val", "holdout", "extra", "trainer", "", "data", "contest", "no train"])
def test_other_names_are_no_splits(name):
    assert split_of(name) is None


def test_the_automatic_crops_stay_apart():
    assert split_of("auto_test") == split_of("AUTO-TEST") == split_in_path("auto_test-1.parquet") == "auto_test"


@pytest.mark.parametrize(
    "name, grade",
    [
        ("0", 0), ("KL0", 0), ("KL-0", 0), ("kl_1", 1), ("grade_2", 2), ("Grade 3", 3), ("class4", 4), ("0Normal", 0),
        ("1Doubtful", 1), ("2Mild", 2), ("2_Minimal", 2), ("3Moderate", 3), ("Severe-4", 4), ("Healthy", 0),
        ("None", 0), ("KL2 mild", 2), ("Grade 3 (Moderate)", 3), ("label=1", 1),
        ("5", None), ("KL5", None), ("10", None), ("01", None), ("3-4", None), ("Osteoporosis", None), ("", None),
        ("kl", None), ("not 0", None), ("٣", None), ("²", None),
    ],
)  # fmt: skip
def test_grades_by_name(name, grade):
    assert GradeNames().grade(name) == grade


@pytest.mark.parametrize("name", ["1Mild", "0Severe", "Mild Moderate", "2 none"])
def test_names_of_two_grades_are_refused(name):
    with pytest.raises(CorpusError, match=f"'{name}' may mean KL. and KL.*--grades {name}=GRADE"):
        GradeNames().grade(name)


@given(name=st.text(max_size=30))
def test_any_name_tells_a_grade_or_none_or_two(name):
    try:
        assert GradeNames().grade(name) in (None, 0, 1, 2, 3, 4)
    except CorpusError as error:
        assert "may mean" in str(error) and "\n" not in str(error)
    assert split_of(name) in (None, "train", "validation", "test", "auto_test")


def _head(format, image=None, **options) -> bytes:
    buffer = io.BytesIO()
    (image or draw_knee(1, "L", 1, 40)).save(buffer, format, **options)
    return buffer.getvalue()[:HEAD_BYTES]


def test_what_the_reader_reads_is_known_by_its_first_bytes():
    for format in FORMATS:
        for mode in ("L", "RGB"):
            assert is_xray(_head(format, draw_knee(1, "L", 1, 40).convert(mode))), format
    assert is_xray(_head("TIFF", big_tiff=True)) and is_xray(bytes(128) + b"DICM")


def test_what_it_does_not_read_is_not():
    texts = (b"", b"BMI of the people in this study", b"RIFF....WAVE", b"%PDF-1.7", b"name,grade\n")
    for head in (_head("GIF"), _head("PPM"), _head("ICO", Image.new("L", (32, 32))), *texts):
        assert not is_xray(head), head
    assert why_left_out("x", lambda name: _head("GIF")).kind == "image"
    assert why_left_out("x", lambda name: b"PK\3\4").kind == "archive"
    assert {why_left_out("x", lambda name, head=head: head).kind for head in texts} == {"other"}
