"""The films of a study's folders: the OAI's by their contents.csv, others by what the files are."""

import shutil

import pytest
from conftest import ROOT

from dataset_script.film_folders import list_films
from dataset_script.names import CorpusError

DICOM = ROOT / "tests/data/dicom/implicit.dcm"


@pytest.fixture
def oai(tmp_path):
    """Two visits as the OAI lays them: a film of each, a hip, a series that is missing, a text among the files."""
    folder = tmp_path / "films"
    for visit, barcode in (("00m", "01660001"), ("12m", "01660002")):
        for series in ("0.C.2/9000001/20050101/1001", "0.C.2/9000001/20050101/1002"):
            (folder / visit / series).mkdir(parents=True)
            shutil.copy(DICOM, folder / visit / series / "001")
        (folder / visit / "0.C.2/9000001/20050101/1001/notes").write_text("no film")
        (folder / visit / "contents.csv").write_text(
            "Folder,ParticipantID,StudyDate,Barcode,SeriesDescription\n"
            f"0.C.2/9000001/20050101/1001,9000001,20050101,{barcode},PA^XRAY^BILAT^KNEE\n"
            "0.C.2/9000001/20050101/1002,9000001,20050101,01669999,AP^XRAY^BILAT^HIP\n"
            "0.C.2/9000002/20050101/1003,9000002,20050101,01669998,PA^XRAY^BILAT^KNEE\n"
            "../../outside,9000002,20050101,01669998,PA^XRAY^BILAT^KNEE\n"
        )
    return folder


def test_folders_of_the_oai(oai):
    films, left_out = list_films(oai)
    assert [(film.name, film.person, film.visit, film.barcode) for film in films] == [
        ("00m/0.C.2/9000001/20050101/1001/001", "9000001", "00", "01660001"),
        ("12m/0.C.2/9000001/20050101/1001/001", "9000001", "01", "01660002"),
    ]
    assert all(film.path.is_file() for film in films)
    reasons = dict(left_out)
    assert reasons["00m/0.C.2/9000001/20050101/1001/notes"] == "no X-ray"
    assert reasons["00m/contents.csv line 3"] == "AP^XRAY^BILAT^HIP is no film of knees"
    assert reasons["00m/contents.csv line 4"] == "there is no folder 0.C.2/9000002/20050101/1003"
    assert reasons["00m/contents.csv line 5"] == "there is no folder ../../outside"


def test_other_folders(tmp_path):
    for name in ("visit_2/a.dcm", "visit_2/001", "b.dcm", ".hidden/c.dcm", "48 months/d.dcm"):
        (tmp_path / "films" / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(DICOM, tmp_path / "films" / name)
    films, left_out = list_films(tmp_path / "films")
    assert {film.name: film.visit for film in films} == {
        "48 months/d.dcm": "06", "b.dcm": "", "visit_2/001": "02", "visit_2/a.dcm": "02",
    }  # fmt: skip
    assert left_out == []


def test_what_cannot_be_used_is_told(tmp_path):
    with pytest.raises(CorpusError, match="there is no such folder"):
        list_films(tmp_path / "none")
    with pytest.raises(CorpusError, match="holds no film of knees"):
        list_films(tmp_path)
    (tmp_path / "contents.csv").write_text("Folder,Barcode\n")
    with pytest.raises(CorpusError, match="has no column 'participant'"):
        list_films(tmp_path)
