"""Inputs that are no local files: objects of a store, and tables that name X-rays."""

import csv
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pyarrow
import pyarrow.parquet
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from clip_koa.commands import main
from clip_koa.grading.grade_table import read_rows
from clip_koa.grading.inputs import NoXrays, find_xrays
from clip_koa.grading.sources import SourceError, stamp, stamp_at_hand, try_to_read
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.radiograph import Radiograph, RadiographError, read_radiograph
from dataset_script.synthetic import draw_knee


@pytest.fixture
def knee(tmp_path):
    """A drawn knee: its file."""
    draw_knee(2, "L", 1, 48).save(tmp_path / "9000001L.png")
    return tmp_path / "9000001L.png"


@pytest.fixture
def store(knee):
    """A store in memory that holds the knee twice, a broken one, and what is no X-ray."""
    system, content = MemoryFileSystem(), knee.read_bytes()
    for name, held in {
        "knees/b/9000002L": content,  # no suffix: its content tells
        "knees/9000001L.png": content,
        "knees/broken.png": b"no image",
        "knees/notes": b"text",
        "knees/.hidden/9000003L.png": content,
        "others/9000004L.png": content,
    }.items():
        system.pipe_file(f"/{name}", held)
    yield system
    system.store.clear()
    system.pseudo_dirs[:] = [""]


def test_objects_of_a_store_are_listed_as_files_of_a_folder_are(store):
    below = find_xrays(["memory://knees"])
    assert below == ["memory:///knees/9000001L.png", "memory:///knees/b/9000002L", "memory:///knees/broken.png"]
    assert find_xrays(["memory://knees/9*.png", "memory://others/9000004L.png"]) == [
        "memory:///knees/9000001L.png",
        "memory:///others/9000004L.png",
    ]
    with pytest.raises(NoXrays, match="memory://nowhere: no X-rays are there"):
        find_xrays(["memory://nowhere"])
    with pytest.raises(SourceError, match="nonsense://knees cannot be listed: .*nonsense"):
        find_xrays(["nonsense://knees"])


def test_an_object_is_read_as_the_file_that_it_is(store, knee):
    read, here = try_to_read("memory://knees/9000001L.png"), read_radiograph(knee)
    assert isinstance(read, Radiograph) and (read.laterality, read.person_id) == ("L", "9000001")
    assert read.image.tobytes() == here.image.tobytes() and read.source == "memory://knees/9000001L.png"
    for name, told in (("broken.png", "broken.png is not a PNG"), ("gone.png", "gone.png: there is no such object")):
        error = try_to_read(f"memory://knees/{name}")
        assert isinstance(error, RadiographError) and told in str(error)


@pytest.fixture
def sizeless(knee):
    """A web server that says no size and takes no range: the knee, a list of files, and one of 64 MB. What it sent."""
    pytest.importorskip("aiohttp", reason="fsspec reads HTTP by it")
    sent = {"/knees/large": 0}
    links = "".join(f'<a href="{name}">{name}</a>' for name in ("knee", "large"))

    class Server(BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(200)
            self.send_header("Content-Type", "text/html" if self.path == "/knees/" else "image/png")
            self.end_headers()
            self.close_connection = True
            if self.path == "/knees/":
                self.wfile.write(links.encode())
            elif self.path == "/knees/knee":
                self.wfile.write(knee.read_bytes())
            else:
                try:
                    for _ in range(64):
                        sent[self.path] += self.wfile.write(b"\x89PNG\r\n\x1a\n" + bytes(2**20 - 8))
                except ConnectionError:  # the other end has had enough
                    pass

        def log_message(self, *_):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/knees/", sent
    server.shutdown()
    server.server_close()


def test_no_more_is_taken_of_an_object_without_a_size_than_a_radiograph_has(sizeless, knee, monkeypatch):
    monkeypatch.setattr("clip_koa.grading.sources.MAX_BYTES", 2**21)
    url, sent = sizeless
    assert find_xrays([f"{url}knee"]) == [f"{url}knee"]
    assert set(find_xrays([url])) == {f"{url}knee", f"{url}large"}
    assert try_to_read(f"{url}knee").image.tobytes() == read_radiograph(knee).image.tobytes()
    error = try_to_read(f"{url}large")
    assert isinstance(error, RadiographError)
    assert str(error) == f"{url}large has more than 2,097,152 bytes: no radiograph is so large."
    time.sleep(0.5)  # what the server sends after that goes nowhere
    assert sent["/knees/large"] < 40 * 2**20  # of four times 64: asked for its size, its head and all of it


def test_a_listing_says_what_the_store_would(store):
    (listed,) = find_xrays(["memory://knees/9*.png"])
    assert stamp(listed) == stamp(str(listed)) == stamp_at_hand(listed)
    size, modified = stamp(listed)
    assert size == len(store.cat_file("/knees/9000001L.png"))
    assert modified.startswith(time.strftime("%Y-", time.gmtime())) and modified.endswith("Z")
    assert stamp_at_hand(str(listed)) is None  # nobody asks the store for each of millions
    assert stamp("memory://knees/gone.png") == (None, None)


def test_tables_name_xrays(knee, tmp_path):
    folder = tmp_path / "more"
    folder.mkdir()
    (folder / "metadata.csv").write_text("file_name,label\nb.png,1\ns3://bucket/c.png,2\n/a.png,0\nb.png,1\n")
    assert find_xrays([folder / "metadata.csv"]) == [f"{folder}/b.png", "s3://bucket/c.png", "/a.png"]
    # A table of grades: names as it writes them, and as they were given.
    pyarrow.parquet.write_table(pyarrow.table({"file": ["knees/\\xff.png", "a.png"]}), tmp_path / "grades.parquet")
    assert find_xrays([tmp_path / "grades.parquet"]) == ["knees/\udcff.png", "a.png"]
    for content, told in (("name\nb.png\n", "has no column file or file_name"), ("file\n", "names no X-rays")):
        (tmp_path / "bad.csv").write_text(content)
        with pytest.raises(NoXrays, match=told):
            find_xrays([tmp_path / "bad.csv"])
    (tmp_path / "bad.parquet").write_text("no Parquet")
    with pytest.raises(NoXrays, match="bad.parquet cannot be read as a table"):
        find_xrays([tmp_path / "bad.parquet"])


def test_a_table_of_a_store_is_brought_up_to_date(store, knee, tiny_start, tmp_path, capsys):
    model = tmp_path / "model"
    save_model_folder(model, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    table = tmp_path / "grades.csv"
    command = ("grade", "--model", model, "--output", table, "memory://knees")
    assert main(command) == 1
    rows = list(read_rows(table, ".csv"))
    assert [row["grade"] is None for row in rows] == [False, False, True]
    assert rows[0]["entropy"] == rows[1]["entropy"] and rows[0]["file_bytes"] == knee.stat().st_size
    store.pipe_file("/knees/broken.png", knee.read_bytes())
    assert main(command) == 0 and "3 X-rays graded (2 of them before" in capsys.readouterr().out
    assert main(command) == 0 and "is up to date: 3" in capsys.readouterr().out
    assert main((*command, "--pairs")) == 2
    assert "--pairs and --dicom_results need files on this machine" in capsys.readouterr().err
    # The names alone, which say nothing of size and time: a store is not asked again for what has a row.
    with open(tmp_path / "names.csv", "w", newline="") as file:
        csv.writer(file).writerows([["file"], *([row["file"]] for row in rows)])
    store.pipe_file("/knees/9000001L.png", knee.read_bytes())
    assert main((*command[:-1], tmp_path / "names.csv")) == 0
    assert "is up to date: 3" in capsys.readouterr().out
