"""Files: whole or not at all, told by name, and names of any bytes kept as text."""

import csv
import io
import os
import string

import pytest
from conftest import largest_file
from hypothesis import example, given
from hypothesis import strategies as st

from clip_koa.files import WriteError, as_text, path_of, write_file

# Names as a file system keeps them: any bytes but these two.
NAMES = st.binary(min_size=1, max_size=40).filter(lambda name: b"\0" not in name and b"/" not in name)
TRICKY = st.text("\\xf0aé=\n\udcff", min_size=1).map(os.fsencode)


@given(NAMES | TRICKY)
@example(b"knee \xff\xfe.png")
@example(b"\\xff.png")
@example(b"\\\\xff\xff")
@example("\u2028\u0085é漢.png".encode())
@example(b"=1+1.png")
def test_a_name_of_any_bytes_is_one_line_and_is_found_again(content):
    name = os.fsdecode(content)
    text = as_text(name)
    assert os.fsencode(path_of(text)) == content
    assert len(text.splitlines()) == 1 and text.encode("utf-8") and text[0] not in "=+-@\t\r"
    buffer = io.StringIO()
    csv.writer(buffer).writerow([text])
    assert next(csv.reader(io.StringIO(buffer.getvalue()))) == [text]


@given(
    st.text(string.ascii_letters + string.digits + " ._-()é漢🦵\\/", min_size=1).filter(lambda name: name[0] != "-")
)
def test_ordinary_names_stay_as_they_are(name):
    if "\\x" not in name:
        assert as_text(name) == name


def test_a_file_that_cannot_be_written_is_named_and_nothing_half_written_stays(tmp_path):
    path = tmp_path / "status.json"
    write_file(path, b"before")
    with largest_file(1000), pytest.raises(WriteError) as refused:
        write_file(path, bytes(2000))
    assert str(refused.value) == f"{path} could not be written: File too large."
    assert path.read_bytes() == b"before" and list(tmp_path.iterdir()) == [path]
    with pytest.raises(WriteError, match="status.json/new.json could not be written: Not a directory"):
        write_file(path / "new.json", b"")
