"""What the server lets in and out."""

import re

import pytest

from webapp.conftest import Visitor, upload

PICTURES = ("xray.png", "thumbnail.png", "mirror.png", "heat", "report.html", "report.pdf")


def _safe(answer):
    headers = answer.headers
    assert headers["x-content-type-options"] == "nosniff" and headers["referrer-policy"] == "no-referrer"
    policy = headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe-eval" not in policy
    return policy


def test_headers_of_every_kind_of_answer(visitor, knee):
    told = visitor.grade(knee().read_bytes())
    for path in ("", "page/page.js", "texts/en", "examples/kl0_left.png", "config", "nowhere", "gradio_api/info"):
        policy = _safe(visitor.http.get(path))
        assert "script-src 'self';" in policy and "unsafe-inline" not in policy and "frame-ancestors 'none'" in policy
    for view in PICTURES:
        answer = visitor.get(f"xrays/{told['id']}/{view}")
        assert answer.status_code == 200 and answer.headers["cache-control"] == "no-store", view
        _safe(answer)
    assert visitor.get(f"xrays/{told['id']}/report.html").headers["content-security-policy"].startswith("sandbox")
    for answer in (visitor.upload(b"no image"), visitor.get("table.csv"), visitor.get("xrays/else/xray.png")):
        assert answer.headers["cache-control"] == "no-store"


def test_no_script_stands_in_the_page_and_none_is_blocked(page, served, knee):
    html = page.request.get(served.url).text()
    assert re.findall(r"<script(?![^>]*src=)|\son\w+=|javascript:|style=", html) == []
    upload(page, knee())
    page.locator("#card .badge").wait_for()
    assert not page.faults  # a broken rule would be a fault on the console


def test_every_upload_has_a_path_of_its_own_that_nobody_guesses(served, visitor, knee):
    content = knee().read_bytes()
    first, second = visitor.grade(content), visitor.grade(content)
    assert first["id"] != second["id"] and len(first["id"]) >= 24 and len(visitor.token) >= 43
    other = Visitor(served.url)
    assert other.get(f"xrays/{first['id']}/xray.png").status_code == 410  # another's, even by its name
    assert other.http.get(f"visit/{'x' * 43}/xrays/{first['id']}/xray.png").status_code == 410
    paths = [other.http.post("gradio_api/upload", files={"files": ("a.png", content)}).json()[0] for _ in range(2)]
    assert paths[0] != paths[1]
    other.leave()


@pytest.mark.parametrize(
    "path",
    ["gradio_api/runs", "gradio_api/proxy=https://example.org", "gradio_api/run/grade", "monitoring", "docs",
     "openapi.json", "login", "svelte/x.js", "gradio_api/process_recording", "gradio_api/file=/etc/passwd",
     "page/../page.py", "page/%2e%2e/page.py", "examples/..%2f..%2fREADME.md"],
)  # fmt: skip
def test_nothing_else_is_answered(visitor, path):
    assert visitor.http.get(path).status_code in (403, 404)
    assert visitor.http.post(path).status_code in (403, 404, 405)


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "C:\\films\\Doe^Jane.dcm",
        '<img src=x onerror="alert(1)">.png',
        "x" * 5000,
        "",
        "a\0b",
        "膝.png",
        "..",
    ],
)
def test_names_do_no_harm(visitor, knee, name):
    told = visitor.grade(knee().read_bytes(), name)
    assert told["grade"] in range(5) and "/" not in told["name"] and "\\" not in told["name"] and told["name"]
    for kind in ("html", "pdf"):
        report = visitor.get(f"xrays/{told['id']}/report.{kind}")
        assert report.status_code == 200 and "\n" not in report.headers["content-disposition"]
        assert b"<img src=x" not in report.content


def test_a_name_is_shown_as_it_is(page, tmp_path, knee):
    evil = knee().rename(tmp_path / "<b onclick=alert(1)>&amp;.png")
    upload(page, evil)
    assert page.locator("#card .file").inner_text().startswith("<b onclick=alert(1)>&amp;.png")
    assert page.locator("#card b").count() == 0


def test_limits_are_told_in_words(visitor, knee, monkeypatch):
    large = visitor.http.post(f"{visitor.path}/xrays", content=(b"x" * 2**20 for _ in range(51)))
    assert large.status_code == 413 and large.json() == {"refused": "too_large", "values": {"megabytes": 50}}
    assert visitor.upload(knee().read_bytes()).status_code == 200  # the visit goes on
    file = ("a.png", b"x" * (50 * 2**20 + 1))
    assert visitor.http.post("gradio_api/upload", files={"files": file}).status_code == 413


def test_a_wrong_question_is_refused(visitor, knee):
    told = visitor.grade(knee().read_bytes())
    for against in (told["grade"], 7, -1):
        assert visitor.get(f"xrays/{told['id']}/heat", against=against).status_code == 400
    assert visitor.get(f"xrays/{told['id']}/heat", against="x").status_code == 422
    assert visitor.get(f"xrays/{told['id']}/report.exe").status_code == 404
