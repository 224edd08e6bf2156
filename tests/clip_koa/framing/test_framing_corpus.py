"""Films and readings become a corpus: every knee gets its own grade or none, and what is missing is told."""

import csv
import json
import os
from collections import Counter
from dataclasses import dataclass

import pytest
from PIL import Image

from clip_koa.framing import study as study_module
from clip_koa.framing.corpus import FramingRun, assemble, look_at_all, split_rows, write_corpus
from clip_koa.framing.report import describe_framing, write_framing_report
from dataset_script.film_folders import list_films
from dataset_script.knee_xray import load_knee_xray
from dataset_script.names import CorpusError
from dataset_script.readings import read_readings

GRAY = {"R": 90, "L": 180}  # of each half of a drawn film


@dataclass
class Half:
    """What `find_knees` gives, for a film whose halves are the knees."""

    side: str
    box: tuple
    side_assumed: bool = True
    angle: float = 0.0
    confidence: float = 0.9


def halves(picture, laterality):
    """Stands for the model: each half that is not black is a knee."""
    middle, found = picture.width // 2, []
    for side, box in {"R": (0, 0, middle, picture.height), "L": (middle, 0, picture.width, picture.height)}.items():
        cut = picture.crop(box)
        if cut.getextrema()[1] > 20:
            found.append((Half(side, box, confidence=cut.getpixel((5, 5)) / 255), cut))
    return found


def make_halves():
    return halves


@pytest.fixture
def study(tmp_path):
    """Twelve people at two visits, as the OAI gives them; a film each. Returns films, table, and what is right."""
    right, rows = {}, ["ID|SIDE|READPRJ|V00BARCDBU|V00XRKL"]
    later = ["id|side|readprj|v01barcdbu|v01xrkl"]
    for visit, folder, table in (("00", "00m", rows), ("01", "12m", later)):
        lines = ["Folder,ParticipantID,StudyDate,Barcode,SeriesDescription"]
        for number in range(12):
            person, barcode = f"{9000000 + number}", f"0166{visit}{number:04d}"
            series = tmp_path / "films" / folder / f"0.1/{person}/1"
            series.mkdir(parents=True)
            film = Image.new("L", (128, 64), GRAY["R"] + number)
            film.paste(GRAY["L"] + number, (64, 0, 128, 64))
            film.save(series / "001", "PNG")
            lines.append(f"0.1/{person}/1,{person},20050101,{barcode},PA^XRAY^BILAT^KNEE")
            for code, side in (("1: Right", "R"), ("2", "L")):
                grade = (number + (side == "L") + int(visit)) % 5
                table.append(f"{person}|{code}|15|{barcode.lstrip('0')}|{grade}: {grade}")
                right[person, visit, side] = grade
        (tmp_path / "films" / folder / "contents.csv").write_text("\n".join(lines))
    tables = tmp_path / "kxr_sq_bu00.txt", tmp_path / "kxr_sq_bu01.txt"
    for path, text in zip(tables, (rows, later), strict=True):
        path.write_text("\n".join(text))
    return tmp_path / "films", tables, right


def frame(films_folder, tables, output, jobs=1, settings="", columns=None, limit=None):
    films, _ = list_films(films_folder)
    readings = read_readings(tables, columns)
    run = FramingRun(output, settings)
    for number, looked in enumerate(look_at_all(run.left_of(films), make_halves, jobs)):
        if number == limit:
            return None
        run.note(looked)
    framed = assemble(films, run.done, readings)
    split_rows(framed.rows, (0.6, 0.2, 0.2), 0)
    write_corpus(output, framed)
    return framed


def _table(output) -> list[dict]:
    with open(output / "metadata.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_every_knee_gets_its_own_grade(study, tmp_path, caplog):
    films, tables, right = study
    framed = frame(films, tables, tmp_path / "corpus")
    rows = _table(tmp_path / "corpus")
    assert {(row["person_id"], row["visit"], row["laterality"]): int(row["label"]) for row in rows} == right
    for row in rows:  # and it is that knee's picture
        with Image.open(tmp_path / "corpus" / row["file_name"]) as image:
            assert image.getpixel((5, 5)) == GRAY[row["laterality"]] + int(row["person_id"]) - 9000000
    assert framed.left_out == [] and "48 graded X-rays of 12 people" in describe_framing(framed)
    # No person is in two splits, and the builder reads it as it lies.
    corpus = load_knee_xray(tmp_path / "corpus", cache_dir=str(tmp_path / "cache"))
    labels = [label for split in corpus.values() for label in split["label"]]
    assert Counter(labels) == Counter(right.values())
    assert "the official release" not in caplog.text  # whose people these are, but not whose crops
    people = [set(split["person_id"]) for split in corpus.values()]
    assert len(people) == 3 and sum(map(len, people)) == 12


def test_a_model_of_the_hub_goes_on_where_it_was(study, tmp_path, monkeypatch):
    """At the first start its weights are fetched when it is loaded; they decide what a run was begun with."""
    films, tables, _ = study
    snapshot = tmp_path / "snapshot"
    snapshot.mkdir()
    (snapshot / "config.json").write_text("{}")

    def fetch(name, **options):
        (snapshot / "model.safetensors").write_bytes(b"weights")

    monkeypatch.setattr("transformers.utils.cached_file", lambda name, file: str(snapshot / file))
    monkeypatch.setattr(study_module, "load_checkpoint", fetch)
    monkeypatch.setattr(study_module, "load_finder", lambda model: halves)
    asked = study_module.Study(films, list(tables), tmp_path / "corpus", "somebody/model")
    assert study_module.frame_study(asked) == study_module.frame_study(asked) == 0
    (snapshot / "model.safetensors").write_bytes(b"other weights")
    monkeypatch.setattr(study_module, "load_checkpoint", lambda name: None)
    with pytest.raises(CorpusError, match="begun with another model"):
        study_module.frame_study(asked)


def test_several_processes_give_the_same(study, tmp_path):
    films, tables, _ = study
    for jobs in (1, 2):
        frame(films, tables, tmp_path / str(jobs), jobs)
    assert _table(tmp_path / "1") == _table(tmp_path / "2")


def test_a_stopped_run_goes_on(study, tmp_path, monkeypatch):
    films, tables, right = study
    assert frame(films, tables, tmp_path / "corpus", limit=7) is None
    journal = tmp_path / "corpus" / ".frame.jsonl"
    with open(journal, "a") as file:
        file.write('{"film": "cut off by a ki')
    looked = []
    monkeypatch.setattr("clip_koa.framing.corpus.look_at", _counting(looked))
    frame(films, tables, tmp_path / "corpus")
    assert len(looked) == 24 - 7
    assert len(_table(tmp_path / "corpus")) == len(right)
    os.utime(films / "00m/0.1/9000003/1/001", (1, 1))  # a film that has changed is looked at again
    looked.clear()
    frame(films, tables, tmp_path / "corpus")
    assert looked == ["00m/0.1/9000003/1/001"]


def _counting(looked):
    from clip_koa.framing.corpus import look_at

    def count(film, find):
        looked.append(film.name)
        return look_at(film, find)

    return count


def test_another_outcome_needs_another_folder(study, tmp_path):
    films, tables, _ = study
    frame(films, tables, tmp_path / "corpus", settings="one model")
    with pytest.raises(CorpusError, match="was begun with another model"):
        frame(films, tables, tmp_path / "corpus", settings="other model")
    with pytest.raises(CorpusError, match="holds something else"):
        frame(films, tables, films)
    assert not (films / ".frame.jsonl").exists()


def test_what_is_missing_is_told(study, tmp_path):
    films, tables, right = study
    (films / "00m/0.1/9000001/1/001").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    Image.new("L", (128, 64)).save(films / "00m/0.1/9000002/1/001", "PNG")  # no knee
    one = Image.open(films / "00m/0.1/9000004/1/001").copy()
    one.paste(0, (64, 0, 128, 64))
    one.save(films / "00m/0.1/9000004/1/001", "PNG")
    text = tables[0].read_text().splitlines()
    tables[0].write_text("\n".join(line for line in text if not line.startswith("9000005")))
    framed = frame(films, tables, tmp_path / "corpus")
    told = {(entry["film"], entry["side"]): entry["reason"] for entry in framed.left_out if entry["film"]}
    assert "is not a PNG" in told["00m/0.1/9000001/1/001", ""]
    assert told["00m/0.1/9000002/1/001", ""] == "no knee was found on the film"
    assert told["00m/0.1/9000005/1/001", "R"] == "the table has no reading of person 9000005 visit 00"
    readings = [entry["reason"] for entry in framed.left_out if not entry["film"]]
    assert len(readings) == 5 and all("no film shows a knee for the reading" in reason for reason in readings)
    assert len(framed.rows) == len(right) - 7
    page = write_framing_report(tmp_path / "corpus", framed).read_text()
    assert "9000005" in page and page.count("data:image/jpeg") == 1 and "http" not in page.split("<body>")[1]
    with open(tmp_path / "corpus" / "left_out.csv", newline="") as file:
        assert [row["reason"] for row in csv.DictReader(file)] == [entry["reason"] for entry in framed.left_out]


def test_other_studies_match_by_file_or_by_person_and_visit(tmp_path):
    films = tmp_path / "films"
    for name in ("a.png", "visit_2/9000001.png"):
        (films / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (128, 64), 99).save(films / name)
    table = tmp_path / "readings.csv"
    table.write_text(
        "person,side,grade,file,visit\nX1,L,3,a.png,\nX1,R,1,a.png,\n9000001,L,4,,02\n9000001,R,0,,02\nX2,R,2,,02\n"
    )
    readings, (listed, _) = read_readings([table]), list_films(films)
    run = FramingRun(tmp_path / "corpus", "")
    for looked in look_at_all(listed, make_halves, 1):
        run.note(looked)
    framed = assemble(listed, run.done, readings)
    assert {(row["film"], row["laterality"]): row["label"] for row in framed.rows} == {
        ("a.png", "L"): 3, ("a.png", "R"): 1, ("visit_2/9000001.png", "L"): 4, ("visit_2/9000001.png", "R"): 0,
    }  # fmt: skip
    assert [entry["reason"].split(":")[0] for entry in framed.left_out] == [
        "readings.csv line 6 (person X2, visit 02)"
    ]


def test_a_film_of_someone_else_gets_no_grade(study, tmp_path):
    """The barcode names the film, but the folder names another person: neither is trusted."""
    films, tables, right = study
    contents = films / "00m/contents.csv"
    contents.write_text(contents.read_text().replace("/9000003/1,9000003,", "/9000003/1,9000999,"))
    framed = frame(films, tables, tmp_path / "corpus")
    assert len(framed.rows) == len(right) - 2
    assert "the film is of person 9000999, but its reading is of 9000003" in {
        entry["reason"] for entry in framed.left_out
    }


def test_a_reading_belongs_to_one_knee(study, tmp_path):
    """A series of two exposures of the same knees: the first film is taken, the second told."""
    films, tables, right = study
    series = films / "00m/0.1/9000003/1"
    (series / "002").write_bytes((series / "001").read_bytes())
    framed = frame(films, tables, tmp_path / "corpus")
    assert len(framed.rows) == len(right)
    assert {entry["film"] for entry in framed.left_out} == {"00m/0.1/9000003/1/002"}


def test_splits_by_a_table_of_persons(study, tmp_path):
    films, tables, _ = study
    framed = frame(films, tables, tmp_path / "corpus")
    table = {row["person_id"]: "test" for row in framed.rows}
    split_rows(framed.rows, (), 0, table)
    assert {row["split"] for row in framed.rows} == {"test"}
    del table["9000007"]
    with pytest.raises(CorpusError, match="does not name person 9000007"):
        split_rows(framed.rows, (), 0, table)


def test_the_journal_names_each_film_once_a_line(study, tmp_path):
    films, tables, _ = study
    frame(films, tables, tmp_path / "corpus")
    lines = [json.loads(line) for line in (tmp_path / "corpus" / ".frame.jsonl").read_text().splitlines()]
    assert len(lines) == 25 and len({line["film"] for line in lines[1:]}) == 24
