"""Puts the page together: its own files, those it shares with `clip-koa page`, the graphs, the packages of npm."""

import hashlib
import json
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

import numpy as np
import torch
from jinja2 import Environment, FileSystemLoader, select_autoescape
from PIL import Image

from clip_koa.browser import packages
from clip_koa.browser.graphs import write_graphs
from clip_koa.files import file_digest
from clip_koa.grading.model_loading import load_checkpoint
from clip_koa.webapp.examples import find_examples
from clip_koa.webapp.texts import DEFAULT, LANGUAGES, texts_of
from modeling_clip_koa import TYPICALITY_FILE, CLIPKOAError, CLIPKOAForImageClassification
from modeling_clip_koa.calibration_clip_koa import file_beside, typicality_file

_HERE = Path(__file__).parent
_WEBAPP = _HERE.parent / "webapp"
# Of the page of `clip-koa page`; the rest there talks to its server.
_SHARED = (
    "card.js", "dom.js", "films.js", "items.js", "shell.js", "table.js", "viewer.js", "page.css", "icon.svg",
)  # fmt: skip
_LEVEL = 0.9  # of the confidence sets, as in `clip-koa page`
_MEGABYTES = 200  # of a file at most
# Everything comes from the page's own folder; `wasm-unsafe-eval` lets ONNX Runtime compile, and blobs are the pictures
# of the visitor's X-rays and the worker, which keeps to this policy because it is made of one.
POLICY = (
    "default-src 'none'; script-src 'self' 'wasm-unsafe-eval'; style-src 'self'; img-src 'self' blob:; "
    "connect-src 'self'; worker-src 'self' blob:; form-action 'none'; base-uri 'none'"
)


class SiteError(CLIPKOAError, ValueError):
    """A checkpoint that the page in the browser cannot carry; the message says why."""


@dataclass(frozen=True)
class Site:
    """A page that was put together."""

    known: dict[str, str]  # SHA-256 of the files that are no text, by name: graphs, and what npm gave


def build_site(folder: Path, model_name: str, example_folder: Path, title: str = "CLIP-KOA") -> Site:
    """Writes the page into a folder that is new or empty; any static server serves it.

    Args:
        model_name: model folder or Hub id.
        example_folder: X-rays that a visitor may try, under the names of examples/.
        title: what the model is called in reports.

    Raises:
        CheckpointError: a model that cannot be loaded.
        SiteError: one whose image processor the page cannot follow.
        PackageError: the packages of npm cannot be had.
        ImportError: the extra `onnx` is not installed.
    """
    taken = packages.take_files()
    model, _ = load_checkpoint(model_name, dtype=torch.float32)
    facts = _facts(model, model_name, title)
    for name in ("page", "texts", "vendor", "model", "examples"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    graphs = write_graphs(model, folder / "model")
    for name, content in taken.items():
        (folder / "vendor" / name).write_bytes(content)
    (folder / "vendor" / "README.md").write_text(packages.describe(), encoding="utf-8")
    _write_model(model, graphs, facts, folder / "model")
    for source in (*(_WEBAPP / "static" / name for name in _SHARED), *sorted((_HERE / "static").iterdir())):
        place = folder if source.name == "sw.js" else folder / "page"
        (place / source.name).write_bytes(source.read_bytes())
    for language in LANGUAGES:
        text = json.dumps(texts_of(language), ensure_ascii=False)
        (folder / "texts" / language).write_text(text, encoding="utf-8")
    _write_page(folder, example_folder, model.can_find_knees)
    _write_release(folder)
    binary = [*(f"vendor/{name}" for name in taken), *(f"model/{name}" for name in graphs)]
    return Site({name: file_digest(folder / name) for name in binary})


def _facts(model: CLIPKOAForImageClassification, model_name: str, title: str) -> dict:
    """What the page must know of the model besides its graphs."""
    weights = file_beside(model_name, "model.safetensors")
    set_rule, _ = model.calibration_at(_LEVEL)
    return {
        "name": title,
        "digest": file_digest(weights) if weights else "",
        "precision": "weights in 8 bits, ONNX Runtime Web",
        "software": _software(),
        "size": model.config.vision_config.image_size,
        "seen": _seen(model_name, model.image_processor),
        "shades": _shades(model).tolist(),
        "sets": set_rule and set_rule.keywords,  # `least`, or of an earlier calibration `threshold`
        "window": model.beside.locator.window if model.can_find_knees else None,
    }


def _software() -> str:
    try:
        return f"clip-koa {metadata.version('clip-koa')}"
    except metadata.PackageNotFoundError:  # a checkout that is not installed
        return "clip-koa"


def _seen(name: str, processor) -> float | None:
    """The side of the square that the model sees, in shorter sides of a picture; None: all of it, squeezed.

    Raises:
        SiteError: a processor that does something else.
    """
    crop = (processor.crop_size["height"], processor.crop_size["width"]) if processor.do_center_crop else None
    size = dict(processor.size) if processor.do_resize else {}
    is_bicubic = int(processor.resample) == int(Image.Resampling.BICUBIC)
    if is_bicubic and crop and crop[0] == crop[1] and size.get("shortest_edge", 0) >= crop[0]:
        return crop[0] / size["shortest_edge"]
    whole = (size.get("height"), size.get("width"))
    if is_bicubic and None not in whole and crop in (None, whole):
        return None
    raise SiteError(
        f"{name}: its image processor neither crops a bicubic square nor squeezes: the page does no other."
    )


def _shades(model: CLIPKOAForImageClassification) -> np.ndarray:
    """What the network takes for each gray level, (3, 256)."""
    size = model.config.vision_config.image_size
    levels = np.arange(size * size, dtype=np.int64) % 256
    picture = Image.fromarray(levels.astype(np.uint8).reshape(size, size))
    return model.beside.preprocess([picture])[0].flatten(1)[:, :256].numpy()


def _write_model(model: CLIPKOAForImageClassification, graphs: list[str], facts: dict, folder: Path) -> None:
    parts = {Path(name).stem: name for name in graphs}
    if typicality := model.beside.typicality:
        (folder / TYPICALITY_FILE).write_bytes(typicality_file(typicality))
        parts["typicality"] = TYPICALITY_FILE
    (folder / "model.json").write_text(json.dumps(facts | {"parts": parts}), encoding="utf-8")


def _write_page(folder: Path, example_folder: Path, can_find: bool) -> None:
    text = texts_of(DEFAULT)
    examples = find_examples(example_folder)
    for example in examples:
        (folder / "examples" / example.name).write_bytes(example.path.read_bytes())
    if (attribution := example_folder / "ATTRIBUTION.md").is_file():
        (folder / "examples" / attribution.name).write_bytes(attribution.read_bytes())
    environment = Environment(loader=FileSystemLoader(_WEBAPP / "templates"), autoescape=select_autoescape())
    page = environment.get_template("page.html").render(
        text=text, language=DEFAULT, languages=LANGUAGES, values={"megabytes": _MEGABYTES, "minutes": 0},
        examples=[
            (example.name, f"KL{example.grade}", text[f"grade_{example.grade}"], example.laterality)
            for example in examples
        ],
        limits={"at_once": 1, "file_bytes": _MEGABYTES * 2**20}, level=f"{100 * _LEVEL:.0f}", can_find=can_find,
        policy=POLICY,
    )  # fmt: skip
    (folder / "index.html").write_text(page, encoding="utf-8")


def _write_release(folder: Path) -> None:
    """What the service worker keeps, by digest; its version changes with any file: browsers then take the new one."""
    files = {
        path.relative_to(folder).as_posix(): file_digest(path)
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.parent != folder or path.name == "index.html"
    }
    version = hashlib.sha256(json.dumps(files).encode()).hexdigest()[:16]
    release = {"version": version, "policy": POLICY, "files": files}
    (folder / "release.js").write_text(f"self.RELEASE = {json.dumps(release, indent=1)};\n", encoding="utf-8")
