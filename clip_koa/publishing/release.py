"""Builds the folder that is published out of a checkpoint; nothing of the training machine gets into it."""

import json
import shutil
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from safetensors import safe_open
from transformers import CLIPProcessor

from clip_koa.grading.loading import CheckpointError, load_checkpoint, load_tokenizer
from clip_koa.publishing.card import write_card
from clip_koa.publishing.card_facts import collect_facts
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.release_check import NEEDED_FILES
from dataset_script.synthetic import draw_knee

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
# What calibration leaves beside the weights; optional.
OPTIONAL_FILES = ("calibration.json", "typicality.safetensors")
_READER = (
    "__init__.py", "radiograph.py", "pixels.py", "dicom.py", "dicom_decoding.py", "dicom_elements.py",
    "dicom_gray_scale.py",
)  # fmt: skip
_LOCAL_FIELDS = ("is_local", "local_files_only", "name_or_path", "tokenizer_file", "special_tokens_map_file")
_HANDLER = Path(__file__).parent / "templates" / "handler.py"
_PROJECT = Path(__file__).parents[2]


@dataclass
class Release:
    """A built folder, and the checkpoint's flip-averaged logits of its examples, (N, K); None where it was rounded."""

    folder: Path
    expected: np.ndarray | None


def build_release(
    checkpoint: Path, folder: Path, repo_id: str, *, dtype: str | None = None, evaluations: tuple[Path, ...] = (),
    base_model: str | None = None, runs: tuple[Path, ...] = (),
    trained_on: str | None = None,
) -> Release:  # fmt: skip
    """Writes the release of a checkpoint into `folder`, new or empty.

    Weights in half precision are stored so and computed in fp32, so that every way to load them agrees.

    Args:
        checkpoint: a model folder.
        runs: folders of the runs it comes from, in their order, which give recipe and figures; default: the one
            around it.
        repo_id: where it will be published, for the card.
        dtype: of the stored weights; default: as the checkpoint's.
        evaluations: folders of evaluate_checkpoint.py, of these weights.
        trained_on: Hub id of the dataset, for the card.

    Raises:
        ReleaseError: no checkpoint, a folder that is not empty, or weights that the dtype can't hold.
    """
    for name in ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json"):
        if not (checkpoint / name).is_file():
            raise ReleaseError(f"{checkpoint} has no {name}: name a model folder, such as runs/demo/best.")
    if folder.exists() and any(folder.iterdir()):
        raise ReleaseError(f"{folder} is not empty: name a new folder.")
    try:
        model, image_processor = load_checkpoint(str(checkpoint), dtype=torch.float32)
        tokenizer = load_tokenizer(str(checkpoint), model)
    except CheckpointError as error:
        raise ReleaseError(str(error)) from error
    facts = collect_facts(checkpoint, runs, evaluations, base_model)
    facts.dataset_id = trained_on
    folder.mkdir(parents=True, exist_ok=True)
    dtype = dtype or _stored_dtype(checkpoint)
    _save_model(model, folder, dtype)
    CLIPProcessor(image_processor, tokenizer).save_pretrained(folder)
    image_processor.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    _clean_configs(folder)
    for name in OPTIONAL_FILES:
        if (checkpoint / name).is_file():
            shutil.copyfile(checkpoint / name, folder / name)
    _add_handler(folder)
    shutil.copyfile(_PROJECT / "LICENSE", folder / "LICENSE")
    examples = _draw_examples(folder / "examples", model.config.vision_config.image_size)
    logits, scores = _grade_examples(model, image_processor, examples)
    write_card(folder, repo_id, model.config, facts, dtype, model.num_parameters(), scores)
    missing = [name for name in NEEDED_FILES if not (folder / name).is_file()]
    if missing:
        raise ReleaseError(f"{folder} lacks {', '.join(missing)}.")
    return Release(folder, logits if dtype == "float32" else None)


def _stored_dtype(checkpoint: Path) -> str:
    with safe_open(checkpoint / "model.safetensors", "pt") as tensors:
        name = tensors.get_slice("visual_projection.weight").get_dtype()
    return {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}[name]


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
    shutil.copyfile(_HANDLER, folder / "handler.py")
    (folder / "dataset_script").mkdir()
    for name in _READER:
        shutil.copyfile(_PROJECT / "dataset_script" / name, folder / "dataset_script" / name)
    (folder / "requirements.txt").write_text("numpy>=1.26\npydicom>=3.0\n", encoding="utf-8")


def _draw_examples(folder: Path, size: int) -> list[Path]:
    """A generated X-ray of each grade: no patient's image is published."""
    folder.mkdir()
    paths = []
    for grade in range(5):
        paths.append(folder / f"generated_KL{grade}.png")
        draw_knee(grade, "LR"[grade % 2], (7, grade), max(size, 32), overlap=0).save(paths[-1])
    return paths


@torch.no_grad()
def _grade_examples(model, image_processor, files: list[Path]) -> tuple[np.ndarray, np.ndarray]:
    """Flip-averaged logits, and the linear head's probabilities, as the widget's pipeline gives them; (N, K) each."""
    images = [Image.open(file).convert("RGB") for file in files]
    pixel_values = image_processor(images, return_tensors="pt")["pixel_values"]
    logits = model(pixel_values, flip_average=True).logits
    scores = model(pixel_values, flip_average=False).classifier_logits.softmax(-1)
    return logits.numpy(), scores.numpy()
