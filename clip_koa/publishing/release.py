"""Builds the folder that is published out of a checkpoint; nothing of the training machine gets into it."""

import json
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from transformers import CLIPProcessor

from clip_koa.evaluation.loading import CheckpointError, load_checkpoint, load_tokenizer
from clip_koa.grading.onnx_network import RELEASE_FILES
from clip_koa.publishing.card import render_card, write_card
from clip_koa.publishing.card_facts import collect_facts
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.examples import add_examples, draw_examples, score_examples
from clip_koa.publishing.plain_files import copy_license, copy_plain
from clip_koa.publishing.release_check import NEEDED_FILES, draw_probes
from dataset_script.radiograph import read_radiograph
from modeling_clip_koa import (
    CALIBRATION_FILE,
    LOCALISATION_FILE,
    TYPICALITY_FILE,
    CalibrationError,
    LocalisationError,
    XrayPreprocessor,
)
from modeling_clip_koa.calibration_clip_koa import read_typicality, typicality_file

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What is read of a checkpoint; what else lies there stays there.
CHECKPOINT_FILES = (
    "config.json", "model.safetensors", "preprocessor_config.json", "processor_config.json", "tokenizer.json",
    "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "vocab.json", "merges.txt",
    CALIBRATION_FILE, LOCALISATION_FILE, TYPICALITY_FILE,
)  # fmt: skip
_READER = (
    "__init__.py", "radiograph.py", "pixels.py", "dicom.py", "dicom_decoding.py", "dicom_elements.py",
    "dicom_gray_scale.py",
)  # fmt: skip
_LOCAL_FIELDS = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "special_tokens_map_file")
_TEMPLATES = Path(__file__).parent / "templates"
_PROJECT = Path(__file__).parents[2]


@dataclass
class Release:
    """A built folder, and what its checkpoint gives for `draw_probes`: averaged logits (N, K), or None if rounded."""

    folder: Path
    expected: np.ndarray | None


def build_release(
    checkpoint: Path, folder: Path, repo_id: str, *, dtype: str | None = None, evaluations: tuple[Path, ...] = (),
    base_model: str | None = None, runs: tuple[Path, ...] = (),
    trained_on: str | None = None, onnx: bool = False,
) -> Release:  # fmt: skip
    """Writes the release of a checkpoint into `folder`, new or empty.

    The checkpoint is read once, into a copy that is gone afterwards; never through a link. Weights in half precision
    are stored so and computed in fp32, so that every way to load them agrees.

    Args:
        checkpoint: a model folder.
        runs: folders of the runs it comes from, in their order, which give recipe and figures; default: the one
            around it.
        repo_id: where it will be published, for the card.
        dtype: of the stored weights; default: as the checkpoint's.
        evaluations: folders of clip-koa evaluate, of these weights.
        trained_on: Hub id of the dataset, for the card.
        onnx: also write the ONNX graphs, in three precisions; needs the extra `onnx`.

    Raises:
        ImportError: ONNX is asked for and not installed.
        ReleaseError: no checkpoint, a damaged one, one with a link in it, a folder that is not empty, or weights that
            the dtype can't hold.
    """
    if folder.exists() and any(folder.iterdir()):
        raise ReleaseError(f"{folder} is not empty: name a new folder.")
    with tempfile.TemporaryDirectory(prefix=".checkpoint-", dir=folder.parent) as place:
        source = Path(place)
        found = {name for name in CHECKPOINT_FILES if copy_plain(checkpoint, name, source / name)}
        for name in ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"):
            if name not in found:
                raise ReleaseError(f"{checkpoint} has no {name}: name a model folder, such as runs/demo/best.")
        with _damage_told("run.json and metrics.json of the runs and evaluations"):
            facts = collect_facts(checkpoint, runs, evaluations, base_model, weights=source)
        facts.dataset_id = trained_on
        dtype = dtype or stored_dtype(checkpoint, source)
        model, image_processor, tokenizer = _load(checkpoint, source)
        folder.mkdir(exist_ok=True)
        _add_calibration(checkpoint, source, folder)
        _check_locator(checkpoint, model)
    _save_model(model, folder, dtype)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _clean_configs(folder)
    _add_handler(folder)
    copy_license(folder / "LICENSE")
    if onnx:
        _add_graphs(model, folder)
    examples = add_examples(folder / "examples")
    scores = score_examples(model, image_processor, examples)
    draw_examples(model, examples, folder)
    with _damage_told("metrics.json of the runs and evaluations"):
        write_card(folder, render_card(folder, repo_id, model, facts, dtype, scores), facts)
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise ReleaseError(f"{folder} lacks {', '.join(missing)}.")
    return Release(folder, _grade_probes(model, image_processor) if dtype == "float32" else None)


@contextmanager
def _damage_told(files: str) -> Iterator[None]:
    """Values of other kinds than this project writes end in errors of Python's own."""
    try:
        yield
    except ReleaseError:
        raise
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = " ".join(str(error).split())[:100]
        raise ReleaseError(f"One of {files} holds other values than this project writes: {reason}.") from error


def _load(checkpoint: Path, source: Path) -> tuple:
    """Model, image processor and tokenizer of the copy of a checkpoint."""
    try:
        model, image_processor = load_checkpoint(str(source), dtype=torch.float32)
        return model, image_processor, load_tokenizer(str(source), model)
    except CheckpointError as error:
        raise ReleaseError(str(error).replace(str(source), str(checkpoint))) from error


def stored_dtype(checkpoint: Path, source: Path) -> str:
    """Of the weights in `source`, a copy of `checkpoint`, which errors name.

    Raises:
        ReleaseError: no weights of CLIP-KOA.
    """
    try:
        with safe_open(source / "model.safetensors", "pt") as tensors:
            name = tensors.get_slice("visual_projection.weight").get_dtype()
        return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name]
    except (SafetensorError, OSError, KeyError) as error:
        reason = str(error).splitlines()[0][:200]
        raise ReleaseError(f"{checkpoint}/model.safetensors holds no weights of CLIP-KOA: {reason}.") from error


def _add_calibration(checkpoint: Path, source: Path, folder: Path) -> None:
    """What clip-koa calibrate left beside the weights; the tensors are written anew, so that no others come along."""
    if (source / CALIBRATION_FILE).is_file():
        copy_plain(source, CALIBRATION_FILE, folder / CALIBRATION_FILE)
    try:
        if typicality := read_typicality(str(source)):
            (folder / TYPICALITY_FILE).write_bytes(typicality_file(typicality))
    except CalibrationError as error:
        raise ReleaseError(f"{checkpoint}/{TYPICALITY_FILE} is damaged: run clip-koa calibrate anew.") from error


def _check_locator(checkpoint: Path, model) -> None:
    """Refuses a damaged file, which would be left out with no word; what is kept is written with the model."""
    try:
        model.beside.locator  # noqa: B018
    except LocalisationError as error:
        if (checkpoint / LOCALISATION_FILE).is_file():
            raise ReleaseError(f"{checkpoint}/{LOCALISATION_FILE} cannot be read: {error}") from error


def _save_model(model, folder: Path, dtype: str) -> None:
    if dtype == "float32":
        model.save_pretrained(folder)
        return
    halved = {name for name, parameter in model.named_parameters() if _may_be_rounded(name, parameter)}
    with torch.no_grad():
        for name in halved:
            parameter = model.get_parameter(name)
            parameter.copy_(parameter.to(DTYPES[dtype]))
            if not parameter.isfinite().all():
                raise ReleaseError(f"{name} holds weights that {dtype} can't: use bfloat16 or float32.")
    state = model.state_dict()  # refreshes the grade embeddings, which stay in fp32
    state = {name: value.to(DTYPES[dtype]) if name in halved else value for name, value in state.items()}
    model.save_pretrained(folder, state_dict=state)


def _may_be_rounded(name: str, parameter: torch.nn.Parameter) -> bool:
    """Matrices, which are nearly all of the size.

    Positions stay as they are: those of a tower that started from DINOv2 stand far above what tells them apart.
    """
    return parameter.ndim >= 2 and "position_embedding" not in name


def _clean_configs(folder: Path) -> None:
    """Drops what names the machine that saved them."""
    for name in ("config.json", "tokenizer_config.json", "processor_config.json", "preprocessor_config.json"):
        path = folder / name
        values = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if name == "config.json":
            values["dtype"] = "float32"
            values.pop("_name_or_path", None)
        if name == "processor_config.json":  # transformers 4 does not write it
            values.setdefault("processor_class", "CLIPProcessor")
        for field in _LOCAL_FIELDS:
            values.pop(field, None)
        path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")


def _add_handler(folder: Path) -> None:
    copy_plain(_TEMPLATES, "handler.py", folder / "handler.py")
    (folder / "dataset_script").mkdir()
    for name in _READER:
        copy_plain(_PROJECT, f"dataset_script/{name}", folder / "dataset_script" / name)
    copy_plain(_TEMPLATES, "requirements.txt", folder / "requirements.txt")


def _add_graphs(model, folder: Path) -> None:
    try:
        from clip_koa.exporting.release_graphs import write_release_graphs
    except ModuleNotFoundError as error:
        raise ImportError(
            f"--onnx needs {error.name}, which is missing: pip install 'clip-koa[onnx]'.", name=error.name
        ) from error
    for precision, difference in write_release_graphs(model, folder).items():
        print(f"{RELEASE_FILES[precision]}: probabilities differ by at most {difference:.1g} on drawn X-rays")


@torch.no_grad()
def _grade_probes(model, image_processor) -> np.ndarray:
    with tempfile.TemporaryDirectory() as place:
        files = draw_probes(Path(place), model.config.vision_config.image_size)
        pixel_values = XrayPreprocessor(image_processor)([read_radiograph(file).image for file in files])
    return model(pixel_values, flip_average=True).logits.numpy()
