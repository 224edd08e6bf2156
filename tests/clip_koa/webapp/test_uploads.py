"""The API's files, as several callers at once use them."""

import json
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import pytest
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from clip_koa.grading.grader import GradedXray
from clip_koa.webapp import api
from clip_koa.webapp.bodies import BodyLimit
from clip_koa.webapp.turns import Turns
from clip_koa.webapp.uploads import Uploads
from clip_koa.webapp.visits import MEGABYTE, Limits, Refusal
from dataset_script.radiograph import read_radiograph
from webapp.conftest import run_async

HEAD = '--edge\r\nContent-Disposition: form-data; name="files"; filename="{}"\r\n\r\n'
FOOT = b"\r\n--edge--\r\n"


def _upload(content: bytes = b"pixels", name: str = "knee.png") -> Request:
    return _in_chunks([HEAD.format(name).encode(), content, FOOT])


def _in_chunks(chunks: list[bytes]) -> Request:
    """An upload of a size that no header says; takes the chunks out of the list."""

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    headers = [(b"content-type", b"multipart/form-data; boundary=edge"), (b"transfer-encoding", b"chunked")]
    return Request({"type": "http", "method": "POST", "headers": headers}, receive)


def test_an_upload_that_is_read_meanwhile_stops_no_other(tmp_path, monkeypatch):
    """Between the listing of the folder and a look at what lies there, another caller's file goes."""
    uploads, listed = Uploads(tmp_path, Limits()), Path.iterdir

    def with_one_that_goes(folder):
        return iter([*listed(folder), *([tmp_path / "gone"] if folder == uploads.folder else [])])

    monkeypatch.setattr(Path, "iterdir", with_one_that_goes)
    (first,), (second,) = (run_async(uploads.take(_upload())) for _ in range(2))
    assert first != second
    assert uploads.read(first) == uploads.read(second) == (b"pixels", "knee.png")


@pytest.mark.parametrize(("waiting", "code", "taken"), [(1024, "too_large", 20), (5, "busy", 5)])
def test_an_upload_without_a_size_is_refused_as_soon_as_it_is_too_large(tmp_path, waiting, code, taken):
    uploads = Uploads(tmp_path, Limits(file_bytes=2 * MEGABYTE, waiting_bytes=waiting * MEGABYTE))
    chunks = [HEAD.format("knee.png").encode(), *[bytes(MEGABYTE)] * 200, FOOT]
    for _ in range(2):  # what was refused waits no longer
        left = list(chunks)
        with pytest.raises(Refusal, match=code):
            run_async(uploads.take(_in_chunks(left)))
        assert len(chunks) - len(left) <= taken + 2 and not list(tmp_path.iterdir())
    (path,) = run_async(uploads.take(_upload()))
    assert uploads.read(path) == (b"pixels", "knee.png")


@pytest.mark.parametrize("size", [None, 200 * MEGABYTE])
def test_no_other_body_is_read_whole(size):
    """Gradio's routes read JSON of any length into memory."""
    chunks, sent = [bytes(MEGABYTE)] * 200, []

    async def receive():
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message):
        sent.append(message)

    async def answer(request):
        return PlainTextResponse(str(len(await request.body())))

    headers = [(b"content-length", str(size).encode())] if size else [(b"transfer-encoding", b"chunked")]
    scope = {"type": "http", "method": "POST", "path": "/gradio_api/call/grade", "headers": headers}
    route = Route("/gradio_api/{rest:path}", answer, methods=["POST"])
    app = Starlette(routes=[route], middleware=[Middleware(BodyLimit, limits=Limits())])
    run_async(app(dict(scope), receive, send))
    assert sent[0]["status"] == 413 and len(chunks) > 200 - 70
    assert json.loads(sent[1]["body"]) == {"refused": "too_large", "values": {"megabytes": 50}}
    chunks[:] = [b"[", b"]"]
    sent.clear()
    run_async(app(dict(scope), receive, send))
    assert (sent[0]["status"], sent[1]["body"]) == (200, b"2")


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("..", "upload"),
        ("films/..", "upload"),
        (".\x7f.", "upload"),
        ("膝" * 100 + ".png", "膝" * 83 + ".png"),
    ],
)
def test_any_name_can_be_written(tmp_path, name, kept):
    uploads = Uploads(tmp_path, Limits())
    (path,) = run_async(uploads.take(_upload(name=name)))
    assert uploads.read(path) == (b"pixels", kept)


def test_an_upload_is_decoded_in_its_turn_however_late_that_comes(tmp_path, monkeypatch, knee):
    decoded, waits, go = [], threading.Event(), threading.Event()

    class Watched(Turns):
        def submit(self, *arguments, **options):
            future = super().submit(*arguments, **options)
            waits.set()
            return future

    def read(content, name):
        decoded.append(name)
        return read_radiograph(content, name=name)

    monkeypatch.setattr(api, "read_radiograph", read)
    found = GradedXray("knee.png", error="knee.png: none.")
    grader = SimpleNamespace(framing="auto", grade_radiograph=lambda radiograph, framing: (radiograph, [found]))
    (tmp_path / "uploads").mkdir()
    turns, uploads = Watched(), Uploads(tmp_path / "uploads", Limits())
    (path,) = map(Path, run_async(uploads.take(_upload(knee().read_bytes()))))
    Turns.submit(turns, "another", go.wait)
    with ThreadPoolExecutor(1) as thread:
        answer = thread.submit(api.Api(grader, turns, uploads).grade, {"path": str(path)})
        try:
            assert waits.wait(30) and not decoded
            os.utime(path.parent, (0, 0))  # it has waited for long
            uploads.sweep()
            assert path.is_file()
        finally:
            go.set()
        assert answer.result(30)["not_graded"][0]["reason"] == "knee.png: none."
    assert decoded == ["knee.png"] and not path.parent.exists()
    turns.close()
