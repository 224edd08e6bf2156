"""clip-koa grade's table: every X-ray once and in order, whole or not there, and gone on with after a stop."""

import csv
import hashlib
import json
import math
import os
import re
import shutil
import signal
import threading
from pathlib import Path

import pandas
import pytest
from PIL import Image

from clip_koa.commands import main
from clip_koa.files import path_of
from clip_koa.grading import provenance
from clip_koa.grading.grade_table import (
    COLUMNS,
    read_rows,
    table_row,
)
from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.grading.heat_maps import OVERVIEW, HeatMaps
from clip_koa.grading.inputs import find_xrays
from clip_koa.locks import WriterLock
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import Grade


@pytest.fixture(scope="module")
def model(tiny_start, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    return folder


@pytest.fixture
def knees(tmp_path):
    """20 X-rays, which is more than a batch, and one that is none."""
    folder = tmp_path / "knees"
    folder.mkdir()
    for number in range(20):
        draw_knee(number % 5, "L", number, 48).save(folder / f"{9000000 + number}L.png")
    (folder / "9000007L.png").write_bytes(b"no image")
    return folder


def _xray(file="a.png", probabilities=(0.1, 0.2, 0.4, 0.2, 0.1)) -> GradedXray:
    views = (probabilities, (0.0, 0.1, 0.5, 0.3, 0.1), (0.0, 0.1, 0.3, 0.5, 0.1))
    return GradedXray(file, Grade(2, "KL2", "definite", *views, confidence_set=(1, 2)), laterality="L")


def test_readings_are_averaged_and_noted_where_they_are_several(model, tmp_path, capsys):
    draw_knee(2, "L", 1, 96).save(tmp_path / "knee.png")
    tables = {}
    for readings in ("1", "3"):
        path = tmp_path / f"{readings}.csv"
        given = ["grade", "--model", model, "--backend", "pytorch", "--readings", readings]
        assert main([*map(str, given), "--output", str(path), str(tmp_path / "knee.png")]) == 0
        (tables[readings],) = read_rows(path, ".csv")
    expected = Grader(str(model)).model.grade(Image.open(tmp_path / "knee.png"), readings=3).probabilities
    assert [float(tables["3"][f"probability_{grade}"]) for grade in range(5)] == pytest.approx(expected, abs=1e-4)
    assert tables["3"]["made_by"] == tables["1"]["made_by"] + " readings=3"
    # A table is of one number of readings.
    for before, now in (("1", "3"), ("3", "1")):
        capsys.readouterr()
        command = [*map(str, given[:-1]), now, "--output", str(tmp_path / f"{before}.csv"), str(tmp_path / "knee.png")]
        assert main(command) == 2
        assert f"was made with readings={before}, now readings={now}: remove it" in capsys.readouterr().err
    assert main(["grade", "--model", str(model), "--readings", "5", str(tmp_path / "knee.png")]) == 2
    assert "--readings 5: use one of 1, 3." in capsys.readouterr().err
    with pytest.raises(ValueError, match="readings=5: use one of 1, 3"):
        Grader(str(model), readings=5)


def test_a_row_says_how_sure_the_model_is():
    row = table_row(_xray())
    assert list(row) == list(COLUMNS)
    assert row["expected_grade"] == pytest.approx(2.0)
    assert row["osteoarthritis_probability"] == pytest.approx(0.7)
    assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.1, 0.2, 0.4, 0.2, 0.1)))
    assert (row["set_low"], row["set_high"], row["flip_agreement"], row["laterality"]) == (1, 2, False, "L")
    unread = table_row(GradedXray("b.png", error="no image"))
    assert {name for name, value in unread.items() if value is not None} == {"file", "error"}


def test_patterns_name_files_and_each_file_counts_once(knees):
    files = find_xrays([knees / "900001*.png", knees / "9000010L.png"])
    assert [Path(file).name for file in files] == [f"90000{number}L.png" for number in range(10, 20)]
    with pytest.raises(FileNotFoundError, match="no file matches"):
        find_xrays([knees / "*.dcm"])


def test_the_list_of_an_archive_is_of_plain_strings_and_follows_no_dots(tmp_path, monkeypatch):
    (tmp_path / "deep").mkdir()
    (tmp_path / "deep" / "b.PNG").touch()
    (tmp_path / "a.dcm").touch()
    (tmp_path / "notes.txt").touch()
    (tmp_path / "broken.png").symlink_to(tmp_path / "nowhere.png")
    monkeypatch.chdir(tmp_path)
    assert find_xrays(["."]) == find_xrays([Path()]) == ["a.dcm", "deep/b.PNG"]
    assert find_xrays(["deep/b.PNG", "./deep", "**/*.dcm"]) == ["deep/b.PNG", "a.dcm"]
    assert find_xrays(["deep/../deep"]) == ["deep/../deep/b.PNG"]  # as given: what .. means depends on links
    with pytest.raises(FileNotFoundError, match="holds no X-rays"):
        (tmp_path / "empty").mkdir()
        find_xrays(["empty"])


def test_a_stopped_run_goes_on_and_gives_the_same_table(model, knees, run_command, tmp_path):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    printed = run_command("grade", "--model", model, "--output", whole, knees, expect=1).stdout
    assert "19 X-rays graded, 1 not" in printed and "not for diagnosis" in printed
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["file"] for row in rows] == find_xrays([knees])
    assert {row["made_by"].split()[2] for row in rows} == {"level=0.9"}
    assert "9000007L.png" in rows[7]["error"] and rows[7]["grade"] is None
    assert rows[0]["laterality"] == "L"

    (tmp_path / ".stopped.jsonl.rows").write_text(
        "".join(json.dumps([row]) + "\n" for row in rows[:16]) + '[{"file": "ha'
    )
    run_command("grade", "--model", model, "--output", stopped, knees, expect=1)
    again = [json.loads(line) for line in stopped.read_text().splitlines()]
    assert again[:16] == rows[:16]
    assert [row["grade"] for row in again] == [row["grade"] for row in rows]
    assert again[19]["entropy"] == pytest.approx(rows[19]["entropy"], abs=1e-5)


@pytest.mark.slow
def test_the_table_of_an_archive_that_grows(model, knees, run_command, tmp_path):
    """The same command each day; the model is known by its weights, not by its name."""
    output, copied = tmp_path / "grades.csv", tmp_path / "elsewhere"
    shutil.copytree(model, copied)
    (knees / "9000007L.png").unlink()
    run_command("grade", "--model", model, "--output", output, knees)
    before = list(csv.DictReader(output.open()))
    draw_knee(1, "L", 99, 48).save(knees / "8000000L.png")
    printed = run_command("grade", "--model", copied, "--output", output, knees).stdout
    assert "20 X-rays graded (19 of them before, 0 again as the file had changed), 0 not." in printed
    after = list(csv.DictReader(output.open()))
    assert after[1:] == before and after[0]["file"].endswith("8000000L.png")
    assert "is up to date: 20" in run_command("grade", "--model", copied, "--output", output, knees).stdout

    weights = copied / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"\x01")
    for options, differing in (
        (("--model", copied), "was made with model="),
        (("--model", model, "--level", ".8"), "level=0.9, now level=0.8"),
    ):
        refused = run_command("grade", *options, "--output", output, knees, expect=2)
        assert differing in refused.stderr and "remove it to begin anew" in refused.stderr
        assert list(csv.DictReader(output.open())) == after


def test_the_code_that_a_table_is_made_by_is_what_reads_and_grades(run_python):
    """Against what a process loads that reads a DICOM file."""
    program = (
        "import sys; from clip_koa.grading.grader import Grader; from modeling_clip_koa import CLIPKOAGrader; "
        "from dataset_script.radiograph import read_radiograph; read_radiograph('tests/data/dicom/window.dcm'); "
        "print(*(name for name in sys.modules if name.startswith(('dataset_script.', 'modeling_clip_koa.'))))"
    )
    loaded = set(run_python("-c", program).stdout.split())
    assert {"dataset_script.pixels", "dataset_script.dicom", "modeling_clip_koa.grading_clip_koa"} <= loaded
    # Of files in folders, and how files are written; they decide no grade.
    finding = {"dataset_script.listing", "dataset_script.sniffing", "dataset_script.files"}
    assert loaded - finding <= {f"{path.parent.name}.{path.stem}" for path in provenance.code_files()}


def test_a_name_that_is_not_utf8_is_graded_and_found_again(model, run_command, run_python, tmp_path):
    folder = tmp_path / "knees"
    folder.mkdir()
    for name in (b"knee \xff\xe9.png", b"broken \xff.png"):
        with open(os.fsencode(folder) + b"/" + name, "wb") as file:
            draw_knee(1, "L", 1, 48).save(file, "PNG")
            file.truncate(0 if name[:1] == b"b" else None)
    for output in (tmp_path / "grades.csv", tmp_path / "parts"):
        run_command("grade", "--model", model, "--output", output, folder, expect=1)
        table = pandas.read_csv(output) if output.suffix else pandas.read_parquet(output)
        assert list(table["file"]) == [f"{folder}/broken \\xff.png", f"{folder}/knee \\xff\\xe9.png"]
        assert table["error"][0].startswith(f"{folder}/broken \\xff.png is") and table["grade"][1] >= 0
        assert os.path.getsize(path_of(table["file"][1])) > 0
    maps = ("--explain", tmp_path / "maps")
    printed = run_python("predict.py", "--model", model, *maps, folder, expect=1, PYTHONIOENCODING="ascii").stdout
    assert "knee \\xff\\xe9.png" in printed and re.search(r"broken \\xff.png +not graded: ", printed)
    (picture,) = (tmp_path / "maps").glob("knee*.png")
    assert picture.name.startswith("knee \\xff\\xe9-")
    named = os.fsencode(folder) + b"/gone \xff.png"
    missing = run_command("grade", "--model", model, os.fsdecode(named), expect=2)
    assert "gone \\xff.png: there is no such file" in missing.stderr


def test_two_at_once_and_a_folder_that_cannot_be_written(model, knees, run_command, tmp_path):
    output = tmp_path / "grades.csv"
    with WriterLock(output):
        second = run_command("grade", "--model", model, "--output", output, knees, expect=2)
    assert f"{output} is being written by process {os.getpid()} on " in second.stderr
    assert len(second.stderr.splitlines()) == 1 and not output.exists()
    refused = run_command("grade", "--model", model, "--output", "/proc/grades.csv", knees, expect=2)
    assert refused.stderr.splitlines() == [
        "clip-koa grade: /proc/grades.csv could not be written: No such file or directory."
    ]


def test_heat_maps_of_all_that_was_graded(run_command, model, knees, tmp_path):
    (knees / "more").mkdir()
    draw_knee(1, "L", 99, 48).save(knees / "more" / "9000000L.png")  # a name twice
    maps = tmp_path / "maps"
    run_command("grade", "--model", model, "--output", tmp_path / "a.csv", "--explain", maps, knees, expect=1)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    graded = [row for row in rows if not row["error"]]
    expected = {
        f"{Path(row['file']).stem}-{hashlib.sha256(row['file'].encode()).hexdigest()[:8]}-KL{row['grade']}.png"
        for row in graded
    }
    assert {file.name for file in maps.iterdir()} == expected | {OVERVIEW} and len(expected) == 20
    with Image.open(maps / OVERVIEW) as overview:  # five in a row
        assert overview.size == (5 * 240, 4 * 240) and overview.mode == "RGB"
    with Image.open(maps / sorted(expected)[0]) as picture:
        assert picture.size == (48, 48) and picture.mode == "RGB"

    # A map that is missing is made, the others stay; that of an earlier grade goes.
    times = {file.name: file.stat().st_mtime_ns for file in maps.iterdir()}
    lost, *_ = sorted(expected)
    (maps / lost).rename(maps / lost.replace(lost[-7:], "KL9.png" if lost[-5] == "0" else "KL0.png"))
    run_command("grade", "--model", model, "--output", tmp_path / "a.csv", "--explain", maps, knees, expect=1)
    assert {file.name for file in maps.iterdir()} - {lost[:-7] + "KL9.png", OVERVIEW} == expected
    with Image.open(maps / OVERVIEW) as overview:  # of what this run drew
        assert overview.size == (240, 240)
    assert all((maps / name).stat().st_mtime_ns == times[name] for name in expected - {lost})


def test_heat_maps_among_the_inputs_are_no_x_rays(model, tmp_path):
    draw_knee(1, "L", 9, 48).save(tmp_path / "knee.png")
    arguments = ["grade", "--model", model, "--framing", "as_is", "--explain", tmp_path / "maps"]
    for _ in range(2):
        assert main([*arguments, "--output", tmp_path / "grades.csv", tmp_path]) == 0
        assert [row["file"] for row in read_rows(tmp_path / "grades.csv", ".csv")] == [str(tmp_path / "knee.png")]
    assert main([*arguments, tmp_path / "maps"]) == 2  # nothing else is left


def test_files_are_read_while_those_before_them_are_graded(model, knees, monkeypatch):
    files, ahead, read, grade_read = [], threading.Event(), Grader.read, Grader._grade_read

    def reading(grader, file):
        files.append(file)
        if len(files) == 18:  # of the second batch
            ahead.set()
        return read(grader, file)

    def grading(grader, chunk):
        assert ahead.wait(30)
        return grade_read(grader, chunk)

    monkeypatch.setattr(Grader, "read", reading)
    monkeypatch.setattr(Grader, "_grade_read", grading)
    named = find_xrays([knees])
    assert [xray.file for xray in Grader(str(model)).grade(named)] == files == named


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_who_stops_a_table_keeps_its_rows(model, knees, tmp_path, monkeypatch, capsys, number):
    read, files = Grader.read, []

    def stopped(grader, file):
        files.append(file)
        if len(files) == 18:  # of the second batch, while the first is graded
            os.kill(os.getpid(), number)
        return read(grader, file)

    monkeypatch.setattr(Grader, "read", stopped)
    command = ("grade", "--model", model, "--output", tmp_path / "grades.csv", knees)
    assert main(command) == 75
    *_, told = capsys.readouterr().err.splitlines()
    assert told.startswith(f"clip-koa grade: stopped by {number.name}. The X-rays graded so far are kept: the same")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".grades.csv.rows", "knees"]
    assert main(command) == 1 and "19 X-rays graded (15 of them before" in capsys.readouterr().out
    assert len(files) == 18 + 5  # the broken one is tried again


def test_what_is_refused_leaves_no_empty_rows(model, knees, tmp_path, capsys):
    """Heat maps of what cannot be written are asked for after the table was begun."""
    maps = tmp_path / "maps"
    maps.mkdir()
    for number in range(16):
        name = HeatMaps(None, maps).path(f"{knees}/{9000000 + number}L.png", "KL0").name
        for grade in range(5):
            (maps / name.replace("KL0", f"KL{grade}")).mkdir()  # in the place of each picture
    arguments = ("grade", "--model", model, "--output", tmp_path / "grades.csv", "--explain", maps, knees)
    assert main(arguments) == 2
    assert "could not be written: Is a directory" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["knees", "maps"]


def test_one_xray_is_graded_without_the_libraries_of_training(run_python, model, knees):
    """They would cost seconds at each start."""
    program = (
        # Transformers 4 brings scikit-learn by itself.
        "import gc, sys, transformers; transformers.CLIPModel, transformers.AutoImageProcessor; "
        "before = set(sys.modules); "
        "from clip_koa.commands import main; main(['grade', *sys.argv[1:]]); "
        "print('loaded', [name for name in ('datasets', 'evaluate', 'matplotlib', 'pandas', 'sklearn', 'tensorboard') "
        "if name in set(sys.modules) - before], "
        "[name for name in sys.modules if name.startswith('clip_koa.commands.')], gc.isenabled())"
    )
    printed = run_python("-c", program, "--model", model, knees / "9000001L.png").stdout
    assert printed.splitlines()[-1] == "loaded [] ['clip_koa.commands.grade'] True"


@pytest.mark.parametrize(
    ("name", "reason"), [("nowhere", "a Hub id is USER/NAME"), ("anna/nowhere", "cannot be loaded")]
)
def test_a_model_that_is_nowhere_is_told_in_a_line(name, reason, run_python, tmp_path):
    """Also while the Hub cannot be reached, which its library tries several times."""
    draw_knee(2, "L", 1, 96).save(tmp_path / "knee.png")
    program = "import sys, time; time.sleep = lambda _: None; from clip_koa.commands import main; sys.exit(main())"
    command = ("-c", program, "grade", "--model", name, tmp_path / "knee.png")
    told = run_python(*command, expect=2, HF_ENDPOINT="http://127.0.0.1:9", HF_HUB_OFFLINE="0").stderr.splitlines()
    assert len(told) == 1 and told[0].startswith(f"clip-koa grade: {name} ") and reason in told[0]
