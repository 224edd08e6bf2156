"""Readings of a study's table: the OAI's as it comes, others by named columns; every row that is left out says why."""

import random

import pandas
import pytest

from dataset_script.names import CorpusError
from dataset_script.readings import Reading, read_readings

OAI = (
    "ID|SIDE|READPRJ|V00BARCDBU|V00XRKL\n"
    "9000001|1: Right|15|016600000001|2: 2\n"
    "9000001|2|15|016600000001|0\n"
    "9000002|1|15|016600000002|.A: Not Expected\n"
    "9000002|2: Left|37|016600000002|3\n"
    "9000003|1|15|016600000003|.\n"
    "9000003|2|15|016600000003|4: 4\n"
)


def _knees(found) -> dict:
    return {reading.knee: reading.grade for reading in found.used}


def test_the_table_of_the_oai_as_it_comes(tmp_path):
    table = tmp_path / "kxr_sq_bu00.txt"
    table.write_text(OAI)
    found = read_readings([table])
    assert _knees(found) == {
        ("9000001", "R", "00", ""): 2,
        ("9000001", "L", "00", ""): 0,
        ("9000003", "L", "00", ""): 4,
    }
    assert found.used[0].barcode == "016600000001"
    reasons = dict(found.left_out)
    assert "Not Expected" in reasons["kxr_sq_bu00.txt line 4"]
    assert "37" in reasons["kxr_sq_bu00.txt line 5"]
    assert reasons["kxr_sq_bu00.txt line 6"] == "it has no grade"


@pytest.mark.parametrize("visit", ["01", "03", "05", "06", "08", "10"])
@pytest.mark.parametrize("case", [str.upper, str.lower])
def test_later_visits_in_either_case(tmp_path, visit, case):
    table = tmp_path / f"kxr_sq_bu{visit}.txt"
    header, *rows = OAI.replace("V00", f"V{visit}").splitlines()
    table.write_text("\n".join([case(header), *rows]))
    assert {reading.visit for reading in read_readings([table]).used} == {visit}


def test_another_reading_project(tmp_path):
    table = tmp_path / "kxr.txt"
    table.write_text(OAI)
    assert _knees(read_readings([table], project="37")) == {("9000002", "L", "00", ""): 3}


def test_two_readings_of_a_knee(tmp_path):
    table = tmp_path / "kxr.txt"
    table.write_text(OAI + "9000001|1|15|016600000001|2\n9000003|2|15|016600000003|3\n")
    found = read_readings([table])
    assert _knees(found) == {("9000001", "R", "00", ""): 2, ("9000001", "L", "00", ""): 0}
    reasons = dict(found.left_out)
    assert reasons["kxr.txt line 8"] == "the knee was read alike at kxr.txt line 2"
    assert "KL3 and KL4" in reasons["kxr.txt line 7"] and "KL3 and KL4" in reasons["kxr.txt line 9"]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_order_of_columns_and_rows_makes_no_difference(tmp_path, delimiter):
    rows = [line.split("|") for line in OAI.splitlines()]
    order = random.Random(1).sample(range(5), 5)
    shuffled = [[row[index] for index in order] for row in [rows[0], *reversed(rows[1:])]]
    table, other = tmp_path / "kxr.txt", tmp_path / "other.csv"
    table.write_text(OAI)
    other.write_text("\r\n".join(delimiter.join(row) for row in shuffled))
    assert _knees(read_readings([other])) == _knees(read_readings([table]))


def test_sas(tmp_path, monkeypatch):
    """pandas reads .sas7bdat but writes none, so the frame that it would give is put in its place."""
    frame = pandas.DataFrame(
        {"ID": ["9000001", "9000001"], "SIDE": [1.0, 2.0], "readprj": ["15", "15"], "v00xrkl": [3.0, float("nan")]}
    )
    monkeypatch.setattr(pandas, "read_sas", lambda path, format, encoding: frame)
    table = tmp_path / "kxr_sq_bu00.sas7bdat"
    table.write_bytes(b"SAS")
    found = read_readings([table])
    assert _knees(found) == {("9000001", "R", "00", ""): 3} and len(found.left_out) == 1


def test_a_damaged_sas_file_is_told(tmp_path):
    table = tmp_path / "kxr.sas7bdat"
    table.write_bytes(b"no SAS file at all" * 100)
    with pytest.raises(CorpusError, match="kxr.sas7bdat cannot be read as .sas7bdat"):
        read_readings([table])


def test_other_studies_name_their_columns(tmp_path):
    table = tmp_path / "most.csv"
    table.write_text("subject,knee,KL,film\nA1,right,2,films/a.dcm\nA1,LEFT,3.0,films/a.dcm\nA2,both,1,b.dcm\n")
    columns = {"person": "Subject", "side": "knee", "grade": "kl", "file": "film"}
    found = read_readings([table], columns)
    assert found.used[0] == Reading("A1", "R", 2, file="films/a.dcm", place="most.csv line 2")
    assert [reading.grade for reading in found.used] == [2, 3]
    assert found.left_out == [("most.csv line 4", "side 'both' is neither 1 (right) nor 2 (left)")]


@pytest.mark.parametrize(
    "text, columns, told",
    [
        ("a,b\n1,2\n", {}, "has no column 'person'"),
        ("person,side,grade\n1,L,2\n", {}, "has no column 'file', 'visit' or 'barcode'"),
        ("person,side,grade,file\n", {"person": "ID"}, "has no column 'ID'"),
        ("person,side,grade,file\n", {"knee": "side"}, "--columns knee: use person"),
        ("", {}, "it is empty"),
        ("a\0b,c\n", {}, "it is no text"),
    ],
)
def test_a_table_that_cannot_be_used_is_told_in_one_line(tmp_path, text, columns, told):
    table = tmp_path / "table.csv"
    table.write_text(text)
    with pytest.raises(CorpusError, match=told) as raised:
        read_readings([table], columns)
    assert len(str(raised.value).splitlines()) == 1


def test_no_such_table(tmp_path):
    with pytest.raises(CorpusError, match="there is no such table"):
        read_readings([tmp_path / "none.txt"])
