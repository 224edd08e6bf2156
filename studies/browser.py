"""How the page in the browser compares with Python, and how long it takes: the figures of docs/browser.md.

    clip-koa publish models/clip-koa-small USER/NAME --browser-space --dry_run --output page
    python -m studies.browser page --model models/clip-koa-small

It serves the folder, opens it in headless Chromium, and grades the examples, drawn knees and composed films there and
in Python; with --data_dir also X-rays of a split. Times are of this machine; the processor's seconds that the browser
takes (of all its processes and cores) say what a machine with nothing else to do would need.
"""

import argparse
import functools
import http.server
import shutil
import sys
import tempfile
import threading
import time
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import psutil
import torch
from PIL import Image

from clip_koa.grading.grader import GradedXray, Grader
from clip_koa.grading.model_loading import load_checkpoint
from clip_koa.webapp.examples import find_examples
from dataset_script.exit_status import main_of
from dataset_script.films import LOOKS, compose_film
from dataset_script.layouts import list_files, resolve_data_dir
from dataset_script.synthetic import draw_knee
from modeling_clip_koa.localisation_clip_koa import cut_knee, find_knees

_EXAMPLES = Path(__file__).parents[1] / "examples"
_SEEN = "async () => (await import('/page/shell.js')).page.items.map(({ error, facts }) => ({ error, ...facts }))"
_WAIT = 1_800_000  # ms


class Page:
    """The page in a browser of its own, from a plain file server."""

    def __init__(self, browser, url: str):
        self.page = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
        self.page.set_default_timeout(_WAIT)
        self.page.goto(url)
        self.page.locator("body[data-ready]").wait_for()

    def grade(self, files: list[Path], framing: str = "auto") -> list[dict]:
        """What the page knows of the knees in some files, after it has looked for them or taken each as it is."""
        self.page.locator(f"#framing input[value={framing}]").check()
        self.page.locator("#file").set_input_files([str(file) for file in files])
        self.page.locator("#progress").wait_for(state="visible")
        self.page.locator("#progress").wait_for(state="hidden")
        seen = self.page.evaluate(_SEEN)
        self.page.locator("#forget").click()
        return seen


@contextmanager
def chromium():
    """A headless Chromium."""
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    with sync_playwright() as driver:
        browser = driver.chromium.launch(executable_path=program, args=["--no-sandbox", "--disable-gpu"])
        yield browser
        browser.close()


@contextmanager
def opened(folder: Path):
    """A headless Chromium and the address at which the folder is served."""

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *arguments):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=str(folder)))
    server.daemon_threads, server.handle_error = True, lambda *_: None
    threading.Thread(target=server.serve_forever, daemon=True).start()
    with chromium() as browser:
        yield browser, f"http://127.0.0.1:{server.server_port}/"
    server.shutdown()


def processor_seconds() -> float:
    """Of the browser's processes until now, all cores together."""
    children = psutil.Process().children(recursive=True)
    return sum(sum(child.cpu_times()[:2]) for child in children if "chrom" in child.name())


def compare(name: str, seen: list[dict], graded: list[GradedXray]) -> None:
    """Prints how far the page's answers are from Python's."""
    told = [xray for xray in graded if xray.grade]
    if [item.get("trouble") for item in seen].count("no_knee") != len(graded) - len(told) or len(seen) != len(graded):
        print(f"{name}: {len(seen)} knees in the page, {len(graded)} in Python")
        return
    pairs = [(item, xray.grade) for item, xray in zip(seen, graded, strict=True) if xray.grade]
    both = [(item, grade) for item, grade in pairs if not item["trouble"] and not grade.refusal]
    refused = sum(bool(item["trouble"]) != bool(grade.refusal) for item, grade in pairs)
    apart = [np.abs(np.subtract(item["probabilities"], grade.probabilities)).max() for item, grade in both]
    boxes = [np.abs(np.subtract(item["box"], grade.box)).max() for item, grade in pairs if item["box"] and grade.box]
    same = sum(item["grade"] == grade.grade for item, grade in both)
    sets = sum(tuple(item["set"]) == grade.confidence_set for item, grade in both)
    likeness = [abs(item["atypicality"] - grade.atypicality) for item, grade in both]
    print(
        f"{name}: {len(pairs)} knees, {len(pairs) - len(both)} refused, refused by one alone {refused}; "
        f"same grade {same} of {len(both)}, same set {sets}; largest difference of a probability "
        f"{max(apart, default=0):.4f}, median {np.median(apart) if apart else 0:.4f}; typicality at most "
        f"{max(likeness, default=0):.3f} apart; boxes at most {max(boxes, default=0)} pixels apart"
    )


class GraphLocator:
    """The page's graph in the place of the checkpoint's locator, for `find_knees`."""

    def __init__(self, path: Path, window: int):
        import onnxruntime

        self.session, self.window = onnxruntime.InferenceSession(path), window

    def locate(self, model, windows: list[Image.Image]) -> np.ndarray:
        """Of windows (mode L) what `KneeLocator.locate` gives, (N, 6)."""
        if not windows:
            return np.empty((0, 6))
        values = np.stack([np.asarray(window) for window in windows]).astype(np.float32)
        return self.session.run(None, {"windows": values})[0].astype(np.float64)


def compare_boxes(folder: Path, model_name: str, count: int) -> None:
    """Prints how far apart the boxes of checkpoint and graph lie on composed films, both computed in Python."""
    model, _ = load_checkpoint(model_name, dtype=torch.float32)
    locator = model.beside.locator
    graph = GraphLocator(folder / "model" / "locate.onnx", locator.window)
    examples = {example.name: example.path for example in find_examples(_EXAMPLES)}
    apart, grades, shares = [], [], []
    for number in range(count):
        knees = [Image.open(examples[f"kl{number % 5}_{side}.png"]).convert("L") for side in ("right", "left")]
        film = compose_film(*knees, number, list(LOOKS)[number % len(LOOKS)]).image
        ours, theirs = (find_knees(model, one, [film])[0] for one in (locator, graph))
        if len(ours) != len(theirs):
            print(f"film {number}: {len(ours)} knees in Python, {len(theirs)} by the graph")
            continue
        for one, other in zip(ours, theirs, strict=True):
            apart.append(np.abs(np.subtract(one.box, other.box)).max())
            first, second = model.grade([cut_knee(film, one), cut_knee(film, other)])
            grades.append(first.grade == second.grade)
            shares.append(np.abs(np.subtract(first.probabilities, second.probabilities)).max())
    print(
        f"boxes of {len(apart)} knees of {count} films: {apart.count(0)} the same, at most {max(apart)} "
        f"pixels apart; same grade {sum(grades)}; largest difference of a probability {max(shares):.4f}"
    )


def write_xrays(folder: Path, film_count: int) -> dict[str, list[Path]]:
    """Drawn knees, and films composed of the examples."""
    drawn = []
    for grade in range(5):
        for side in "LR":
            drawn.append(folder / f"drawn{grade}{side}.png")
            draw_knee(grade, side, (11, grade), 224).save(drawn[-1])
    examples = {example.name: example.path for example in find_examples(_EXAMPLES)}
    films = []
    for number, look in enumerate(list(LOOKS)[:film_count]):
        knees = [Image.open(examples[f"kl{number % 5}_{side}.png"]).convert("L") for side in ("right", "left")]
        films.append(folder / f"film_{look}.png")
        compose_film(*knees, number, look).image.save(films[-1])
    return {"examples": list(examples.values()), "drawings": drawn, "films": films}


def measure_times(folder: Path, xrays: list[Path]) -> None:
    """Prints how long the first grade takes from a cold load, and further ones."""
    with opened(folder) as (browser, url):
        began = time.perf_counter()
        page = Page(browser, url)
        page.grade(xrays[:1])
        first, used = time.perf_counter() - began, processor_seconds()
        threads = page.page.evaluate("document.body.dataset.threads")
        print(f"first grade after a cold load: {first:.1f} s, {used:.1f} s of the processor ({threads} threads)")
        began, before = time.perf_counter(), processor_seconds()
        page.grade(xrays)
        elapsed, used = time.perf_counter() - began, processor_seconds() - before
        print(f"then: {elapsed / len(xrays):.2f} s an X-ray, {used / len(xrays):.2f} s of the processor")


def run(arguments: list[str] | None, prog: str) -> int:
    """Runs the study; see the module's text."""
    parser = argparse.ArgumentParser(prog=f"python -m {prog}", description=__doc__.split("\n")[0])
    parser.add_argument("folder", type=Path, help="as clip-koa publish --browser-space --output writes it")
    parser.add_argument("--model", required=True, help="the model in it")
    parser.add_argument("--data_dir", type=Path, help="X-rays of a corpus, too")
    parser.add_argument("--split", default="validation")
    parser.add_argument("--limit", type=int, default=100, help="of the corpus, evenly spread")
    parser.add_argument("--films", type=int, default=3, help="composed of the examples, each in another look")
    parser.add_argument("--groups", nargs="+", help="of X-rays that are graded; default: all")
    parser.add_argument(
        "--sections", nargs="+", default=["times", "grades", "boxes"], choices=["times", "grades", "boxes"]
    )
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as place:
        groups = write_xrays(Path(place), given.films)
        if given.data_dir:
            paths = [xray.path for xray in list_files(resolve_data_dir(given.data_dir))[given.split]]
            groups["corpus"] = paths[:: max(1, len(paths) // given.limit)][: given.limit]
        if "boxes" in given.sections:
            compare_boxes(given.folder, given.model, given.films)
        if "times" in given.sections:
            measure_times(given.folder, groups["examples"])
        if "grades" in given.sections:
            with opened(given.folder) as (browser, url):
                page = Page(browser, url)
                for name, files in groups.items():
                    if given.groups and name not in given.groups:
                        continue
                    # A drawing is no knee to the locator: it is graded as it is.
                    framing = "as_is" if name == "drawings" else "auto"
                    graded = list(Grader(given.model, framing=framing).grade(files))
                    compare(name, page.grade(files, framing), graded)
    return 0


main = main_of("studies.browser", run)


if __name__ == "__main__":
    sys.exit(main())
