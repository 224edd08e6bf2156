"""The pictures in the manual that show grades: taken anew, with the released model and the examples.

    python -m studies.page_pictures --output docs/figures

It serves the page, opens it in headless Chromium, and gives it a film composed of two examples and three more of them.
It does so too with the page that grades in the browser, and draws the picture that an archive is given. It needs the
extras `app`, `onnx` and `pacs`, playwright, npm and Chromium.
"""

import argparse
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

from PIL import Image
from transformers import AutoModel

from clip_koa.dicom.results import DicomResults
from dataset_script.exit_status import main_of
from dataset_script.films import compose_film
from studies.browser import chromium, opened

PROJECT = Path(__file__).parents[1]
EXAMPLES = PROJECT / "examples"
WIDTHS, SCHEMES = (375, 820, 1280), ("light", "dark")
_MODEL = PROJECT / "models" / "clip-koa-small"
_SEED = 4  # of the film
_HEIGHTS = {375: 2600, 820: 1350, 1280: 1920}  # pixels of the page that a picture shows
_SHOWN = 700  # pixels of a picture's width, at most
_GLANCE = 400  # pixels of the height of the README's picture
_WAIT = 600_000  # ms


def run(arguments: list[str] | None, prog: str) -> None:
    """Takes the pictures."""
    parser = argparse.ArgumentParser(prog=prog, description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, required=True, help="folder of the pictures")
    output = parser.parse_args(arguments).output
    output.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary, _served() as url, chromium() as browser:
        film = Path(temporary) / "film.png"
        _film("kl1_right", "kl3_left").save(film)
        for scheme in SCHEMES:
            for width in WIDTHS:
                page = _opened(browser, url, width, scheme)
                _give(page, film, *(EXAMPLES / f"{name}.png" for name in ("kl0_left", "kl2_right", "kl4_right")))
                page.get_by_role("radio", name="Show film.png, right knee").check()
                page.locator("#card .stage, #card .film-stage").first.wait_for()
                page.wait_for_timeout(1000)  # until pictures are drawn
                _keep(page.screenshot(full_page=True), output / f"page_{width}_{scheme}.png", temporary)
                page.context.close()
        page = _opened(browser, url, 1280, "light")
        _give(page, EXAMPLES / "kl2_right.png")
        page.locator("#card .stage").wait_for()
        page.wait_for_timeout(1000)
        card = Path(temporary) / "card.png"
        page.locator("#card").screenshot(path=str(card))
        _glance(card, output / "at_a_glance.jpg")
    with tempfile.TemporaryDirectory() as temporary:
        _in_the_browser(Path(temporary), output / "browser_1280.jpg")
        _for_an_archive(Path(temporary), output / "pacs_picture.jpg")


def _in_the_browser(temporary: Path, path: Path) -> None:
    """The page that grades in the visitor's browser, with an example on it."""
    options = ["--browser-space", "--dry_run", "--output", str(temporary / "site")]
    command = [sys.executable, "-m", "clip_koa", "publish", str(_MODEL), "USER/NAME", *options]
    subprocess.run(command, cwd=PROJECT, check=True, stdout=subprocess.DEVNULL)
    with opened(temporary / "site") as (browser, url):
        page = _opened(browser, url, 1280, "light")
        _give(page, EXAMPLES / "kl4_right.png")
        page.locator("#card .stage").wait_for()
        page.wait_for_timeout(1000)
        page.screenshot(path=str(temporary / "browser.png"), full_page=True)
    shown = Image.open(temporary / "browser.png").convert("RGB").crop((0, 0, 1280, 1500))
    shown.resize((900, 1055), Image.Resampling.LANCZOS).save(path, quality=88, optimize=True)


def _for_an_archive(temporary: Path, path: Path) -> None:
    """What `clip-koa grade --dicom_results` adds to a film's study."""
    _film("kl1_right", "kl4_left").save(temporary / "film.png")
    results = DicomResults.of_model(str(_MODEL), 0.9, temporary / "results")
    [knees] = results.grader.grade_each([temporary / "film.png"])
    results.draw(knees).save(path, quality=90, optimize=True)


def _film(right: str, left: str) -> Image.Image:
    return compose_film(*(Image.open(EXAMPLES / f"{name}.png").convert("L") for name in (right, left)), _SEED).image


@contextmanager
def _served():
    """The address of the page."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "clip_koa", "page", "--model", str(_MODEL), "--port", str(port)]
    process = subprocess.Popen(command, cwd=PROJECT, stdout=subprocess.DEVNULL)
    url = f"http://127.0.0.1:{port}/"
    try:
        while True:
            try:
                urllib.request.urlopen(url, timeout=5).close()
                break
            except (urllib.error.URLError, TimeoutError):
                if process.poll() is not None:
                    raise SystemExit("the page did not start") from None
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait()


def _opened(browser, url: str, width: int, scheme: str):
    context = browser.new_context(viewport={"width": width, "height": 900}, color_scheme=scheme, locale="en-GB")
    page = context.new_page()
    page.set_default_timeout(_WAIT)
    page.goto(url)
    page.locator("body[data-ready]").wait_for()
    return page


def _give(page, *files: Path) -> None:
    page.locator("#file").set_input_files([str(file) for file in files])
    page.locator("#progress").wait_for(state="hidden")


def _keep(png: bytes, path: Path, temporary: str) -> None:
    """The upper part of a picture of the page, made small: few colours."""
    whole = Path(temporary) / "whole.png"
    whole.write_bytes(png)
    picture = Image.open(whole).convert("RGB")
    picture = picture.crop((0, 0, picture.width, min(picture.height, _HEIGHTS[picture.width])))
    if picture.width > _SHOWN:
        picture = picture.resize((_SHOWN, round(picture.height * _SHOWN / picture.width)), Image.Resampling.LANCZOS)
    picture.quantize(192).save(path, optimize=True)


def _glance(card: Path, path: Path) -> None:
    """An X-ray under its heat map, and beside it the upper part of its card."""
    model = AutoModel.from_pretrained(_MODEL, trust_remote_code=True)
    heat = model.explain(Image.open(EXAMPLES / "kl4_left.png")).overlay().resize((_GLANCE, _GLANCE))
    shown = Image.open(card).convert("RGB")
    shown = shown.crop((0, 0, shown.width, round(shown.width * 0.57)))
    shown = shown.resize((round(shown.width * _GLANCE / shown.height), _GLANCE), Image.Resampling.LANCZOS)
    both = Image.new("RGB", (_GLANCE + 16 + shown.width, _GLANCE), "white")
    both.paste(heat, (0, 0))
    both.paste(shown, (_GLANCE + 16, 0))
    both.save(path, quality=88, optimize=True)


main = main_of("studies.page_pictures", run)


if __name__ == "__main__":
    sys.exit(main())
