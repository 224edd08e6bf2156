"""A model's networks in 8 bits for OpenVINO: calibrated on training X-rays, measured on those of validation."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.metrics import cohen_kappa_score
from tqdm.auto import tqdm

from clip_koa.exporting.folders import check_folders, copy_beside
from clip_koa.grading import provenance
from clip_koa.grading.model_loading import load_checkpoint
from clip_koa.grading.networks import quiet
from clip_koa.grading.openvino_network import (
    EXPORT_FILE,
    FINDING,
    GRADING,
    NETWORK_FILE,
    OpenVINOModel,
    convert,
)
from clip_koa.training.checkpoints import written_whole
from dataset_script.knee_xray import CorpusError, read_xray
from dataset_script.layouts import Xray, list_files, read_contents
from modeling_clip_koa import LOCALISATION_FILE, CLIPKOAForImageClassification
from modeling_clip_koa.grading_clip_koa import GradesXrays
from modeling_clip_koa.localisation_clip_koa import Pyramid

CALIBRATION_XRAYS = 128  # of the train split, spread evenly over its list and so over its grades
_MEASURED_XRAYS = 2000  # of validation, at most
_BATCH_SIZE = 16
# Windows of a crop that the finding network is calibrated on: the whole, and the parts that a search comes by.
_WINDOWS = (1.0, 0.7)
# What stays in fp32, as it is little work and rounding there costs most: how patches are embedded, the first block's
# last product, and what the class token passes alone, from the last block's attention to the logits.
_IN_FP32 = (
    r".*patch_embedding/.*",
    r".*layers\.0\.mlp\.fc2/.*",
    r".*layers\.{last}\.(self_attn\.(q_proj|out_proj)|mlp\.fc[12])/.*",
    r".*visual_projection/.*",
    r"aten::matmul/.*",
)


@dataclass(frozen=True)
class Measured:
    """What 8 bits cost, on X-rays of validation: of the export, and of the model in fp32.

    Attributes:
        num_xrays: measured.
        accuracy, qwk, warned: of the export; quadratic weighted kappa; share taken for no frontal knee X-ray.
        accuracy_fp32, qwk_fp32, warned_fp32: of the model.
        same_grades: share that both give the same grade.
    """

    num_xrays: int
    accuracy: float
    accuracy_fp32: float
    qwk: float
    qwk_fp32: float
    warned: float
    warned_fp32: float
    same_grades: float


def export_int8(checkpoint: Path, folder: Path, data_dir: Path, count: int = CALIBRATION_XRAYS) -> dict[str, Measured]:
    """Writes what `clip-koa grade --backend openvino` takes in 8 bits, whole or not at all.

    Returns:
        What it costs, by precision: int8, and int8+bf16 where this machine's processor computes in bf16.

    Args:
        checkpoint: a model folder.
        data_dir: a corpus with the splits train, to calibrate on, and validation, to measure on.
        count: of the training X-rays that are taken.

    Raises:
        CheckpointError: a checkpoint that cannot grade.
        CorpusError, RadiographError: no such splits, or an X-ray that cannot be read.
        ExportError: something else lies in the export's place, or no checkpoint.
        ImportError: the extra openvino is not installed.
    """
    check_folders(checkpoint, folder, EXPORT_FILE, "export for OpenVINO")
    listing = list_files(data_dir)
    for split in ("train", "validation"):
        if split not in listing:
            raise CorpusError(
                f"{data_dir} has no {split} split: 8 bits are calibrated on train, measured on validation."
            )
    model, _ = load_checkpoint(str(checkpoint), dtype=torch.float32)
    networks = _quantize(model, spread(listing["train"], count))
    from openvino import save_model

    with written_whole(folder) as temporary:
        for part, network in networks.items():
            save_model(network, temporary / NETWORK_FILE.format(part), compress_to_fp16=False)
        copy_beside(checkpoint, temporary, LOCALISATION_FILE)
        about = {"precision": "int8", "made_of": provenance.model_digest(str(checkpoint)), "calibration_xrays": count}
        _write_about(temporary, about)
        exports = [OpenVINOModel(temporary, precision, keep=False) for precision in (None, "auto")]
        ways = {export.precision: export for export in exports}
        measured = measure(ways, OpenVINOModel(checkpoint), spread(listing["validation"], _MEASURED_XRAYS))
        _write_about(temporary, about | {"validation": {way: asdict(cost) for way, cost in measured.items()}})
    return measured


def spread(xrays: list[Xray], count: int) -> list[Xray]:
    """At most `count` X-rays of a list, spread evenly over it and so over its grades."""
    places = np.linspace(0, len(xrays) - 1, min(count, len(xrays)))
    return [xrays[round(place)] for place in places]


def measure(ways: dict[str, GradesXrays], model: GradesXrays, xrays: list[Xray]) -> dict[str, Measured]:
    """What exports say of X-rays as they are, each against the model that it was made of."""
    answers, truth = [], []
    with tqdm(total=len(xrays), desc="measuring", unit="X-ray") as bar:
        for start in range(0, len(xrays), _BATCH_SIZE):
            batch = xrays[start : start + _BATCH_SIZE]
            pictures = list(_pictures(batch))
            every = (way.grade(pictures, keep_polarity=True) for way in (model, *ways.values()))
            answers += zip(*every, strict=True)
            truth += [xray.grade for xray in batch]
            bar.update(len(batch))
    grades = np.array([[grade.grade for grade in answer] for answer in answers]).T  # (1 + ways, N)
    warned = np.array([[grade.is_atypical for grade in answer] for answer in answers]).mean(0)
    accuracy = (grades == np.array(truth)).mean(1)
    qwk = [cohen_kappa_score(truth, said, weights="quadratic") for said in grades]
    same = (grades == grades[0]).mean(1)

    def cost(place: int) -> Measured:
        figures = (figure[each] for figure in (accuracy, qwk, warned) for each in (place, 0))
        return Measured(len(xrays), *map(float, figures), float(same[place]))

    return {way: cost(place) for place, way in enumerate(ways, start=1)}


def _quantize(model: CLIPKOAForImageClassification, xrays: list[Xray]) -> dict:
    """The networks of a model with weights and inputs of their matrix products in 8 bits."""
    networks, pictures = convert(model), list(_pictures(xrays))
    last = model.config.vision_config.num_hidden_layers - 1
    kept = {GRADING: [pattern.format(last=last) for pattern in _IN_FP32]}
    samples = {GRADING: [model.beside.preprocess([picture]).numpy() for picture in pictures]}
    if FINDING in networks:
        locator = model.beside.locator
        windows = [window for picture in pictures for window in _windows(picture, locator.window)]
        samples[FINDING] = [locator.pixels([window]).numpy() for window in windows]
    return {part: _quantized(network, samples[part], kept.get(part, [])) for part, network in networks.items()}


def _quantized(network, samples: list[np.ndarray], in_fp32: list[str]):
    """A network calibrated on samples (1, 3, H, W): weights in 8 bits a channel, symmetric, inputs asymmetric.

    Args:
        in_fp32: patterns of the operations that stay as they are.
    """
    with quiet():
        import nncf

        return nncf.quantize(
            network, nncf.Dataset(samples), subset_size=len(samples), model_type=nncf.ModelType.TRANSFORMER,
            preset=nncf.QuantizationPreset.MIXED, ignored_scope=nncf.IgnoredScope(patterns=in_fp32, validate=False),
        )  # fmt: skip


def _windows(crop: Image.Image, size: int) -> Iterator[Image.Image]:
    """Windows of `size` pixels about the middle of a crop."""
    for share in _WINDOWS:
        yield Pyramid(crop).window((0, crop.height / 2), share * min(crop.size), size)


def _pictures(xrays: list[Xray]) -> Iterator[Image.Image]:
    for xray, content in read_contents(xrays):
        yield read_xray(xray, content).image


def _write_about(folder: Path, about: dict) -> None:
    (folder / EXPORT_FILE).write_text(json.dumps(about, indent=1), encoding="utf-8")
