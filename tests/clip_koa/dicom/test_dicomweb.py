"""`clip-koa fetch` before archives that limit, refuse, or answer nonsense: one of a few lines, without Orthanc."""

import io
import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit

import pydicom
import pytest

from clip_koa.commands import main
from clip_koa.dicom import dicomweb as module
from dicom.pacs import knee

_LEVELS = {"studies": "StudyInstanceUID", "series": "SeriesInstanceUID", "instances": "SOPInstanceUID"}


class Web:
    """An archive over DICOMweb that holds datasets in a list.

    Attributes:
        page: rows of one answer; None: all, whatever the offset.
        status: what it answers to everything, where that is not 200.
        answers: (method, last part of the path) -> (status, content), in place of what it would answer.
    """

    def __init__(self):
        self.held, self.page, self.status, self.answers, self.headers, self.stored = [], 100, 200, {}, [], 0

    def answer(self, method: str, address: str, headers, body: bytes) -> tuple[int, str, bytes]:
        self.headers.append(dict(headers))
        url = urlsplit(address)
        parts = url.path.strip("/").split("/")
        if self.status != 200:
            return self.status, "text/plain", b"Invented^Person"
        level = parts[-1] if parts[-1] in _LEVELS else "one"
        if (method, level) in self.answers:
            status, content = self.answers[method, level]
            return status, "application/dicom+json", content
        if method == "POST":
            return self.store(headers, body)
        within = dict(zip(("studies", "series", "instances"), parts[1::2], strict=False))
        options = {key: value[0] for key, value in parse_qs(url.query).items()}
        found = [one for one in self.held if all(one.get(_LEVELS[key]) == value for key, value in within.items())]
        if level == "one":
            return self.give(found)
        for keyword in ("SOPInstanceUID", "StudyDate"):
            if keyword in options:
                found = [one for one in found if one.get(keyword) == options[keyword]]
        rows = {one.get(_LEVELS[level]): one for one in found}
        rows = [json.loads(row(one)) for one in rows.values()]
        begin = int(options.get("offset", 0)) if self.page else 0
        rows = rows[begin : begin + (self.page or len(rows))]
        return 200, "application/dicom+json", json.dumps(rows).encode()

    def give(self, found):
        if not found:
            return 404, "text/plain", b""
        content = io.BytesIO()
        found[0].save_as(content, enforce_file_format=True)
        body = b"--x\r\nContent-Type: application/dicom\r\n\r\n" + content.getvalue() + b"\r\n--x--\r\n"
        return 200, 'multipart/related; type="application/dicom"; boundary=x', body

    def store(self, headers, body: bytes):
        for part in body.split(b"Content-Type: application/dicom\r\n\r\n")[1:]:
            self.held.append(pydicom.dcmread(io.BytesIO(part.rsplit(b"\r\n--", 1)[0])))
            self.stored += 1
        return 200, "application/dicom+json", b'{"00081199": {"vr": "SQ", "Value": []}}'


def row(one) -> str:
    """The attributes of a row of a search, in DICOM JSON."""
    wanted = pydicom.Dataset()
    for keyword in (*_LEVELS.values(), "Modality"):
        wanted[keyword] = one[keyword]
    return wanted.to_json()


@pytest.fixture
def web(monkeypatch):
    """An archive with one knee, at its address `url`."""
    monkeypatch.setattr(module, "_PAUSE", 1)
    web = Web()
    web.held.append(pydicom.dcmread(io.BytesIO(knee(1))))

    class Handler(BaseHTTPRequestHandler):
        def handle_all(self):
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            while self.headers.get("Transfer-Encoding") == "chunked" and (size := int(self.rfile.readline(), 16)):
                body += self.rfile.read(size)
                self.rfile.readline()
            status, kind, content = web.answer(self.command, self.path, self.headers, body)
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_POST = handle_all

        def log_message(self, *_):
            """Nothing."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    web.url = f"http://127.0.0.1:{server.server_port}"
    yield web
    server.shutdown()
    server.server_close()


@pytest.fixture
def fetch(web, tiny_model, capsys, caplog):
    """Runs the command; gives its exit status and all that it said, in which there is no patient."""

    def run(*options):
        status = main(["fetch", "--model", tiny_model, "--dicomweb", web.url, *options])
        said = "".join(capsys.readouterr()) + caplog.text
        assert "Invented" not in said and "INVENTED" not in said and "Traceback" not in said
        return status, said

    return run


@pytest.mark.parametrize("page", [1, 2, None])
def test_all_is_found_page_by_page_and_not_graded_twice(web, fetch, page, monkeypatch):
    monkeypatch.setenv(module.TOKEN, "secret")
    web.page = page
    web.held += [pydicom.dcmread(io.BytesIO(knee(number))) for number in (2, 3)]
    status, said = fetch("--query", "StudyDate=20200102")
    assert status == 0 and "3 graded, 0 graded before" in said and web.stored == 6
    assert {headers.get("Authorization") for headers in web.headers} == {"Bearer secret"} and "secret" not in said
    status, said = fetch("--query", "StudyDate=20200102")
    assert status == 0 and "0 graded, 3 graded before" in said and web.stored == 6


def test_a_study_without_radiographs_has_nothing_to_grade(web, fetch):
    web.held[0].Modality = "MR"
    status, said = fetch("--study", web.held[0].StudyInstanceUID)
    assert status == 0 and "0 graded" in said and web.stored == 0
    assert fetch("--query", "StudyDate=19990101")[0] == 0


@pytest.mark.parametrize(
    "code, words", [(401, "status 401"), (403, "status 403"), (404, "status 404"), (500, "500"), (503, "5 tries")]
)
def test_an_archive_that_refuses_is_told_in_a_line(web, fetch, code, words):
    web.status = code
    status, said = fetch("--study", web.held[0].StudyInstanceUID)
    assert status == 2 and words in said.splitlines()[-1]


@pytest.mark.parametrize("level", ["series", "instances"])
@pytest.mark.parametrize("content", [b"<html>Invented^Person</html>", b"[1, 2]", b'"text"', b'[{"0020000D": 7}]'])
def test_nonsense_is_told_in_a_line_or_is_nothing(web, fetch, level, content):
    web.answers["GET", level] = (200, content)
    status, said = fetch("--study", web.held[0].StudyInstanceUID)
    assert web.stored == 0
    assert status == 0 and "0 graded" in said or status == 2 and "DICOM" in said.splitlines()[-1]


@pytest.mark.parametrize("code, content", [(404, b""), (500, b"Invented^Person"), (200, b"nonsense"), (200, b"")])
def test_an_image_that_cannot_be_had_keeps_no_other_back(web, fetch, code, content):
    web.held.append(pydicom.dcmread(io.BytesIO(knee(2))))
    lost = web.held[0]
    give = web.give
    web.give = lambda found: (code, "multipart/related; boundary=x", content) if lost in found else give(found)
    status, said = fetch("--query", "StudyDate=20200102")
    assert status == 1 and "1 graded, 0 graded before, 1 without a grade" in said


@pytest.mark.parametrize(
    "code, content",
    [
        (202, b'{"00081198": {"vr": "SQ", "Value": [{"00081197": {"vr": "US", "Value": [272]}}]}}'),
        (409, b"Invented^Person"),
        (200, b"nonsense"),
    ],
)
def test_a_result_that_was_not_stored_is_not_called_graded(web, fetch, code, content):
    web.answers["POST", "studies"] = (code, content)
    status, said = fetch("--study", web.held[0].StudyInstanceUID)
    assert status == 1 and "0 graded, 0 graded before, 0 without a grade, 1 not stored" in said
    assert "a result was not stored" in said


@pytest.mark.parametrize(
    "options, words",
    [
        ([], "name studies by --study"),
        (["--study", "../1"], "--study ../1: a study's identifier"),
        (["--query", "Foo=1"], "DICOM has no attribute of this name"),
        (["--query", "StudyDate"], "write KEY=VALUE"),
        (["--study", "1", "--dicomweb", "localhost:8042"], "write an address such as"),
        (["--study", "1", "--dicomweb", "http://user:password@localhost/"], "write an address such as"),
        (["--study", "1", "--dicomweb", "http://127.0.0.1:1/"], "the archive does not answer (ConnectionError)."),
    ],
)
def test_what_cannot_be_asked_for_is_told_in_a_line(fetch, options, words):
    status, said = fetch(*options)
    assert status == 2 and words in said.splitlines()[-1] and "password" not in said
