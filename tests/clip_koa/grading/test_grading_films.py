"""Films in a table: a row for each knee, right knee first, and a reason where no knee is found."""

import csv
import json
from dataclasses import replace

import pytest
from PIL import Image

from clip_koa.commands import main
from clip_koa.grading import grader, sources
from clip_koa.grading.grade_table import EDGES, read_rows
from clip_koa.grading.grader import Grader
from dataset_script.radiograph import read_radiograph
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import grading_clip_koa, preprocessing_clip_koa
from modeling_clip_koa.grading_clip_koa import Beside
from modeling_clip_koa.localisation_clip_koa import Knee

SIDE = 48


def _halves(model, locator, pictures):
    """Stands for the fitted locator: halves that are not flat are knees; a square picture is framed already."""
    found = []
    for picture in pictures:
        width, height = picture.size
        if width == height:
            found.append([Knee((0, 0, width, height), framed=True)])
            continue
        boxes = [(0, 0, width // 2, height), (width // 2, 0, width, height)]
        extrema = [picture.crop(box).getextrema() for box in boxes]
        found.append([Knee(box) for box, (low, high) in zip(boxes, extrema, strict=True) if high - low > 30])
    return found


@pytest.fixture
def films(tmp_path):
    """A film of two knees, of one, of none, a framed knee, and a file that is damaged; and the knees themselves."""
    folder = tmp_path / "films"
    folder.mkdir()
    knees = [draw_knee(number, "R", 2 * number, image_size=SIDE) for number in range(2)]
    both = Image.new("L", (2 * SIDE, SIDE))
    for number, knee in enumerate(knees):
        both.paste(knee, (number * SIDE, 0))
    both.save(folder / "a_both.png")
    one = Image.new("L", (2 * SIDE, SIDE))
    one.paste(knees[1], (SIDE, 0))
    one.save(folder / "b_one.png")
    Image.new("L", (2 * SIDE, SIDE)).save(folder / "c_none.png")
    knees[0].save(folder / "d_framed.png")
    (folder / "e_damaged.png").write_bytes(b"\x89PNG\r\n\x1a\n no more")
    return folder


@pytest.fixture
def model(tmp_path, make_model, image_processor, tokenizer, monkeypatch):
    """A model folder whose model finds halves."""
    made = make_model()
    made.image_processor = image_processor
    made.save_pretrained(tmp_path / "model")
    tokenizer.save_pretrained(tmp_path / "model")
    monkeypatch.setattr(grading_clip_koa, "find_knees", _halves)
    monkeypatch.setattr(Beside, "has_locator", True)
    monkeypatch.setattr(Beside, "locator", None)
    return tmp_path / "model"


def test_a_row_for_each_knee(films, model, tmp_path):
    assert main(["grade", "--model", model, "--output", tmp_path / "grades.csv", films]) == 1
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    assert [(row["file"].rsplit("/", 1)[-1], row["laterality"]) for row in rows] == [
        ("a_both.png", "R"), ("a_both.png", "L"), ("b_one.png", ""), ("c_none.png", ""), ("d_framed.png", ""),
        ("e_damaged.png", ""),
    ]  # fmt: skip
    boxes = [tuple(row[f"box_{edge}"] for edge in EDGES) for row in rows]
    assert boxes[:3] == [("0", "0", "48", "48"), ("48", "0", "96", "48"), ("48", "0", "96", "48")]
    assert boxes[3] == ("",) * 4
    assert [row["laterality_assumed"] for row in rows] == ["True", "True", "False", "", "False", ""]
    assert "is assumed" in rows[0]["warning"] and "no knee seen from the front" in rows[3]["error"]
    assert not rows[3]["grade"] and not rows[3]["probability_0"]
    # Each knee has the grade that it has by itself: the film changes nothing.
    for place, cut in ((0, "d_framed.png"), (4, "d_framed.png")):
        alone = next(Grader(str(model)).grade([films / cut])).grade
        assert float(rows[place]["probability_2"]) == pytest.approx(alone.probabilities[2], abs=1e-6)
    assert rows[1]["probability_2"] == rows[2]["probability_2"]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet"])
def test_films_stay_in_a_table_that_grows(films, model, tmp_path, capsys, kind):
    table = tmp_path / f"grades.{kind}"
    (films / "e_damaged.png").unlink()
    (films / "c_none.png").unlink()
    assert main(["grade", "--model", model, "--output", table, films]) == 0
    before = list(read_rows(table, table.suffix))
    assert main(["grade", "--model", model, "--output", table, films]) == 0
    assert "is up to date: 3 X-rays" in capsys.readouterr().out
    (films / "0_both.png").write_bytes((films / "a_both.png").read_bytes())
    assert main(["grade", "--model", model, "--output", table, films]) == 0
    assert "4 X-rays graded (3 of them before" in capsys.readouterr().out
    after = list(read_rows(table, table.suffix))
    assert after[2:] == before and [row["laterality"] for row in after[:2]] == ["R", "L"]


def test_a_stopped_run_keeps_both_knees_of_a_film_or_none(films, model, tmp_path):
    table, rows = tmp_path / "grades.jsonl", tmp_path / ".grades.jsonl.rows"
    for name in ("c_none.png", "e_damaged.png"):
        (films / name).unlink()
    assert main(["grade", "--model", model, "--output", table, films]) == 0
    whole = [json.loads(line) for line in table.read_text().splitlines()]
    table.unlink()
    line = json.dumps(whole[:2])
    rows.write_text(line + "\n" + json.dumps(whole[2:3])[:-20])  # as a kill leaves it
    assert main(["grade", "--model", model, "--output", table, films]) == 0
    assert [json.loads(line) for line in table.read_text().splitlines()] == whole


def test_as_is_takes_every_xray_as_it_is(films, model, tmp_path, capsys):
    (films / "e_damaged.png").unlink()
    assert main(["grade", "--model", model, "--framing", "as_is", "--output", tmp_path / "grades.csv", films]) == 0
    rows = list(csv.DictReader((tmp_path / "grades.csv").open()))
    assert len(rows) == 4 and all(row["grade"] and not row["box_left"] for row in rows)
    assert main(["grade", "--model", model, "--output", tmp_path / "grades.csv", films]) == 2  # made otherwise
    assert "framing=as_is, now framing=auto" in capsys.readouterr().err


def test_lines_say_which_knee_of_a_film_they_are_of(films, model, capsys):
    assert main(["grade", "--model", model, films / "a_both.png", films / "d_framed.png"]) == 0
    seconds = [line for line in capsys.readouterr().out.splitlines() if " mirror  " in line]
    assert [line.split("  ")[0] for line in seconds] == ["right knee", "left knee", ""]


def test_a_model_that_finds_no_knees_says_so(films, model, capsys, monkeypatch):
    monkeypatch.setattr(Beside, "has_locator", False)
    assert main(["grade", "--model", model, films / "d_framed.png"]) == 0
    assert "the model cannot find knees" in capsys.readouterr().out


def test_a_heat_map_for_each_knee(films, model, tmp_path):
    arguments = ["grade", "--model", model, "--explain", tmp_path / "maps", "--output", tmp_path / "grades.csv"]
    assert main([*arguments, films]) == 1
    pictures = sorted(path for path in (tmp_path / "maps").iterdir() if path.name != "overview.png")
    maps = {path.name.split("-")[0]: [] for path in pictures}
    for path in pictures:
        maps[path.name.split("-")[0]].append(path)
    assert {name: len(paths) for name, paths in maps.items()} == {"a_both": 2, "b_one": 1, "d_framed": 1}
    assert ["-L-" in path.name for path in maps["a_both"]] == [True, False]
    with Image.open(maps["a_both"][1]) as one, Image.open(maps["d_framed"][0]) as alone:  # the same knee
        assert one.tobytes() == alone.tobytes()
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()}
    assert main([*arguments, films]) == 1
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "maps").iterdir()} == written


@pytest.mark.parametrize("in_negative", [0, 1])
def test_a_film_that_was_taken_for_a_negative_is_set_right_where_more_knees_are_found_so(
    films, model, monkeypatch, in_negative
):
    """A dark film of both knees looks like a negative to the reader, which knows crops."""
    from PIL import ImageOps

    from dataset_script.radiograph import read_radiograph

    right = read_radiograph(films / "a_both.png")
    wrong = replace(right, image=ImageOps.invert(right.image), inverted=True)

    def find(model, locator, pictures):
        pictures = list(pictures)
        found = zip(pictures, _halves(model, locator, pictures), strict=True)
        return [knees if one.tobytes() == right.image.tobytes() else knees[:in_negative] for one, knees in found]

    monkeypatch.setattr(grading_clip_koa, "find_knees", find)
    monkeypatch.setattr("clip_koa.grading.sources.read_radiograph", lambda *_, **__: wrong)
    grader = Grader(str(model), framing="auto")
    found, (first, second) = grader.grade_radiograph(wrong)
    assert found.image.tobytes() == right.image.tobytes() and not first.grade.inverted and not second.grade.inverted
    one, other = grader.grade_radiograph(right)[1]
    assert [first.grade, second.grade] == [one.grade, other.grade]
    assert grader.explain(first).image.tobytes() == right.image.crop(one.grade.box).tobytes()
    # A film that is a negative, which the reader left.
    negative = replace(wrong, inverted=False)
    found, xrays = grader.grade_radiograph(negative)
    assert found.inverted == (in_negative == 0) and len(xrays) == 2 - in_negative
    stated = replace(negative, is_dicom=True)  # the file states its gray scale
    assert len([xray for xray in grader.grade_radiograph(stated)[1] if not xray.error]) == in_negative


def test_a_film_that_the_reader_inverted_wrongly_is_graded_as_it_was(films, model, tmp_path, monkeypatch):
    """What tells an inverted crop tells nothing of a film: only its knees do."""
    arguments = ["grade", "--model", model, "--output", tmp_path / "grades.csv", films / "a_both.png"]
    assert main([*arguments, "--explain", tmp_path / "maps"]) == 0
    right = list(read_rows(tmp_path / "grades.csv", ".csv"))
    maps = {path.name: path.read_bytes() for path in (tmp_path / "maps").iterdir()}
    (tmp_path / "grades.csv").unlink()

    def upright_only(model, locator, pictures):
        found = _halves(model, locator, pictures := list(pictures))
        return [
            knees if picture.getpixel((0, 0)) < 128 else [] for picture, knees in zip(pictures, found, strict=True)
        ]

    monkeypatch.setattr(grading_clip_koa, "find_knees", upright_only)
    monkeypatch.setattr(preprocessing_clip_koa, "is_inverted", lambda gray: gray.width > gray.height)
    assert main([*arguments, "--explain", tmp_path / "again"]) == 0
    columns = ("grade", "inverted", "laterality", "box_left", "warning", "probability_0")
    found = list(read_rows(tmp_path / "grades.csv", ".csv"))
    assert [[row[name] for name in columns] for row in found] == [[row[name] for name in columns] for row in right]
    assert {path.name: path.read_bytes() for path in (tmp_path / "again").iterdir()} == maps
    assert main([*arguments, "--keep-polarity"]) == 2  # of another setting
    (tmp_path / "grades.csv").unlink()
    assert main([*arguments, "--keep-polarity"]) == 0


def test_large_files_are_graded_before_others_are_read(films, model, monkeypatch):
    read, graded = [], []
    monkeypatch.setattr(grader, "_MOST_PIXELS", 2 * SIDE * SIDE)
    monkeypatch.setattr(sources, "read_radiograph", lambda *a, **o: read.append(1) or read_radiograph(*a, **o))
    grade_films = Grader._grade_films
    monkeypatch.setattr(
        Grader, "_grade_films", lambda self, some: graded.append((len(read), len(some))) or grade_films(self, some)
    )
    rows = list(Grader(str(model), framing="auto").grade(sorted(films.iterdir())))
    assert graded == [(1, 1), (2, 1), (3, 1), (5, 1)]  # the framed knee waits for the damaged file, which is the last
    assert [row.file.rsplit("/", 1)[-1][0] for row in rows] == list("aabcde")
