"""The API's files, as several callers at once use them."""

from pathlib import Path

from starlette.requests import Request

from clip_koa.webapp.uploads import Uploads
from clip_koa.webapp.visits import Limits
from webapp.conftest import run_async

BODY = b'--edge\r\nContent-Disposition: form-data; name="files"; filename="knee.png"\r\n\r\npixels\r\n--edge--\r\n'


def _upload() -> Request:
    async def receive():
        return {"type": "http.request", "body": BODY, "more_body": False}

    headers = [(b"content-type", b"multipart/form-data; boundary=edge"), (b"content-length", str(len(BODY)).encode())]
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
