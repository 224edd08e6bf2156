"""`clip-koa grade --pairs`: both knees of a person, on a film or in two files, in runs that stop, and on a cluster."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_files import write_dicom
from PIL import Image

from clip_koa.commands import main
from clip_koa.grading.grade_table import read_rows
from clip_koa.grading.grader import Grader
from clip_koa.grading.pairing import pair_files
from clip_koa.grading.pairs import PairedFiles
from dataset_script.names import CorpusError
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import grading_clip_koa
from modeling_clip_koa.calibration_clip_koa import PairPrior
from modeling_clip_koa.grading_clip_koa import Beside
from modeling_clip_koa.localisation_clip_koa import Knee

SIDE = 48
JOINT = torch.full((5, 5), 0.004).double() + torch.tensor([0.5, 0.2, 0.1, 0.05, 0.05]).double().diag()
PAIRS = {"joint": JOINT.tolist(), "weight": 1.5, "thresholds": {"0.90": 0.7, "0.50": 0.2}}


@pytest.fixture
def model(tmp_path, make_model, image_processor, tokenizer):
    """A model folder, whose calibration keeps a strong bond."""
    made = make_model()
    made.image_processor = image_processor
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    calibration = {"thresholds": {"0.90": 0.9, "0.50": 0.5}, "pairs": PAIRS}
    (tmp_path / "model" / "calibration.json").write_text(json.dumps(calibration))
    return tmp_path / "model"


@pytest.fixture
def knees(tmp_path):
    """Two people of two knees, whose files are no neighbours, one person of one knee, and one file without a name."""
    folder = tmp_path / "knees"
    for number, name in enumerate(
        ("0/9000001L.png", "0/9000002R.png", "2/9000001R.png", "3/9000002L.png", "4/9000003L.png", "4/knee.png")
    ):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        draw_knee(number % 5, "R", number, image_size=SIDE).save(folder / name)
    return folder


def _rows(table) -> dict[str, dict]:
    return {row["file"].rsplit("/", 1)[-1]: row for row in read_rows(table, table.suffix)}


def _probabilities(row, name="probability") -> list[float]:
    return [row[f"{name}_{grade}"] for grade in range(5)]


def test_the_two_files_of_a_person_are_combined(knees, model, tmp_path):
    alone, both = tmp_path / "alone.jsonl", tmp_path / "both.jsonl"
    assert main(["grade", "--model", model, "--output", alone, knees]) == 0
    assert main(["grade", "--model", model, "--pairs", "--output", both, knees]) == 0
    before, after = _rows(alone), _rows(both)
    assert list(after) == [
        "9000001L.png", "9000001R.png", "9000002R.png", "9000002L.png", "9000003L.png", "knee.png"
    ]  # fmt: skip
    prior = PairPrior(JOINT, 1.5)
    for one, other in (("9000001L.png", "9000001R.png"), ("9000002R.png", "9000002L.png")):
        singles = [torch.tensor(_probabilities(before[name]), dtype=torch.float64) for name in (one, other)]
        for name, partner, together in zip((one, other), (other, one), prior.combine(*singles), strict=True):
            row = after[name]
            np.testing.assert_allclose(_probabilities(row), together, atol=1e-6)
            np.testing.assert_allclose(
                _probabilities(row, "single_probability"), _probabilities(before[name]), atol=1e-6
            )
            assert row["combined"] and row["paired_with"].endswith(partner) and row["grade"] == together.argmax()
            assert row["expected_grade"] == pytest.approx(float(together @ torch.arange(5.0).double()), abs=1e-6)
            assert row["set_low"] <= row["grade"] <= row["set_high"]
    for name in ("9000003L.png", "knee.png"):
        assert not after[name]["combined"] and after[name]["paired_with"] is None
        assert after[name]["single_probability_0"] is None
        np.testing.assert_allclose(_probabilities(after[name]), _probabilities(before[name]), atol=1e-6)
    assert not any(row["combined"] for row in before.values())  # by default nothing is
    # Else two knees of different people would give the same table.
    assert max(abs(after[name]["probability_0"] - before[name]["probability_0"]) for name in after) > 0.01


def test_a_pair_is_graded_again_as_one(knees, model, tmp_path, capsys):
    table, fresh = tmp_path / "grades.csv", tmp_path / "fresh.csv"
    command = ["grade", "--model", model, "--pairs", "--output"]
    (knees / "3/9000002L.png").rename(tmp_path / "later.png")
    assert main([*command, table, knees]) == 0
    assert not _rows(table)["9000002R.png"]["combined"]
    (tmp_path / "later.png").rename(knees / "3/9000002L.png")  # the other knee arrives
    draw_knee(4, "L", 20, image_size=SIDE).save(knees / "0/9000001L.png")  # and one of a pair changes
    assert main([*command, table, knees]) == 0
    assert "(2 of them before" in capsys.readouterr().out
    assert main([*command, fresh, knees]) == 0
    assert _same(_rows(table), _rows(fresh))
    (knees / "2/9000001R.png").unlink()  # the other knee is gone
    fresh.unlink()
    assert main([*command, table, knees]) == main([*command, fresh, knees]) == 0
    assert _same(_rows(table), _rows(fresh)) and not _rows(table)["9000001L.png"]["combined"]
    capsys.readouterr()
    assert main([*command, table, knees]) == 0
    assert "is up to date: 5 X-rays" in capsys.readouterr().out


def _same(one: dict, other: dict) -> bool:
    """Whether two tables are equal, to what batches of another size leave of the last digits."""
    assert list(one) == list(other)
    for name, row in one.items():
        for column, value in row.items():
            assert other[name][column] == (pytest.approx(value, abs=1e-6) if isinstance(value, float) else value)
    return True


def test_a_stop_between_the_two_of_a_pair_loses_nothing(knees, model, tmp_path):
    table, rows = tmp_path / "grades.jsonl", tmp_path / ".grades.jsonl.rows"
    command = ["grade", "--model", model, "--pairs", "--output", table, knees]
    assert main(command) == 0
    whole = [json.loads(line) for line in table.read_text().splitlines()]
    table.unlink()
    rows.write_text("".join(json.dumps([row]) + "\n" for row in whole[:3]) + json.dumps([whole[3]])[:-20])
    assert main(command) == 0
    assert _same(dict(enumerate(read_rows(table, ".jsonl"))), dict(enumerate(whole)))


@pytest.mark.slow
def test_a_cluster_parts_no_pair(knees, model, tmp_path):
    pytest.importorskip("ray", reason="needs the extra `ray`")
    command = ["grade", "--model", model, "--pairs", "--output"]
    assert main([*command, tmp_path / "one.parquet", knees]) == 0
    assert main([*command, tmp_path / "many.parquet", "--ray", "local", "--cores", "1", knees]) == 0
    one, many = (list(read_rows(tmp_path / f"{name}.parquet", ".parquet")) for name in ("one", "many"))
    assert one == many and any(row["combined"] for row in many)


def test_batches_do_not_part_a_pair(tmp_path, model):
    folder = tmp_path / "many"
    folder.mkdir()
    draw_knee(0, "R", 0, image_size=SIDE).save(folder / "0.png")
    for number in range(9):
        for side in "LR":
            draw_knee(number % 5, side, number, image_size=SIDE).save(folder / f"{9000001 + number}{side}.png")
    paired = pair_files(sorted(map(str, folder.iterdir())))
    graded = list(Grader(str(model), pairs=paired.firsts).grade(paired.files))
    assert [xray.grade.combined for xray in graded] == [False] + 18 * [True]


def test_a_print_says_so(knees, model, capsys):
    assert main(["grade", "--model", model, "--pairs", knees]) == 0
    printed = capsys.readouterr().out
    assert printed.count("Read with the person's other knee; by itself it would be KL") == 4


def test_one_that_cannot_be_read_leaves_the_other_alone(knees, model, tmp_path):
    (knees / "2/9000001R.png").write_bytes(b"no picture")
    table = tmp_path / "grades.csv"
    assert main(["grade", "--model", model, "--pairs", "--output", table, knees]) == 1
    rows = _rows(table)
    assert rows["9000001R.png"]["error"] and rows["9000001L.png"]["grade"] is not None
    assert not rows["9000001L.png"]["combined"] and rows["9000002L.png"]["combined"]


def test_heat_maps_are_of_the_combined_grade(knees, model, tmp_path):
    table, maps = tmp_path / "grades.csv", tmp_path / "maps"
    command = ["grade", "--model", model, "--pairs", "--explain", maps, "--output", table, knees]
    assert main(command) == 0
    names = {path.name.split("-")[0]: path.stem.rsplit("-", 1)[1] for path in maps.glob("*-*.png")}
    assert names == {name.split(".")[0]: row["name"].split()[0] for name, row in _rows(table).items()}


def _dicom(path, patient, study, side, number):
    cells = np.asarray(draw_knee(number % 5, side, number, image_size=SIDE))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(write_dicom(cells, PatientID=patient, StudyInstanceUID=study, ImageLaterality=side))
    return str(path)


def test_dicom_files_of_one_study_and_person(tmp_path, model):
    files = [
        _dicom(tmp_path / name, patient, study, side, number)
        for number, (name, patient, study, side) in enumerate([
            ("films/001", "PERSON-A", "1.2.1", "R"),
            ("films/002", "PERSON-B", "1.2.3", "R"),
            ("films/003", "PERSON-A", "1.2.1", "L"),
            ("films/004", "PERSON-A", "1.2.2", "L"),  # another study
            ("films/005", "PERSON-B", "1.2.3", "R"),  # the same side again
            ("films/006", "PERSON-C", "1.2.3", "L"),  # another person
            ("films/007", None, None, "L"),
            ("films/008", None, None, "R"),
        ])
    ]  # fmt: skip
    paired = pair_files(files)
    assert paired.firsts == {files[0]} and paired.files == [files[0], files[2], files[1], *files[3:]]
    table = tmp_path / "grades.csv"
    assert main(["grade", "--model", model, "--pairs", "--output", table, tmp_path / "films"]) == 0
    assert [row["combined"] for row in _rows(table).values()] == [True, True] + 6 * [False]
    assert "PERSON" not in table.read_text() and "1.2.1" not in table.read_text()


def test_visits_are_told_by_their_folders(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    files = [f"{visit}/9000001{side}.png" for visit in ("00", "12") for side in "LR"]
    others = ["00/x/9000002L.png", "00/y/9000002R.png", "00/9000001L_2.png", "00/9000001.png"]
    for file in (*files, *others):
        Path(file).parent.mkdir(parents=True, exist_ok=True)
        draw_knee(0, "L", 0, image_size=SIDE).save(file)
    assert pair_files(files).firsts == {files[0], files[2]}
    assert pair_files([*files, *others[:2]]).firsts == {
        files[0],
        files[2],
        "00/x/9000002L.png",
    }
    assert not pair_files([files[0], "00/9000001L_2.png", files[1]]).firsts
    assert not pair_files(["00/9000001.png", files[0]]).firsts


def test_a_table_beside_the_files_tells(tmp_path, model):
    """As `clip-koa frame` writes it: the names tell nothing, and a person comes twice."""
    corpus = tmp_path / "corpus"
    (corpus / "xrays").mkdir(parents=True)
    rows = [
        ("a", "P1", "R", "00"),
        ("b", "P1", "L", "12"),
        ("c", "P1", "L", "00"),
        ("d", "", "L", ""),
        ("e", "P1", "R", "12"),
    ]
    lines = ["file_name,label,person_id,laterality,visit"]
    for number, (name, person, side, visit) in enumerate(rows):
        draw_knee(number % 5, "R", number, image_size=SIDE).save(corpus / "xrays" / f"{name}.png")
        lines.append(f"xrays/{name}.png,0,{person},{side},{visit}")
    (corpus / "metadata.csv").write_text("\n".join(lines))
    table = tmp_path / "grades.csv"
    assert main(["grade", "--model", model, "--pairs", "--output", table, corpus / "xrays"]) == 0
    found = {name: (row["paired_with"] or "")[-5:] for name, row in _rows(table).items()}
    assert found == {"a.png": "c.png", "c.png": "a.png", "b.png": "e.png", "e.png": "b.png", "d.png": ""}
    assert "P1" not in table.read_text()
    (corpus / "metadata.csv").write_text("file_name,label\nxrays/a.png,0")
    with pytest.raises(CorpusError, match="metadata.csv has no column"):
        pair_files([str(corpus / "xrays" / "a.png")])


def test_who_is_whose_partner():
    paired = PairedFiles(list("abcdef"), frozenset("bd"))  # bc and de
    assert [paired.partner(number) for number in range(6)] == [None, "c", "b", "e", "d", None]


@pytest.fixture
def film(tmp_path, monkeypatch):
    """A film of two knees, which a stand-in for the locator halves."""
    both = Image.new("L", (2 * SIDE, SIDE))
    for number in range(2):
        both.paste(draw_knee(number, "R", 2 * number, image_size=SIDE), (number * SIDE, 0))
    both.save(tmp_path / "film.png")

    def halves(model, locator, pictures):
        return [
            [Knee((0, 0, SIDE, SIDE)), Knee((SIDE, 0, 2 * SIDE, SIDE))]
            if picture.width > picture.height
            else [Knee((0, 0, *picture.size), framed=True)]
            for picture in pictures
        ]

    monkeypatch.setattr(grading_clip_koa, "find_knees", halves)
    monkeypatch.setattr(Beside, "has_locator", True)
    monkeypatch.setattr(Beside, "locator", None)
    return tmp_path / "film.png"


def test_both_knees_of_a_film(film, model, tmp_path):
    assert main(["grade", "--model", model, "--pairs", "--output", tmp_path / "grades.csv", film]) == 0
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    assert [(row["combined"], row["paired_with"]) for row in rows] == [("True", str(film))] * 2
    loaded = Grader(str(model)).model
    image = Image.open(film)
    alone, together = loaded.grade_film(image), loaded.grade_film(image, pairs=True)
    for row, one, combined in zip(rows, alone, together, strict=True):
        assert combined.combined and not one.combined
        assert combined.single_probabilities == one.probabilities and combined.box == one.box
        assert float(row["probability_0"]) == pytest.approx(combined.probabilities[0], abs=1e-6)
        assert float(row["single_probability_0"]) == pytest.approx(one.probabilities[0], abs=1e-6)
    again = loaded.combine_knees(*together)  # nothing is counted twice
    assert again == tuple(together)
    assert loaded.combine_knees(*together[::-1]) == again[::-1]


@pytest.mark.parametrize("film_side", ["L", "R"])
def test_a_film_of_both_knees_and_a_crop_of_the_same_person(film, model, tmp_path, capsys, film_side):
    """The film's knees have each other; nothing is graded again for the crop's sake."""
    folder = tmp_path / "person"
    folder.mkdir()
    film.rename(folder / f"9000001{film_side}.png")
    draw_knee(3, "R", 1, image_size=SIDE).save(folder / f"9000001{'LR'.replace(film_side, '')}.png")
    command = ["grade", "--model", model, "--pairs", "--output", tmp_path / "grades.jsonl", folder]
    assert main(command) == 0
    rows = list(read_rows(tmp_path / "grades.jsonl", ".jsonl"))
    assert sorted(row["combined"] for row in rows) == [False, True, True]
    assert all(row["paired_with"].endswith(f"{film_side}.png") for row in rows)
    capsys.readouterr()
    assert main(command) == 0
    assert "is up to date: 2 X-rays" in capsys.readouterr().out


def test_a_knee_that_is_cut_off_tells_nothing(film, model, monkeypatch):
    loaded = Grader(str(model)).model
    knees = [Knee((0, 0, SIDE, SIDE), outside=0.3), Knee((SIDE, 0, 2 * SIDE, SIDE))]
    monkeypatch.setattr(grading_clip_koa, "find_knees", lambda model, locator, pictures: [knees for _ in pictures])
    assert not any(grade.combined for grade in loaded.grade_film(Image.open(film), pairs=True))


@pytest.mark.parametrize("kept", [None, {"thresholds": {"0.90": 0.9}}])
def test_a_model_without_a_pair_prior_says_what_to_do(knees, model, capsys, kept):
    (model / "calibration.json").unlink() if kept is None else (model / "calibration.json").write_text(
        json.dumps(kept)
    )
    assert main(["grade", "--model", model, "--pairs", knees]) == 2
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert "keeps no pair prior: calibrate it anew (clip-koa calibrate" in told
    assert main(["grade", "--model", model, knees]) == 0  # and grades without it as before


@pytest.mark.parametrize(
    "wrong",
    [{"joint": [[1.0]]}, {"weight": 7}, {"weight": "much"}, {"joint": None}, {"thresholds": {"0.90": float("nan")}}],
)
def test_a_damaged_pair_prior(knees, model, capsys, wrong):
    text = json.dumps({"thresholds": {"0.90": 0.9}, "pairs": PAIRS | wrong})
    (model / "calibration.json").write_text(text)
    assert main(["grade", "--model", model, "--pairs", knees]) == 2
    assert "calibration.json is damaged" in capsys.readouterr().err


def test_a_level_without_a_threshold(knees, model, capsys):
    assert main(["grade", "--model", model, "--pairs", "--level", "0.5", knees]) == 0
    kept = {"thresholds": {"0.90": 0.9, "0.50": 0.5}, "pairs": PAIRS | {"thresholds": {"0.90": 0.9}}}
    (model / "calibration.json").write_text(json.dumps(kept))
    assert main(["grade", "--model", model, "--pairs", "--level", "0.5", knees]) == 2
    assert "level 0.5" in capsys.readouterr().err
