"""The page that grades in the browser, from a plain file server, in headless Chromium."""

import base64
import functools
import http.server
import json
import threading
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from webapp.conftest import example_folder, model_folder, visiting  # noqa: F401

from clip_koa.browser import packages, site


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments):
        self.server.asked.append(self.path)


@contextmanager
def serving(folder: Path):
    """The folder as `python -m http.server` serves it; gives the server, with the paths that were `asked`."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    server.asked = []
    server.daemon_threads, server.handle_error = True, lambda *_: None  # a browser may hang up
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield server, f"http://127.0.0.1:{server.server_port}/"
    finally:
        server.shutdown()
        server.server_close()


class Modules:
    """The page's modules, called from Python."""

    def __init__(self, page):
        self.page = page

    def call(self, code: str, **given):
        """What an async function body gives; `m("gray")` imports a module, `gray(picture)` makes one of a picture."""
        given = {name: _sent(value) for name, value in given.items()}
        answer = self.page.evaluate(
            """async ([code, given]) => {
                const m = (name) => import(`/${name}.js`);
                const { Gray } = await m("gray");
                const bytes = (text) => Uint8Array.from(atob(text), (one) => one.charCodeAt(0));
                for (const [name, value] of Object.entries(given)) {
                    if (value?.pixels !== undefined) given[name] = new Gray(...value.size, bytes(value.pixels));
                    if (value?.bytes !== undefined) given[name] = bytes(value.bytes);
                }
                const run = new (Object.getPrototypeOf(async () => {}).constructor)("m", ...Object.keys(given), code);
                const answer = await run(m, ...Object.values(given));
                const text = (data) => {
                    let all = "";
                    for (let at = 0; at < data.length; at += 8192)
                        all += String.fromCharCode(...data.subarray(at, at + 8192));
                    return btoa(all);
                };
                if (answer instanceof Gray) return { pixels: text(answer.data), size: answer.size };
                if (answer instanceof Uint8Array) return { bytes: text(answer) };
                return answer;
            }""",
            [code, given],
        )
        if isinstance(answer, dict) and "pixels" in answer:
            width, height = answer["size"]
            return np.frombuffer(base64.b64decode(answer["pixels"]), np.uint8).reshape(height, width)
        return answer


def _sent(value):
    if isinstance(value, Image.Image):
        return {"pixels": base64.b64encode(value.tobytes()).decode(), "size": value.size}
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    return json.loads(json.dumps(value))


@pytest.fixture(scope="session")
def modules(browser, tmp_path_factory):
    """The modules without a model; they are served alone, under no policy, so that a test may call them."""
    folder = tmp_path_factory.mktemp("modules")
    for source in (ROOT / "clip_koa" / "browser" / "static").glob("*.js"):
        (folder / source.name).write_bytes(source.read_bytes())
    try:
        (folder / "dicomParser.min.js").write_bytes(packages.take_files()["dicomParser.min.js"])
        script = '<script src="dicomParser.min.js"></script>'
    except packages.PackageError:
        script = ""
    (folder / "index.html").write_text(f"<!DOCTYPE html><title>modules</title>{script}")
    with serving(folder) as (_, url):
        page = browser.new_page()
        page.goto(url)
        yield Modules(page)
        page.close()


@pytest.fixture(scope="session")
def packed():
    """The npm packages, which `make browser-packages` fetches."""
    missing = [package.archive for package in packages.PACKAGES if not (packages.FETCHED / package.archive).is_file()]
    if missing:
        pytest.skip(f"needs {', '.join(missing)}: make browser-packages")


@pytest.fixture(scope="session")
def site_folder(packed, model_folder, example_folder, tmp_path_factory) -> Path:  # noqa: F811
    """The page of a tiny model, put together."""
    pytest.importorskip("onnxruntime", reason="needs the extra onnx")
    folder = tmp_path_factory.mktemp("site") / "site"
    site.build_site(folder, str(model_folder), example_folder, "tiny")
    return folder


@pytest.fixture(scope="session")
def served_site(site_folder):
    """Its address."""
    with serving(site_folder) as (_, url):
        yield url


@pytest.fixture
def page(browser, served_site):
    """A visitor's page that has its model."""
    with visiting(browser, served_site) as page:
        page.locator("body[data-model]").wait_for()
        yield page
        assert not page.faults
