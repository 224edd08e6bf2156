"""What the corpus's commands write: a file or a folder whole, or nothing, told in a line."""

import re

import pytest
from conftest import ROOT, largest_file
from PIL import Image

from dataset_script.files import WriteError, new_folder, write_picture
from dataset_script.synthetic import main as draw


def test_a_folder_is_put_in_place_whole_or_not_at_all(tmp_path):
    folder = tmp_path / "corpus"
    with pytest.raises(RuntimeError), new_folder(folder) as unfinished:
        (unfinished / "half").touch()
        raise RuntimeError
    assert not list(tmp_path.iterdir())
    with new_folder(folder) as unfinished:
        (unfinished / "whole").touch()
        assert not folder.exists()
    assert [path.name for path in tmp_path.rglob("*")] == ["corpus", "whole"]
    with pytest.raises(WriteError, match="corpus is not an empty folder"), new_folder(folder):
        pass
    with pytest.raises(WriteError, match="whole is not an empty folder"), new_folder(folder / "whole"):
        pass


def test_a_full_disk_leaves_no_half_folder(tmp_path, capsys):
    with largest_file(100):
        assert draw(["--output", str(tmp_path / "drawn"), "--people", "1", "--image_size", "64"]) == 2
    assert "File too large" in capsys.readouterr().err and not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", ["sheet", "sheet.txt", "sheet.gbr"])  # the last is a picture that Pillow only reads
def test_a_picture_of_a_format_that_cannot_be_written_is_refused(name, tmp_path, capsys):
    assert draw(["--sheet", str(tmp_path / name), "--image_size", "32"]) == 2
    told = capsys.readouterr().err
    assert "sheet.png" in told and len(told.splitlines()) == 1 and not list(tmp_path.iterdir())
    write_picture(tmp_path / "sheet.JPG", Image.new("L", (8, 8)))
    with Image.open(tmp_path / "sheet.JPG") as written:
        assert written.format == "JPEG"


def test_nothing_else_puts_a_file_in_place():
    """Files and new folders have one place; checkpoints and releases, which replace what stands there, their own.

    So has the spool, whose images must be on the disk itself before they are answered.
    """
    homes = {
        "dataset_script/files.py", "clip_koa/training/checkpoints.py", "clip_koa/publishing/workplace.py",
        "clip_koa/dicom/spool.py",
    }  # fmt: skip
    found = {
        path.relative_to(ROOT).as_posix()
        for package in ("clip_koa", "dataset_script", "studies")
        for path in (ROOT / package).rglob("*.py")
        if re.search(r"os\.replace\(|\.writing\b\"", path.read_text())
    }
    assert found == homes
