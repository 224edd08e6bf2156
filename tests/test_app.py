"""The page, as a visitor uses it: in a headless Chromium, against `python app.py` in a process of its own."""

import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager

import pytest
from conftest import ROOT

from clip_koa.training.checkpoints import save_model_folder
from dataset_script.synthetic import draw_knee
from modeling_clip_koa import CALIBRATION_FILE

pytest.importorskip("gradio", reason="needs the extra app")
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")
CHROMIUM = shutil.which("chromium") or shutil.which("google-chrome")
pytestmark = pytest.mark.skipif(not CHROMIUM, reason="needs chromium")
WAIT = 60_000  # ms


@contextmanager
def _served(folder, *arguments, cwd=ROOT, **variables):
    """The address of the page of `app.py` in `cwd`, which runs until the end; its temporary folder is `uploads`."""
    (folder / "uploads").mkdir()
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [sys.executable, "app.py", *arguments, "--port", str(port)], cwd=cwd, stdout=log, stderr=subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder / "uploads"), **variables},
        )  # fmt: skip
    try:
        for _ in range(240):
            assert process.poll() is None, (folder / "log").read_text()
            try:
                urllib.request.urlopen(url, timeout=5)
                break
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                time.sleep(0.5)
        yield url
    finally:
        process.terminate()
        process.wait(30)


@pytest.fixture(scope="module")
def address(tiny_start, tmp_path_factory):
    """A page that runs, and its folder, which holds its `model`."""
    folder = tmp_path_factory.mktemp("page")
    save_model_folder(folder / "model", tiny_start.model, tiny_start.image_processor, tiny_start.tokenizer)
    (folder / "model" / CALIBRATION_FILE).write_text('{"thresholds": {"0.90": 0.9}}')
    with _served(folder, "--model", folder / "model") as url:
        yield url, folder


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        browser = driver.chromium.launch(
            executable_path=CHROMIUM,
            args=["--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-component-update"],
        )
        yield browser
        browser.close()


@pytest.fixture
def page(browser, address):
    """A visitor's page; the hosts it asks are in `page.asked`."""
    context = browser.new_context(viewport={"width": 1280, "height": 1000}, accept_downloads=True)
    page = context.new_page()
    page.asked = set()
    page.on(
        "request", lambda request: page.asked.add(re.sub(r"^(\w+://[^/]*|data:).*", r"\1", request.url, flags=re.S))
    )
    page.set_default_timeout(WAIT)
    page.goto(address[0])
    yield page
    context.close()


def _upload(page, *files):
    page.locator("#upload input[type=file]").first.set_input_files([str(file) for file in files])


def _knee(folder, name="knee.png", seed=0):
    draw_knee(3, "L", seed, 120).save(folder / name)
    return folder / name


def test_upload_read_change_the_map_and_keep_the_report(page, address, tmp_path):
    _upload(page, _knee(tmp_path, "9000001L.png"))
    result = page.locator(".koa-result")
    result.locator(".headline b").wait_for()
    grade = int(result.locator(".badge").inner_text())
    assert result.locator(".headline b").inner_text().startswith(f"KL{grade} ")
    assert (
        "9000001L.png" in result.locator(".file").inner_text() and "left knee" in result.locator(".file").inner_text()
    )
    assert re.search(r"Grade \d.* 90% of the time", result.locator(".sure").inner_text())
    shares = [int(text.split()[0]) for text in result.locator(".words > .bars .share").all_inner_texts()]
    assert len(shares) == 5 and abs(sum(shares) - 100) <= 3 and shares[grade] == max(shares)

    first = result.locator(".heat").get_attribute("src")
    page.locator("#question label").nth(1).click()
    result.locator("figcaption", has_text="rather than").wait_for()
    assert result.locator(".heat").get_attribute("src") != first

    slider = result.get_by_role("slider")
    slider.focus()
    page.keyboard.press("Home")
    assert result.locator(".heat").evaluate("image => image.style.opacity") == "0"

    with page.expect_download() as download:
        result.get_by_role("link", name="Download the report").click()
    report = download.value.path().read_text(encoding="utf-8")
    assert f"KL{grade} " in report and "not a medical device" in report and "9000001L.png" in report
    assert not re.search(r"""(src|href)=["']?http""", report)
    # Nothing is asked of another computer, and no X-ray stays on the disk.
    assert page.asked <= {address[0], "data:"}
    assert not list((address[1] / "uploads").rglob("*.png"))


def test_a_bad_file_is_named_and_the_others_are_graded(page, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no image at all")
    _upload(page, tmp_path / "broken.png", _knee(tmp_path))
    refused = page.get_by_role("alert").filter(has_text="broken.png was not graded")
    refused.wait_for()
    page.locator("#chosen label", has_text="knee.png").click()
    page.locator(".koa-result .headline").wait_for()
    page.locator("#clear").click()
    page.locator(".koa-empty").wait_for()
    assert page.locator(".koa-result").count() == 0


def test_dicom(page):
    _upload(page, ROOT / "tests/data/dicom/implicit.dcm")
    page.locator(".koa-result .headline").wait_for()


def test_by_keyboard_and_screen_reader(page):
    page.get_by_role("button", name="Draw KL2").focus()
    page.keyboard.press("Enter")
    page.locator(".koa-result .headline").wait_for()
    assert page.get_by_role("article", name="Grade of drawn KL2").count() == 1
    for image in page.locator(".koa-result img").all():
        assert image.get_attribute("alt") is not None
    unnamed = page.evaluate(
        "() => [...document.querySelectorAll('input, button, a')].filter(e => e.offsetParent && !("
        "e.innerText || e.getAttribute('aria-label') || e.title || e.labels?.length)).map(e => e.outerHTML)"
    )
    assert unnamed == []
    assert page.evaluate("() => document.documentElement.lang") == "en"


def test_a_phone_needs_no_sideways_scrolling_and_moves_the_slider_by_touch(browser, address):
    context = browser.new_context(viewport={"width": 375, "height": 740}, is_mobile=True, has_touch=True)
    page = context.new_page()
    page.set_default_timeout(WAIT)
    page.goto(address[0])
    page.get_by_role("button", name="Draw KL3").tap()
    page.locator(".koa-result .headline").wait_for()
    assert page.evaluate("() => document.documentElement.scrollWidth") <= 375

    slider = page.get_by_role("slider")
    slider.scroll_into_view_if_needed()
    box = slider.bounding_box()
    assert box["width"] > 100
    finger = context.new_cdp_session(page)
    places = [box["x"] + share * box["width"] for share in (0.6, 0.5, 0.3, 0.2)]
    for kind, x in zip(("touchStart", "touchMove", "touchMove", "touchMove"), places, strict=True):
        points = [{"x": x, "y": box["y"] + box["height"] / 2}]
        finger.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    finger.send("Input.dispatchTouchEvent", {"type": "touchEnd", "touchPoints": []})
    opacity = float(page.locator(".koa-result .heat").evaluate("image => image.style.opacity"))
    assert opacity == pytest.approx(0.2, abs=0.07)
    context.close()


def test_the_space_serves_the_page_from_its_own_folder(browser, address, run_python, tmp_path):
    space = tmp_path / "space"
    run_python("push_to_hub.py", "anna/knees", "anna/page", "--space", "--dry_run", "--output", space)
    with _served(tmp_path, cwd=space, CLIP_KOA_MODEL=str(address[1] / "model"), PYTHONDONTWRITEBYTECODE="") as url:
        page = browser.new_page()
        page.set_default_timeout(WAIT)
        page.goto(url)
        page.get_by_role("button", name="Draw KL3").click()
        page.locator(".koa-result .headline").wait_for()
        page.close()
    assert list((space / "clip_koa").rglob("page.*.pyc"))  # its own copy of the code is what ran


def test_twenty_visitors_at_once_each_see_their_own(browser, address, tmp_path):
    # A context each: Chromium opens six connections to a host for one visitor, and each page keeps one.
    contexts = [browser.new_context() for _ in range(20)]
    pages = [context.new_page() for context in contexts]
    for page in pages:
        page.set_default_timeout(2 * WAIT)
        page.goto(address[0])
    for number, page in enumerate(pages):
        _upload(page, _knee(tmp_path, f"visitor-{number}.png", seed=number))
    for number, page in enumerate(pages):
        page.locator(".koa-result .file", has_text=f"visitor-{number}.png").wait_for()
        playwright.expect(page.locator("#chosen label")).to_have_count(1, timeout=2 * WAIT)
    for context in contexts:
        context.close()


def test_with_a_wrong_model(run_python, tmp_path):
    wrong = run_python("app.py", "--model", tmp_path, expect=2)
    assert wrong.stderr.splitlines()[-1].startswith("app.py: ") and "Traceback" not in wrong.stderr
