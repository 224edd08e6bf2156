"""A table in the making: one writer, nothing lost by kills or a full disk, brought up to date as the archive grows."""

import csv
import errno
import json
import multiprocessing
import os
import random
import sys
import time

import pyarrow.parquet
import pytest
from conftest import largest_file

from clip_koa.commands import main
from clip_koa.files import WriteError, path_of
from clip_koa.grading import run
from clip_koa.grading.grade_table import COLUMNS, FORMATS, GradeTableError, read_rows, table_at, table_row
from clip_koa.grading.grader import GradedXray
from clip_koa.grading.growing_table import GrowingTable
from clip_koa.grading.run import entries_of, write_table
from clip_koa.locks import InUseError
from modeling_clip_koa import Grade

MADE_BY = "model=0123 level=0.9"


class FileGrader:
    """Grades by the file's content, a digit; keeps what it was asked, and may take its time."""

    labels = [f"KL{grade}" for grade in range(5)]

    def __init__(self, seconds: float = 0.0):
        self.asked, self.seconds = [], seconds

    def grade_each(self, files):
        """One `GradedXray` for each file; no digit is an error."""
        for file in files:
            self.asked.append(os.path.basename(file))
            time.sleep(self.seconds)
            with open(file) as content:
                digit = content.read()
            if not digit.isdecimal():
                yield [GradedXray(file, error=f"{file} is no X-ray.")]
                continue
            shares = tuple(0.6 if grade == int(digit) else 0.1 for grade in range(5))
            yield [GradedXray(file, Grade(int(digit), f"KL{digit}", "", shares, shares, shares), laterality="L")]


@pytest.fixture
def archive(tmp_path):
    """Writes files `0.png`, `1.png` ... with a grade in each; returns all of the folder, in order."""
    folder = tmp_path / "archive"
    folder.mkdir()

    def write(**contents):
        for name, content in contents.items():
            (folder / f"{name}.png").write_text(str(content))
        return sorted(str(file) for file in folder.iterdir())

    write.folder = folder
    return write


def _bring_up_to_date(path, files, grader=None, made_by=MADE_BY) -> tuple[int, list[str]]:
    grader = grader or FileGrader()
    with GrowingTable(path) as table:
        table.begin(files, made_by)
        ungraded = write_table(grader, table)
    return ungraded, grader.asked


@pytest.fixture(params=FORMATS)
def path(request, tmp_path):
    return tmp_path / f"grades{request.param}"


def _rows(path):
    return list(read_rows(path, path.suffix))


def test_all_formats_hold_the_same_rows_and_are_read_back(path, archive):
    folder = os.fsencode(archive.folder)
    for name in (b"=1.png", b'comma, "quote".png', b"not utf-8 \xff\xe9.png", b"line\nbreak.png", "漢é.png".encode()):
        with open(folder + b"/" + name, "wb") as file:
            file.write(b"3" if name[:1] != b"l" else b"none")
    files = archive(a=0)
    assert _bring_up_to_date(path, files)[0] == 1
    rows = _rows(path)
    assert [path_of(row["file"]) for row in rows] == files
    assert [os.fsencode(path_of(row["file"])) for row in rows] == sorted(
        folder + b"/" + name for name in os.listdir(folder)
    )
    assert all(list(row) == list(COLUMNS) and row["made_by"] == MADE_BY for row in rows)
    assert [row["grade"] for row in rows].count(3) == 4 and sum(row["error"] is not None for row in rows) == 1
    assert {row["flip_agreement"] for row in rows} == {True, None}
    expected = [table_row(xray) for (xray,) in FileGrader().grade_each(files)]
    for row, other in zip(rows, expected, strict=True):
        assert {name: row[name] for name in list(COLUMNS)[:-3]} == {name: other[name] for name in list(COLUMNS)[:-3]}
    # As other programs read them.
    if path.suffix == ".csv":
        with open(path, encoding="utf-8", newline="") as file:
            cells = list(csv.DictReader(file))
        assert cells == [{name: "" if cell is None else str(cell) for name, cell in row.items()} for row in rows]
    elif path.suffix == ".jsonl":
        assert [json.loads(line) for line in path.read_text().splitlines()] == rows
    else:
        assert pyarrow.parquet.read_table(path).to_pylist() == rows


def test_what_was_graded_stays_what_is_new_is_graded_what_is_gone_leaves(path, archive, capsys):
    files = archive(a=0, c=2, d=3, broken="none")
    assert _bring_up_to_date(path, files) == (1, ["a.png", "broken.png", "c.png", "d.png"])
    os.unlink(files[0])
    time.sleep(0.01)
    files = archive(b=1, c=4)  # a new one between, and another X-ray under the same name
    assert _bring_up_to_date(path, files) == (1, ["b.png", "broken.png", "c.png"])
    rows = _rows(path)
    assert [(row["file"], row["grade"]) for row in rows] == list(zip(files, [1, None, 4, 3], strict=True))
    printed = capsys.readouterr().out
    assert "1 X-ray of the table is no longer named, and leaves it" in printed and "a.png" in printed
    assert "3 X-rays graded (1 of them before, 1 again as the file had changed), 1 not." in printed
    archive(broken=2)
    assert _bring_up_to_date(path, files)[0] == 0
    written = path.stat().st_mtime_ns
    assert _bring_up_to_date(path, files) == (0, []) and path.stat().st_mtime_ns == written
    assert "up to date: 4 X-rays" in capsys.readouterr().out
    assert _bring_up_to_date(path, files[::-1]) == (0, [])  # the order is that of the inputs
    assert [row["file"] for row in _rows(path)] == files[::-1]
    assert [entry.name for entry in path.parent.iterdir() if entry.name.startswith(".")] == []


def test_a_table_begun_over_nine_goes_on_over_eight_or_ten(path, archive):
    files = archive(**{f"x{number}": number % 5 for number in range(9)})
    for named in (files[1:], archive(y=1)):
        with GrowingTable(path) as table:
            table.begin(files, MADE_BY)
            waiting = next(table.batches(4))
            table.add(waiting, entries_of(FileGrader().grade_each(xray.file for xray in waiting)))
        assert not path.exists()
        _, asked = _bring_up_to_date(path, named)
        assert asked == [os.path.basename(file) for file in named if file not in files[:4]]
        assert [row["file"] for row in _rows(path)] == named
        path.unlink()


def test_a_table_that_was_made_otherwise_is_refused_by_what_differs(path, archive, tmp_path):
    files = archive(a=0, b=1)
    _bring_up_to_date(path, files)
    kept = path.read_bytes()
    for made_by in ("model=4567 level=0.9", "model=0123 level=0.5", MADE_BY + " polarity=kept"):
        with pytest.raises(GradeTableError) as refused:
            _bring_up_to_date(path, files, made_by=made_by)
        (differing,) = set(made_by.split()) - set(MADE_BY.split())
        assert f", now {differing}:" in str(refused.value) or f"with nothing, now {differing}" in str(refused.value)
        assert str(path) in str(refused.value) and "\n" not in str(refused.value)
    with pytest.raises(GradeTableError, match="holds none of the X-rays that are named now, but .*a.png"):
        other = tmp_path / "other.png"
        other.write_text("1")
        _bring_up_to_date(path, [str(other)])
    assert path.read_bytes() == kept
    path.write_bytes(b"file,grade\nsomething,1\n")
    with pytest.raises(GradeTableError, match="is no table that this version wrote"):
        _bring_up_to_date(path, files)
    assert path.read_bytes() == b"file,grade\nsomething,1\n"
    assert {entry.name for entry in tmp_path.iterdir()} == {"archive", "other.png", path.name}


def test_rows_of_other_code_stay_and_are_counted(path, archive, capsys):
    files = archive(a=0, b=1, c=2)
    _bring_up_to_date(path, files, made_by="model=0123 code=old level=0.9")
    written = path.read_bytes()
    counted = f" rows stay that another version of the code graded (column made_by): to grade all anew, remove {path}."
    assert counted not in capsys.readouterr().out
    new = "model=0123 code=new level=0.9"
    assert _bring_up_to_date(path, files, made_by=new) == (0, []) and path.read_bytes() == written
    printed = capsys.readouterr().out
    assert f"3{counted}" in printed and "is up to date: 3 X-rays" in printed

    time.sleep(0.01)
    files = archive(b=3, d=4)  # one has changed, one is new
    with GrowingTable(path) as table:  # stopped after the first of them, and gone on with
        table.begin(files, new)
        waiting = next(table.batches(1))
        table.add(waiting, entries_of(FileGrader().grade_each(xray.file for xray in waiting)))
    assert _bring_up_to_date(path, files, made_by=new) == (0, ["d.png"])
    assert f"2{counted}" in capsys.readouterr().out
    rows = [(row["grade"], row["made_by"].split()[1]) for row in _rows(path)]
    assert rows == [(0, "code=old"), (3, "code=new"), (2, "code=old"), (4, "code=new")]
    with pytest.raises(GradeTableError, match=r"was made with level=0.9, now level=0.5: remove it"):
        _bring_up_to_date(path, files, made_by="model=0123 code=newest level=0.5")


def test_rows_of_another_kind_or_model_are_not_gone_on_with(path, archive):
    files = archive(a=0, b=1)
    rows = path.with_name(f".{path.name}.rows")
    rows.write_text('{"model": "m", "level": 0.9}\n')
    with pytest.raises(GradeTableError, match="rows holds what no run of this version wrote: remove it"):
        _bring_up_to_date(path, files)
    rows.write_text(json.dumps([dict.fromkeys(COLUMNS) | {"file": files[0], "made_by": "model=9"}]) + "\n")
    with pytest.raises(GradeTableError, match="was made with model=9, now model=0123; no level, now level=0.9"):
        _bring_up_to_date(path, files)


def test_what_is_no_plain_file_is_not_read(tmp_path):
    """A device or a pipe would be read without an end."""
    device, pipe = tmp_path / "device.csv", tmp_path / "pipe.csv"
    device.symlink_to("/dev/full")
    os.mkfifo(pipe)
    for path in (device, pipe):
        with pytest.raises(GradeTableError, match=f"{path.name} is no plain file"):
            GrowingTable(path)


@pytest.mark.parametrize("name", ["t.CSV", "t.xlsx", "t.tsv", "there", "/dev/full"])
def test_a_name_is_a_tables_or_a_folders(name, tmp_path):
    (tmp_path / "there").touch()
    with pytest.raises(GradeTableError, match="a table ends in .csv, .jsonl, .parquet; any other name is a folder's"):
        table_at(tmp_path / name)
    assert table_at(tmp_path / "new.v2") == tmp_path / "new.v2" / "grades.parquet"
    assert table_at(tmp_path / "t.csv") == tmp_path / "t.csv"
    (tmp_path / "part-00000-of-00002.parquet").touch()
    with pytest.raises(GradeTableError, match="part-00000-of-00002.parquet is a part, as earlier versions wrote"):
        table_at(tmp_path)


def test_a_full_disk_under_what_is_printed_is_told(monkeypatch, capsys):
    def fill(options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))  # as print does: no file is named

    monkeypatch.setattr(run, "grade_inputs", fill)
    assert main(["grade", "knee.png"]) == 2
    assert capsys.readouterr().err == "clip-koa grade: what it prints could not be written: No space left on device.\n"


def test_names_that_no_table_has(tmp_path):
    with pytest.raises(GradeTableError, match="must end in .csv, .jsonl, .parquet"):
        GrowingTable(tmp_path / "grades.xlsx")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(GradeTableError, match="folder.csv is a folder"):
        GrowingTable(tmp_path / "folder.csv")
    (tmp_path / "file").touch()
    with pytest.raises(WriteError, match=r"file/grades.csv could not be written: Not a directory|File exists"):
        GrowingTable(tmp_path / "file" / "grades.csv").__enter__()


def test_two_writers(path, archive):
    files = archive(a=0)
    with GrowingTable(path) as table:
        table.begin(files, MADE_BY)
        with pytest.raises(InUseError, match=f"is being written by process {os.getpid()} on .* since"):
            _bring_up_to_date(path, files)
        write_table(FileGrader(), table)
    assert len(_rows(path)) == 1


def test_a_row_that_is_missing_keeps_the_table_from_being_called_done(path, archive):
    files = archive(a=0, b=1)
    with GrowingTable(path) as table:
        table.begin(files, MADE_BY)
        table.add([*next(table.batches(1))], entries_of(FileGrader().grade_each(files[:1])))
        with pytest.raises(GradeTableError, match=r"has no row of .*b\.png"):
            table.finish()
        assert not path.exists()
        write_table(FileGrader(), table)
    assert len(_rows(path)) == 2


def test_a_full_disk_is_told_by_name_and_gone_on_with(path, archive):
    """A limit on the size of files stands for the disk: once for the rows, and once for the table they give."""
    files = archive(**{f"x{number:02}": number % 5 for number in range(40)})
    with largest_file(10_000), pytest.raises(WriteError) as refused:
        _bring_up_to_date(path, files)
    rows = path.with_name(f".{path.name}.rows")
    assert str(refused.value) == f"{rows} could not be written: File too large." and not path.exists()
    ungraded, asked = _bring_up_to_date(path, files)
    assert 0 < len(asked) < 40 and ungraded == 0
    assert [row["file"] for row in _rows(path)] == files
    path.unlink()

    with GrowingTable(path) as table:
        table.begin(files, MADE_BY)
        for waiting in table.batches(16):
            table.add(waiting, entries_of(FileGrader().grade_each(xray.file for xray in waiting)))
    with largest_file(4_000), pytest.raises(WriteError) as refused:
        _bring_up_to_date(path, files)
    assert str(refused.value) == f"{path} could not be written: File too large."
    assert {entry.name for entry in path.parent.iterdir()} == {"archive", rows.name}
    assert _bring_up_to_date(path, files) == (0, []) and len(_rows(path)) == 40


def _lines(path) -> int:
    try:
        return path.read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def test_kills_lose_nothing(path, archive, monkeypatch):
    """kill -9 at eight random moments for each format: no row is lost, and the table is the uninterrupted one."""
    files = archive(**{f"x{number:02}": number % 5 for number in range(60)})
    _bring_up_to_date(path, files)
    expected = path.read_bytes()
    path.unlink()
    rows, kept, found = path.with_name(f".{path.name}.rows"), 0, []
    # Forked from a server: a fork of this process, in which other tests left threads and their locks, may hang.
    rng, fork = random.Random(path.suffix), multiprocessing.get_context("forkserver")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(sys.path))  # where the server finds what it imports beforehand
    fork.set_forkserver_preload([__name__])
    while len(found) < 8:
        process = fork.Process(target=_bring_up_to_date, args=(path, files, FileGrader(0.001)))
        process.start()
        wanted = kept + rng.choice((0, 0, 16, 32))
        while process.is_alive() and _lines(rows) < wanted:
            time.sleep(0.001)
        time.sleep(rng.uniform(0.0, 0.01))
        process.kill()
        process.join()
        if process.exitcode == 0:  # it had ended
            path.unlink()
            kept = 0
            continue
        left = _lines(rows)
        assert left >= kept or (left == 0 and path.exists())
        assert not path.exists() or path.read_bytes() == expected  # whole, or not there
        kept = left
        found.append(left)
    assert any(0 < left < 60 for left in found), found
    _bring_up_to_date(path, files)
    assert path.read_bytes() == expected
    assert {entry.name for entry in path.parent.iterdir()} == {"archive", path.name}
