"""The page in a process of its own, as a visitor's browser and as plain requests reach it."""

import asyncio
import os
import shutil
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path

import httpx
import pytest
import torch
from conftest import ROOT
from PIL import Image

from clip_koa.calibration.typicality import collect_features, fit_typicality, typicality_block
from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE
from modeling_clip_koa.calibration_clip_koa import typicality_file
from webapp.film_page import compose

pytest.importorskip("gradio", reason="needs the extra app")
WAIT = 30_000  # ms


@dataclass
class Served:
    """A page that runs."""

    url: str
    folder: Path  # `uploads` in it is the server's folder for temporary files, `log` what it prints
    process: subprocess.Popen


@contextmanager
def serve(folder: Path, *arguments, cwd=ROOT, program="app.py", **variables):
    """Runs `program` of the folder `cwd` until the end."""
    (folder / "uploads").mkdir(parents=True)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}/"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, str(program), *map(str, arguments), "--port", str(port)], cwd=cwd, stdout=log,
            stderr=subprocess.STDOUT, env={**os.environ, "TMPDIR": str(folder / "uploads"), **variables},
        )  # fmt: skip
    try:
        for _ in range(600):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                httpx.get(url, timeout=5)
                break
            except httpx.TransportError:
                time.sleep(0.2)
        yield Served(url, folder, process)
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="session")
def model_folder(tiny_start, tmp_path_factory) -> Path:
    """A tiny model that is calibrated and tells noise from drawn knees."""
    folder = tmp_path_factory.mktemp("page-model") / "model"
    save_model_folder(folder, tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    (folder / CALIBRATION_FILE).write_text('{"thresholds": {"0.90": 0.9}}')
    knees = [draw_knee(number % 5, "LR"[number % 2], number, 120).convert("RGB") for number in range(160)]
    batch = tiny_start.image_processor(knees, return_tensors="pt")
    features = collect_features(tiny_start.model, [batch])
    typicality = fit_typicality(typicality_block(tiny_start.model), features[::2], features[1::2])
    typicality = replace(typicality, distances=1.5 * typicality.distances)  # no drawn knee is told by chance
    (folder / TYPICALITY_FILE).write_bytes(typicality_file(typicality))
    return folder


@pytest.fixture(scope="session")
def example_folder(tmp_path_factory) -> Path:
    """Drawn X-rays under the examples' names, in place of the real ones."""
    from dataset_script.examples import GRADES, SIDES

    folder = tmp_path_factory.mktemp("examples")
    for grade in GRADES:
        for side, word in SIDES.items():
            draw_knee(grade, side, grade, 120).save(folder / f"kl{grade}_{word}.png")
    return folder


@pytest.fixture(scope="session")
def served(model_folder, example_folder, tmp_path_factory) -> Served:
    """The page that most tests visit."""
    folder = tmp_path_factory.mktemp("page") / "served"
    agents = ("--mcp",) if find_spec("mcp") else ()
    with serve(folder, "--model", model_folder, "--examples", example_folder, *agents) as served:
        yield served


@pytest.fixture(scope="session")
def films(model_folder, tmp_path_factory) -> Served:
    """A page whose model finds the knees of the composed films in `FILMS`, and takes no crop for strange."""
    folder = tmp_path_factory.mktemp("films")
    shutil.copytree(model_folder, folder / "model", ignore=shutil.ignore_patterns(TYPICALITY_FILE))
    arguments = ("--model", folder / "model", "--examples", folder)
    agents = ("--mcp",) if find_spec("mcp") else ()
    with serve(folder / "served", *arguments, *agents, program=Path(__file__).with_name("film_page.py")) as served:
        yield served


@pytest.fixture(scope="session")
def small(model_folder, tmp_path_factory) -> Served:
    """A page for two visitors, which forgets after three seconds."""
    folder = tmp_path_factory.mktemp("small") / "served"
    with serve(folder, "--model", model_folder, "--keep-minutes", 0.05, "--max-visitors", 2) as served:
        yield served


@contextmanager
def visiting(browser, url, **settings):
    """A visitor's page; what goes wrong in it is in `page.faults`, the hosts it asks in `page.asked`."""
    settings = {"viewport": {"width": 1280, "height": 900}, "accept_downloads": True, "locale": "en-GB"} | settings
    context = browser.new_context(**settings)
    page = context.new_page()
    page.faults, page.asked = [], set()
    page.on("pageerror", lambda error: page.faults.append(str(error)))
    page.on("console", lambda message: message.type == "error" and page.faults.append(message.text))
    page.on("request", lambda request: page.asked.add("/".join(request.url.split("/")[:3])))
    page.set_default_timeout(WAIT)
    page.goto(url)
    page.locator("body[data-ready]").wait_for()
    try:
        yield page
    finally:
        context.close()


@pytest.fixture
def page(browser, served):
    """A visitor's page."""
    with visiting(browser, served.url) as page:
        yield page
        assert not page.faults


def upload(page, *files) -> None:
    """Chooses files and waits until all are graded or refused."""
    page.locator("#file").set_input_files([str(file) for file in files])
    page.locator("#progress").wait_for(state="hidden")


def until(page, holds) -> None:
    """Waits until `holds()`, and lets the handlers of the page's events run meanwhile."""
    end = time.monotonic() + WAIT / 1000
    while not holds():
        assert time.monotonic() < end, "it never came to be"
        page.wait_for_timeout(50)


def run_async(coroutine):
    """What `coroutine` returns, from a thread of its own: Playwright's loop may run in this one."""
    with ThreadPoolExecutor(1) as thread:
        return thread.submit(asyncio.run, coroutine).result()


@pytest.fixture
def knee(tmp_path):
    """Writes a drawn knee."""

    def write(name="knee.png", seed=0, size=120):
        draw_knee(3, "L", seed, size).save(tmp_path / name, "PNG")
        return tmp_path / name

    return write


@pytest.fixture
def film(tmp_path):
    """Writes one of `FILMS`."""

    def write(kind="both", name=None):
        path = tmp_path / (name or f"{kind}.png")
        compose(kind).save(path)
        return path

    return write


@pytest.fixture
def noise(tmp_path):
    """An image that is no X-ray."""
    pixels = torch.randint(0, 256, (96, 96), generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    Image.frombytes("L", (96, 96), pixels.numpy().tobytes()).save(tmp_path / "noise.png")
    return tmp_path / "noise.png"


class Visitor:
    """A visit by plain requests, as the page's own script makes them."""

    def __init__(self, url: str):
        limits = httpx.Limits(keepalive_expiry=1)  # the server closes idle connections after some seconds
        self.http = httpx.Client(base_url=url, timeout=120, limits=limits)
        self.token = self.http.post("visit").json()["token"]
        self.path = f"visit/{self.token}"
        self.alive = self.http.send(self.http.build_request("GET", f"{self.path}/alive"), stream=True)

    def upload(self, content: bytes, name: str = "knee.png") -> httpx.Response:
        """Sends an X-ray; the answer comes when it is graded."""
        return self.http.post(f"{self.path}/xrays", params={"name": name}, content=content)

    def grade(self, content: bytes, name: str = "knee.png", **query) -> dict:
        """Sends an X-ray of one knee; what the page is told of it."""
        answer = self.http.post(f"{self.path}/xrays", params={"name": name, **query}, content=content)
        (told,) = answer.raise_for_status().json()["knees"]
        return told

    def ask(self, told: dict, path: str, **query) -> httpx.Response:
        """Asks for another box or framing of an X-ray that the page was told of."""
        return self.http.post(f"{self.path}/xrays/{told['id']}/{path}", params=query)

    def get(self, path: str, **query) -> httpx.Response:
        """What the visit shows."""
        return self.http.get(f"{self.path}/{path}", params=query)

    def leave(self) -> None:
        """Closes the page."""
        self.http.post(f"{self.path}/leave")
        self.alive.close()
        self.http.close()


@pytest.fixture
def visitor(served):
    """One visitor."""
    visitor = Visitor(served.url)
    yield visitor
    visitor.leave()


@pytest.fixture
def film_visitor(films):
    """A visitor of the page that finds knees."""
    visitor = Visitor(films.url)
    yield visitor
    visitor.leave()


@pytest.fixture
def film_page(browser, films):
    """His page."""
    with visiting(browser, films.url) as page:
        yield page
        assert not page.faults
