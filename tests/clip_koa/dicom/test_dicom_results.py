"""`clip-koa grade --dicom_results`: reports and pictures, as other programs read them."""

import csv
import json
import re
import shutil
import subprocess
from pathlib import Path

import highdicom as hd
import numpy as np
import pydicom
import pytest
from conftest import ROOT
from dicom_files import Raw, write_dicom
from PIL import Image

from clip_koa.commands import main
from clip_koa.dicom import codes
from clip_koa.dicom.picture import WIDTH, build_picture, draw_picture
from clip_koa.dicom.report import build_report, corners
from clip_koa.dicom.results import DicomResults
from clip_koa.dicom.source import MadeBy, ResultError, read_source
from clip_koa.grading.grader import GradedXray, Grader
from dataset_script.synthetic import draw_knee
from dicom.pacs import knee, needs_dcmtk, radiograph
from modeling_clip_koa import Grade

MADE_BY = MadeBy("model", "0123456789abcdef", "level=0.9")
SHARES = (0.05, 0.2, 0.5, 0.2, 0.05)
GRADE = Grade(
    2, "KL2 mild", "", SHARES, SHARES, SHARES, (1, 2, 3), 0.42, box=(10, 20, 50, 60), side="R", side_assumed=True,
)  # fmt: skip


def grade(tmp_path, model, *files, expect=0, name="results"):
    folder = tmp_path / name
    assert main(["grade", "--model", model, "--dicom_results", folder, *files]) == expect
    return {pydicom.dcmread(path).Modality: path for path in folder.iterdir()}


@pytest.fixture(scope="module")
def tiny_grader(tiny_model):
    return Grader(str(tiny_model))


@pytest.fixture(scope="module")
def of_film(tmp_path_factory, released, two_knees):
    """Report and picture of a film, and the film."""
    folder = tmp_path_factory.mktemp("of_film")
    (folder / "film.dcm").write_bytes(two_knees)
    return grade(folder, released, folder / "film.dcm"), folder / "film.dcm"


def test_a_film_gives_a_report_and_a_picture_in_its_own_study(of_film):
    results, film = of_film
    source = pydicom.dcmread(film)
    assert set(results) == {"SR", "OT"}
    series = set()
    for path in results.values():
        made = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "PatientBirthDate", "PatientSex", "StudyInstanceUID", "StudyDate",
                        "AccessionNumber", "StudyID"):  # fmt: skip
            assert made.get(keyword) == source.get(keyword), keyword
        assert path.name == f"{made.SOPInstanceUID}.dcm" and made.Manufacturer == "CLIP-KOA"
        series.add(made.SeriesInstanceUID)
    assert len(series) == 2 and source.SeriesInstanceUID not in series


def test_highdicom_reads_both_knees_back(of_film):
    results, film = of_film
    report = hd.sr.srread(results["SR"])
    groups = report.content.get_planar_roi_measurement_groups()
    assert [group.finding_sites[0].laterality.value for group in groups] == ["24028007", "7771000"]  # right, left
    for group in groups:
        shares = [group.get_measurements(name)[0].value for name in codes.PROBABILITIES]
        assert sum(shares) == pytest.approx(1, abs=1e-3)
        (found,) = group.get_qualitative_evaluations(codes.KL_GRADE)
        assert found.value == group.finding_type == codes.GRADES[int(np.argmax(shares))]
        held = [int(item.value.value[2:]) for item in group.get_qualitative_evaluations(codes.IN_SET)]
        assert held == list(range(held[0], held[-1] + 1)) and int(found.value.value[2:]) in held
        assert group.get_measurements(codes.SET_LEVEL)[0].value == 0.9
        assert group.get_qualitative_evaluations(codes.USE)[0].value == codes.RESEARCH
        assert group.get_qualitative_evaluations(codes.SIDE_SOURCE)[0].value == codes.SIDE_ASSUMED
    right, left = (group.roi.value[:, 0].mean() for group in groups)
    assert right < left and all(group.roi.value.min() >= 0 for group in groups)
    assert pydicom.dcmread(film).SOPInstanceUID in str(pydicom.dcmread(results["SR"]))


def test_they_are_sound_to_the_validator(of_film):
    if not shutil.which("dciodvfy"):
        pytest.skip("needs dciodvfy (Debian package dicom3tools)")
    for path in of_film[0].values():
        said = subprocess.run(["dciodvfy", path], capture_output=True, text=True)
        assert "Error" not in said.stderr + said.stdout, said.stderr
        assert re.match("SCImage|ComprehensiveSR", said.stderr + said.stdout)


@needs_dcmtk
def test_dcmtk_reads_them(of_film, tmp_path):
    results, _ = of_film
    dumped = subprocess.run(["dsrdump", results["SR"]], capture_output=True, text=True)
    assert dumped.returncode == 0 and dumped.stdout.count("Kellgren-Lawrence grade 0 none") >= 2
    assert "Research only, not to guide care" in dumped.stdout
    shown = subprocess.run(["dcm2pnm", results["OT"], tmp_path / "shown.ppm"], capture_output=True)
    assert shown.returncode == 0
    with Image.open(tmp_path / "shown.ppm") as image:
        assert image.width == WIDTH
        assert np.array_equal(np.asarray(image), pydicom.dcmread(results["OT"]).pixel_array)


def test_a_second_run_changes_nothing(tiny_model, tmp_path):
    (tmp_path / "knee.dcm").write_bytes(knee(1))
    first = grade(tmp_path, tiny_model, tmp_path / "knee.dcm")
    before = {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.values()}
    assert grade(tmp_path, tiny_model, tmp_path / "knee.dcm") == first
    assert {path: (path.read_bytes(), path.stat().st_mtime_ns) for path in first.values()} == before
    other = grade(tmp_path, tiny_model, tmp_path / "knee.dcm", name="other")
    assert {path.name for path in other.values()} == {path.name for path in first.values()}
    first["SR"].unlink()  # one that is lost is made anew, with the same identifiers
    again = grade(tmp_path, tiny_model, "--output", tmp_path / "a.csv", tmp_path / "knee.dcm")
    assert again == first
    first["SR"].unlink()
    assert grade(tmp_path, tiny_model, "--output", tmp_path / "a.csv", tmp_path / "knee.dcm") == first


def _shares(report) -> list[float]:
    (group,) = hd.sr.srread(report).content.get_planar_roi_measurement_groups()
    return [group.get_measurements(name)[0].value for name in codes.PROBABILITIES]


def test_results_of_two_knees_are_of_the_grades_in_the_table(tiny_model, tmp_path, capsys):
    model, films, table = tmp_path / "model", tmp_path / "films", tmp_path / "grades.jsonl"
    shutil.copytree(tiny_model, model)
    joint = (np.full((5, 5), 0.01) + 0.15 * np.eye(5)).tolist()
    pairs = {"joint": joint, "weight": 1.5, "thresholds": {"0.90": 0.7}}
    (model / "calibration.json").write_text(json.dumps({"thresholds": {"0.90": 0.9}, "pairs": pairs}))
    command = ["--pairs", "--output", table, films]
    films.mkdir()

    def results() -> tuple[dict, dict]:
        """Of each image its row, and its report among those that are new."""
        before = set((tmp_path / "results").glob("*.dcm"))
        grade(tmp_path, model, *command)
        rows = [json.loads(line) for line in table.read_text().splitlines()]
        new = [hd.sr.srread(path) for path in set((tmp_path / "results").glob("*.dcm")) - before
               if pydicom.dcmread(path).Modality == "SR"]  # fmt: skip
        return {Path(row["file"]).stem: row for row in rows}, {
            read.CurrentRequestedProcedureEvidenceSequence[0]
            .ReferencedSeriesSequence[0].ReferencedSOPSequence[0].ReferencedSOPInstanceUID: read.filename
            for read in new
        }  # fmt: skip

    names = {}
    for number, side in ((1, "R"), (4, "L")):
        same = {"PatientID": "INVENTED", "StudyInstanceUID": "1.2.1", "ImageLaterality": side}
        (films / f"{side}.dcm").write_bytes(knee(number, **same))
        names[side] = str(pydicom.dcmread(films / f"{side}.dcm").SOPInstanceUID)
        rows, reports = results()
        assert set(reports) == set(names.values())  # the first knee's are made anew when the second arrives
        for one, row in rows.items():
            assert row["combined"] == (len(names) == 2)
            shares = [row[f"probability_{number}"] for number in range(5)]
            assert _shares(reports[names[one]]) == pytest.approx(shares, abs=1e-3)
    capsys.readouterr()
    grade(tmp_path, model, *command)
    assert "is up to date: 2 X-rays" in capsys.readouterr().out


def test_a_number_that_is_none_ends_no_later_run(tiny_model, tmp_path, capsys):
    odd = Raw("IS", b"Smith ")
    (tmp_path / "knee.dcm").write_bytes(knee(1, InstanceNumber=odd))
    command = ["--output", tmp_path / "grades.csv", tmp_path / "knee.dcm"]
    first = grade(tmp_path, tiny_model, *command)
    assert set(first) == {"SR", "OT"} and pydicom.dcmread(first["SR"]).InstanceNumber == 1
    assert grade(tmp_path, tiny_model, *command) == first
    told = "".join(capsys.readouterr())
    assert "is up to date: 1 X-ray." in told and "Smith" not in told


def test_only_these_files_know_the_patient(tiny_model, tmp_path, capsys):
    (tmp_path / "knee.dcm").write_bytes(knee(1))
    draw_knee(1, "L", 1, 96).save(tmp_path / "knee.png")
    grade(tmp_path, tiny_model, "--output", tmp_path / "grades.csv", tmp_path / "knee.dcm", tmp_path / "knee.png")
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    assert len(rows) == 2 and len(list((tmp_path / "results").iterdir())) == 2  # none of the PNG
    told = (tmp_path / "grades.csv").read_text() + capsys.readouterr().out
    assert not re.search("INVENTED|Invented|ACC-|19500101", told)


def test_what_cannot_have_results_is_told_and_the_rest_goes_on(tiny_model, tmp_path, capsys):
    (tmp_path / "a.dcm").write_bytes(knee(1, StudyInstanceUID=None))
    (tmp_path / "b.dcm").write_bytes(b"\0" * 128 + b"DICM broken")
    (tmp_path / "c.dcm").write_bytes(knee(2, PatientSex=None, StudyDate=None))  # empty in the results, too
    results = grade(tmp_path, tiny_model, *(tmp_path / f"{name}.dcm" for name in "abc"), expect=1)
    assert set(results) == {"SR", "OT"}
    assert "a.dcm: no DICOM results, since it has no StudyInstanceUID." in capsys.readouterr().out
    assert pydicom.dcmread(results["SR"]).PatientSex == ""


# Attributes that films have, and should not.
ODD = {
    "SpecificCharacterSet": ["ISO_IR 192", "ISO 2022 IR 87", "ISO_IR 999"], "PatientName": ["", "Äö^ß", "a" * 300],
    "PatientBirthDate": ["", "anytime", "1950"], "PatientSex": ["female", "O"], "StudyDate": ["2020-01-02", "2020"],
    "StudyTime": ["10:11", ""], "InstanceNumber": ["", "9" * 12, "-5", "abc", "1\\2"], "StudyID": ["x" * 40],
    "PatientOrientation": ["", "L", "X\\Y", "A\\F"], "Laterality": ["R", "LR", ""], "PatientID": ["", "x" * 100],
    "StudyInstanceUID": ["1.2.3", "a.b", "1." * 40, "1.2\\1.3"], "SOPClassUID": ["1.2.840.10008.5.1.4.1.1.7", "1.2"],
    "AccessionNumber": ["x" * 20, ""], "ReferringPhysicianName": ["Dr^X"], "SeriesInstanceUID": ["1.2.3.4"],
}  # fmt: skip


@pytest.mark.parametrize("keyword, value", [(keyword, value) for keyword, values in ODD.items() for value in values])
def test_odd_attributes_are_taken_over_or_told_without_being_quoted(
    tiny_grader, tmp_path, capsys, recwarn, keyword, value
):
    content = value.encode("utf-8")
    raw = Raw(pydicom.datadict.dictionary_VR(keyword), content + b" " * (len(content) % 2))
    given = value if keyword == "SpecificCharacterSet" else raw  # which pydicom reads while it writes
    (tmp_path / "knee.dcm").write_bytes(knee(1, **{keyword: given}))
    results = DicomResults(tiny_grader, tmp_path / "results", MADE_BY)
    made = results.write(list(tiny_grader.grade([tmp_path / "knee.dcm"])))
    told = capsys.readouterr().out
    assert len(made) == 2 and not told or re.fullmatch(r".*knee\.dcm: no DICOM results, since [^\n]+\n", told)
    if keyword != "SpecificCharacterSet":  # which is of no patient
        assert len(value) < 4 or value not in told + " ".join(str(warning.message) for warning in recwarn)
    assert sorted(made) == sorted((tmp_path / "results").iterdir())
    for path in made:
        assert pydicom.dcmread(path).Manufacturer == "CLIP-KOA"


@pytest.mark.parametrize("angle", [0, 10, -10])
def test_the_region_is_the_knees(angle):
    line = corners((96, 96), Grade(**{**GRADE.__dict__, "angle": float(angle)}))
    assert line.shape == (5, 2) and np.array_equal(line[0], line[4])
    assert line[:4].mean(0) == pytest.approx([30, 40]) and line.min() >= 0 and line.max() <= 96
    edge = line[1] - line[0]
    assert np.degrees(np.arctan2(edge[1], edge[0])) == pytest.approx(angle)  # clockwise, as y grows downwards
    whole = corners((96, 96), Grade(**{**GRADE.__dict__, "box": None}))
    assert whole.tolist() == [[0, 0], [96, 0], [96, 96], [0, 96], [0, 0]]
    beyond = corners((96, 96), Grade(**{**GRADE.__dict__, "box": (-20, -20, 200, 200)}))
    assert beyond.min() == 0 and beyond.max() == 96


def test_identifiers_depend_on_image_model_and_settings():
    def number(source=1, **changes):
        made_by = MadeBy(**{**MADE_BY.__dict__, **changes})
        return build_report(read_source(knee(source)), [(GRADE, "R")], made_by, 0.9).SOPInstanceUID

    assert number() == number()
    assert len({number(), number(2), number(digest="f" * 16), number(settings="level=0.8")}) == 4


def test_the_picture_can_be_read():
    film = draw_knee(2, "R", 1, 300)
    other = Grade(**{**GRADE.__dict__, "side": "L", "outside": 0.5, "box": (150, 20, 190, 60)})
    picture = draw_picture(film, [(GRADE, "R"), (other, "L")], [film.convert("RGB")] * 2, MADE_BY, 0.9)
    assert picture.width == WIDTH and picture.mode == "RGB"
    pixels = np.asarray(picture)
    scale = 620 / 300
    column = round(scale * 10)
    assert tuple(pixels[round(scale * 40), column]) == (92, 200, 255)  # the box's left edge
    one = draw_picture(film, [(GRADE, "R")], [film.convert("RGB")], MADE_BY, 0.9)
    assert one.height < picture.height


def test_every_code_is_in_the_manual():
    page = (ROOT / "docs" / "pacs.md").read_text()
    for code in (*codes.OWN, *codes.STANDARD):
        assert f"| `{code.value}` | {code.scheme_designator} | {code.meaning} |" in page, code.value
    assert len({code.value for code in codes.OWN}) == len(codes.OWN)


@pytest.mark.parametrize("maker", ["CLIP-KOA", "CLIP-KOA ", "CLIP-KOA   ", "Clip-Koa"])
def test_a_picture_that_is_sent_in_is_no_radiograph_of_a_patient(tiny_model, tmp_path, maker, capsys):
    """A result among the inputs has no result of its own."""
    (tmp_path / "knee.dcm").write_bytes(radiograph(draw_knee(1, "L", 1, 96), "own", Manufacturer=maker))
    assert grade(tmp_path, tiny_model, tmp_path / "knee.dcm") == {}
    assert "results is empty: no X-ray with a grade has a study that results could go to." in capsys.readouterr().out


_CLASSES = {"CR": "1.2.840.10008.5.1.4.1.1.1", "DX": "1.2.840.10008.5.1.4.1.1.1.1", "OT": "1.2.840.10008.5.1.4.1.1.7"}
LEFT = Grade(**{
    **GRADE.__dict__, "grade": 0, "confidence_set": (), "atypicality": None, "box": None, "outside": 0.5, "side": "L",
    "inverted": True,
})  # fmt: skip


def made_of(content: bytes, knees, folder) -> dict:
    """The files of report and picture of an image, without a model."""
    source = read_source(content, "knee.dcm")
    film = Image.new("L", (source.Columns, source.Rows), 90)
    picture = draw_picture(film, knees, [film.convert("RGB")] * len(knees), MADE_BY, 0.9)
    objects = {
        "SR": build_report(source, knees, MADE_BY, 0.9),
        "OT": build_picture(source, picture, [side for _, side in knees], MADE_BY),
    }
    for kind, made in objects.items():
        made.save_as(folder / f"{kind}.dcm", enforce_file_format=True)
    return {kind: folder / f"{kind}.dcm" for kind in objects}


@pytest.mark.parametrize("polarity, size", [("MONOCHROME1", (301, 77)), ("MONOCHROME2", (31, 500))])
@pytest.mark.parametrize("kind", _CLASSES)
@pytest.mark.parametrize("knees", [[(GRADE, "R")], [(GRADE, "R"), (LEFT, "L")], [(LEFT, "")]], ids=["R", "R+L", "?"])
def test_they_are_sound_whatever_they_are_of(tmp_path, kind, size, polarity, knees):
    content = radiograph(
        draw_knee(2, "R", 1, 96).resize(size), "any", SOPClassUID=_CLASSES[kind], Modality=kind,
        PhotometricInterpretation=polarity,
    )  # fmt: skip
    files = made_of(content, knees, tmp_path)
    groups = hd.sr.srread(files["SR"]).content.get_planar_roi_measurement_groups()
    for group, (grade, side) in zip(groups, knees, strict=True):
        assert group.finding_type == codes.GRADES[grade.grade]
        assert group.finding_sites[0].laterality == codes.SIDES.get(side)
        assert group.roi.value.max(0).tolist() == ([min(50, size[0]), 60] if grade.box else list(size))
        (image,) = [item for item in group.roi.ContentSequence if item.ValueType == "IMAGE"]
        assert image.ReferencedSOPSequence[0].ReferencedSOPInstanceUID == read_source(content).SOPInstanceUID
        assert bool(group.get_measurements(codes.ATYPICALITY)) == (grade is GRADE)
    picture = pydicom.dcmread(files["OT"])
    assert picture.Columns == WIDTH and picture.pixel_array.shape == (picture.Rows, WIDTH, 3)
    if shutil.which("dciodvfy"):
        for file in files.values():
            said = subprocess.run(["dciodvfy", file], capture_output=True, text=True)
            assert "Error" not in said.stderr + said.stdout, said.stderr


def test_what_a_reader_must_know_is_in_the_report(tmp_path):
    unlike = Grade(**{**GRADE.__dict__, "atypicality": 1.0})
    both = Grade(**{**GRADE.__dict__, "atypicality": 1.0, "outside": 0.5})
    files = made_of(knee(1), [(GRADE, "R"), (LEFT, "L"), (unlike, ""), (both, "")], tmp_path)
    groups = hd.sr.srread(files["SR"]).content.get_planar_roi_measurement_groups()
    found = [[item.value for item in group.get_qualitative_evaluations(codes.WARNING)] for group in groups]
    assert found == [[], [codes.CUT_OFF, codes.INVERTED], [codes.UNLIKE], [codes.CUT_OFF, codes.UNLIKE]]
    assert all(group.get_qualitative_evaluations(codes.USE)[0].value == codes.RESEARCH for group in groups)


@pytest.mark.parametrize(
    "character_set, name",
    [
        ("ISO_IR 100", "Müller^Jörg"),
        ("ISO_IR 192", "Иванов^Пётр"),
        ("ISO_IR 126", "Διονυσιος"),
        (["", "ISO 2022 IR 87"], "Yamada^Tarou=山田^太郎=やまだ^たろう"),
        (["", "ISO 2022 IR 149"], "Hong^Gildong=洪^吉洞=홍^길동"),
        ("GB18030", "Wang^XiaoDong=王^小东"),
        (None, Raw("PN", "Müller^Jörg".encode("latin-1"))),  # as many machines write it
    ],
)
def test_names_in_every_character_set_are_the_same_in_both(tmp_path, character_set, name):
    content = knee(1, SpecificCharacterSet=character_set, PatientName=name, StudyDescription="Knie")
    files = made_of(content, [(GRADE, "R")], tmp_path)
    for file in files.values():
        made = pydicom.dcmread(file)
        assert made.PatientName == ("Müller^Jörg" if isinstance(name, Raw) else name)
        assert made.StudyDescription == "Knie" and made.PatientID == "INVENTED-knee1"


def test_a_film_of_which_one_knee_has_a_grade_has_results_of_it(tiny_grader, tmp_path):
    (tmp_path / "knee.dcm").write_bytes(knee(1))
    (graded,) = tiny_grader.grade([tmp_path / "knee.dcm"])
    results = DicomResults(tiny_grader, tmp_path / "results", MADE_BY)
    made = results.write([GradedXray(graded.file, error="no grade"), graded])
    assert len(made) == 2
    (report,) = [path for path in made if pydicom.dcmread(path).Modality == "SR"]
    assert len(hd.sr.srread(report).content.get_planar_roi_measurement_groups()) == 1
    assert results.write([GradedXray(graded.file, error="no grade")]) == []


def test_a_file_that_inflates_without_end_is_refused(tmp_path, monkeypatch):
    plain = write_dicom(np.zeros((400, 400), np.uint16), syntax="1.2.840.10008.1.2.1.99", SOPInstanceUID="1.2")
    monkeypatch.setattr("dataset_script.dicom._MOST_INFLATED", 1000)
    with pytest.raises(ResultError, match="its attributes are damaged"):
        read_source(plain, "bomb.dcm")
