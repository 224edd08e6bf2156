"""predict.py's table: every X-ray once and in order, whole or not there, and gone on with after a stop."""

import csv
import json
import math
from pathlib import Path

import pandas
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from clip_koa.grading.grade_table import COLUMNS, GradeTable, GradeTableError, share_of, table_row
from clip_koa.grading.grader import GradedXray, find_xrays
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import Grade

ABOUT = {"model": "m", "level": 0.9}
# How predict.py computes unless told otherwise, which its tables keep.
COMPUTED = {"backend": "pytorch", "precision": "fp32", "keep_polarity": False}


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


def test_a_row_says_how_sure_the_model_is():
    row = table_row(_xray())
    assert list(row) == list(COLUMNS)
    assert row["expected_grade"] == pytest.approx(2.0)
    assert row["osteoarthritis_probability"] == pytest.approx(0.7)
    assert row["entropy"] == pytest.approx(-sum(p * math.log(p) for p in (0.1, 0.2, 0.4, 0.2, 0.1)))
    assert (row["set_low"], row["set_high"], row["flip_agreement"], row["laterality"]) == (1, 2, False, "L")
    unread = table_row(GradedXray("b.png", error="no image"))
    assert {name for name, value in unread.items() if value is not None} == {"file", "error"}


@pytest.mark.parametrize("ending", [".csv", ".jsonl", ".parquet"])
def test_all_formats_hold_the_same_rows(tmp_path, ending):
    table = GradeTable(tmp_path / f"grades{ending}", ABOUT)
    rows = [table_row(_xray("ä, b.png")), table_row(GradedXray("c.png", error='not "read"'))]
    table.add(rows)
    assert not table.path.exists()
    table.finish()
    assert [path.name for path in tmp_path.iterdir()] == [f"grades{ending}"]
    if ending == ".csv":
        found = list(csv.DictReader(table.path.open(encoding="utf-8")))
        expected = [{name: "" if value is None else str(value) for name, value in row.items()} for row in rows]
    elif ending == ".jsonl":
        found, expected = [json.loads(line) for line in table.path.read_text().splitlines()], rows
    else:
        found, expected = pandas.read_parquet(table.path), pandas.DataFrame(rows)
        assert list(found["file"]) == list(expected["file"]) and found["grade"].isna().tolist() == [False, True]
        assert found["entropy"][0] == expected["entropy"][0]
        return
    assert found == expected


def test_a_half_written_row_is_cut_off_and_another_table_is_not_gone_on_with(tmp_path):
    table = GradeTable(tmp_path / "grades.csv", ABOUT)
    table.add([table_row(_xray("a.png")), table_row(_xray("b.png"))])
    with open(table.rows, "a") as file:
        file.write('{"file": "c.pn')
    again = GradeTable(tmp_path / "grades.csv", ABOUT)
    assert again.done == 2 and [row["file"] for row in again.read()] == ["a.png", "b.png"]
    with pytest.raises(GradeTableError, match="was begun with"):
        GradeTable(tmp_path / "grades.csv", {"model": "other", "level": 0.9})
    again.finish()
    with pytest.raises(GradeTableError, match="exists: remove it"):
        GradeTable(tmp_path / "grades.csv", ABOUT)
    with pytest.raises(GradeTableError, match="must end in .csv, .jsonl, .parquet"):
        GradeTable(tmp_path / "grades.xlsx", ABOUT)


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


def test_a_stopped_run_goes_on_and_gives_the_same_table(model, knees, run_python, tmp_path):
    whole, stopped = tmp_path / "whole.jsonl", tmp_path / "stopped.jsonl"
    printed = run_python("predict.py", "--model", model, "--output", whole, knees, expect=1).stdout
    assert "19 X-rays graded, 1 not" in printed and "not for diagnosis" in printed
    rows = [json.loads(line) for line in whole.read_text().splitlines()]
    assert [row["file"] for row in rows] == find_xrays([knees])
    assert "9000007L.png" in rows[7]["error"] and rows[7]["grade"] is None
    assert rows[0]["laterality"] == "L"

    table = GradeTable(stopped, {"model": str(model), "level": 0.9, "files": 20, "share": [0, 20], **COMPUTED})
    table.add(rows[:16])
    run_python("predict.py", "--model", model, "--output", stopped, knees, expect=1)
    again = [json.loads(line) for line in stopped.read_text().splitlines()]
    assert again[:16] == rows[:16]
    assert [row["grade"] for row in again] == [row["grade"] for row in rows]
    assert again[19]["entropy"] == pytest.approx(rows[19]["entropy"], abs=1e-5)

    refused = run_python("predict.py", "--model", model, "--output", whole, knees, expect=2)
    assert "exists: remove it" in refused.stderr
    table = GradeTable(
        tmp_path / "other.csv", {"model": str(model), "level": 0.9, "files": 20, "share": [0, 20], **COMPUTED}
    )
    table.add([{**rows[0], "file": "elsewhere.png"}])
    mixed = run_python("predict.py", "--model", model, "--output", tmp_path / "other.csv", knees, expect=2)
    assert "holds elsewhere.png where" in mixed.stderr


def test_heat_maps_of_all_that_was_graded(run_python, model, knees, tmp_path):
    (knees / "more").mkdir()
    draw_knee(1, "L", 99, 48).save(knees / "more" / "9000000L.png")  # a name twice
    maps = tmp_path / "maps"
    run_python("predict.py", "--model", model, "--output", tmp_path / "a.csv", "--explain", maps, knees, expect=1)
    rows = list(csv.DictReader((tmp_path / "a.csv").open()))
    expected = {
        f"{number:06d}-{Path(row['file']).stem}-KL{row['grade']}.png"
        for number, row in enumerate(rows, 1)
        if not row["error"]
    }
    assert {file.name for file in maps.iterdir()} == expected and len(expected) == 20
    with Image.open(maps / sorted(expected)[0]) as picture:
        assert picture.size == (48, 48) and picture.mode == "RGB"


def test_processes_share_the_xrays(run_python, model, knees, tmp_path):
    """Two processes, one of them killed on its way and all started again: every X-ray once, in order."""
    output = tmp_path / "grades"
    command = ("predict.py", "--model", model, "--output", output, knees)
    # One of its X-rays is broken, but the other part is to come.
    alone = run_python(*command, RANK="0", WORLD_SIZE="2")
    assert "1 not" in alone.stdout and "the last process tells" in alone.stdout
    (first,) = output.glob("*.parquet")
    written = first.stat().st_mtime_ns
    about = json.dumps({"model": str(model), "level": 0.9, "files": 20, "share": [10, 20], **COMPUTED})
    done = [json.dumps(table_row(_xray(str(knees / f"{9000000 + number}L.png")))) for number in (10, 11)]
    rows = output / ".part-00001-of-00002.parquet.rows"
    rows.write_text("\n".join([about, *done, '{"file": "half a ro']))  # as a kill leaves it

    launch = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_processes.yaml")
    run_python(*launch, *command, expect=1, ACCELERATE_USE_CPU="true")
    assert first.stat().st_mtime_ns == written
    assert sorted(path.name for path in output.iterdir()) == [
        "part-00000-of-00002.parquet",
        "part-00001-of-00002.parquet",
    ]
    table = pandas.read_parquet(output)
    assert list(table["file"]) == [str(file) for file in sorted(knees.iterdir())]
    assert table["grade"].isna().sum() == 1
    assert list(table["name"][10:12]) == ["KL2", "KL2"]  # not graded a second time

    other = run_python(*command, expect=2, RANK="0", WORLD_SIZE="3")
    assert "of another number of processes than 3" in other.stderr
    one_file = run_python(*command[:-2], tmp_path / "a.csv", knees, expect=2, RANK="0", WORLD_SIZE="2")
    assert "2 processes write their parts into a folder" in one_file.stderr
    fewer = run_python(*command[:-1], knees / "9000001L.png", expect=2, RANK="0", WORLD_SIZE="2")
    assert "was made with" in fewer.stderr


def test_an_xray_that_one_process_cannot_read_does_not_stop_the_others(run_python, model, tmp_path):
    """A launcher stops all processes when one fails."""
    xrays = tmp_path / "xrays"
    xrays.mkdir()
    (xrays / "00.png").write_text("no image")
    for number in range(1, 80):  # the first process has the broken and the small ones, and ends long before the other
        draw_knee(number % 5, "L", number, 64 if number < 40 else 700).save(xrays / f"{number:02d}.png")
    launch = ("-m", "accelerate.commands.launch", "--config_file", "configs/accelerate/cpu_processes.yaml")
    command = ("predict.py", "--model", model, "--output", tmp_path / "grades", xrays)
    for _ in range(2):  # the second time all parts are whole
        run_python(*launch, *command, expect=1, ACCELERATE_USE_CPU="true")
        table = pandas.read_parquet(tmp_path / "grades")
        assert len(table) == 80 and table["grade"].isna().sum() == 1


@given(st.integers(0, 1000), st.integers(1, 70))
def test_shares_are_disjoint_whole_and_in_order(count, processes):
    shares = [share_of(count, process, processes) for process in range(processes)]
    assert [number for share in shares for number in share] == list(range(count))
    sizes = [len(share) for share in shares]
    assert max(sizes) - min(sizes) <= 1


def test_one_xray_is_graded_without_the_libraries_of_training(run_python, model, knees):
    """They would cost seconds at each start."""
    program = (
        # Transformers 4 brings scikit-learn by itself.
        "import gc, sys, transformers; transformers.CLIPModel, transformers.AutoImageProcessor; "
        "before = set(sys.modules); "
        "import predict; predict.main(sys.argv[1:]); "
        "print('loaded', [name for name in ('datasets', 'evaluate', 'matplotlib', 'pandas', 'sklearn', 'tensorboard') "
        "if name in set(sys.modules) - before], gc.isenabled())"
    )
    printed = run_python("-c", program, "--model", model, knees / "9000001L.png").stdout
    assert printed.splitlines()[-1] == "loaded [] True"
