"""An exported folder: the graph in fp32 or int8, what grading needs beside it; checked before it is put in place."""

import shutil
import sys
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch

from clip_koa.exporting.folders import ExportError, check_folders, copy_beside
from clip_koa.grading.model_loading import load_checkpoint
from clip_koa.grading.networks import GradingNetwork, quiet
from clip_koa.grading.onnx_network import INPUT, MODEL_FILE, OUTPUTS, ExportedModel
from clip_koa.training.checkpoints import written_whole
from dataset_script.synthetic import GRADES, draw_knee
from modeling_clip_koa import CLIPKOAForImageClassification

TOLERANCE = 1e-4  # of a probability, in fp32
_OPSET = 20  # the first with an operation of its own for GELU


class _WithProbabilities(GradingNetwork):
    """What is exported of a model: probabilities before all that `grade` reads."""

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        logits, flipped_logits, features = super().forward(pixel_values)
        return ((logits + flipped_logits) / 2).softmax(-1), logits, flipped_logits, features


def export(checkpoint: Path, folder: Path, int8: bool) -> float:
    """Writes what `clip-koa grade --backend onnx` takes, whole or not at all.

    Args:
        checkpoint: a model folder.
        int8: weights of the matrix products in 8 bits a channel, their inputs in 8 bits as they come (dynamic).

    Returns:
        The largest difference of a probability from the checkpoint's own, on generated X-rays.

    Raises:
        CheckpointError: a checkpoint that cannot grade.
        ExportError: something else lies in the export's place, no checkpoint, one that cannot be exported, or (fp32) a
            difference above 1e-4.
    """
    check_folders(checkpoint, folder, MODEL_FILE)
    model, _ = load_checkpoint(str(checkpoint), dtype=torch.float32)
    with written_whole(folder) as temporary:
        write_graph(model, temporary / MODEL_FILE, int8)
        copy_beside(checkpoint, temporary)
        difference = compare(model, ExportedModel(temporary))
        if not int8 and not difference <= TOLERANCE:
            raise ExportError(f"The graph's probabilities differ by {difference:.2g}, more than {TOLERANCE:g}.")
    return difference


def compare(model: CLIPKOAForImageClassification, exported: ExportedModel) -> float:
    """The largest difference of a probability, averaged or of either view, on drawn X-rays of each grade."""
    images = [draw_knee(grade, side, (11, grade)) for grade in GRADES for side in "LR"]
    parts = ("probabilities", "image_probabilities", "mirror_probabilities")
    return max(
        float(np.abs(np.subtract(getattr(ours, part), getattr(theirs, part))).max())
        for ours, theirs in zip(model.grade(images), exported.grade(images), strict=True)
        for part in parts
    )


def write_graph(model: CLIPKOAForImageClassification, path: Path, int8: bool) -> None:
    """Writes the graph of what `model.grade` computes, in fp32 or int8."""
    vision = model.config.vision_config
    sample = torch.zeros(2, vision.num_channels, vision.image_size, vision.image_size)
    with tempfile.TemporaryDirectory() as folder, quiet():
        whole = Path(folder) / MODEL_FILE
        program = torch.onnx.export(
            _WithProbabilities(model), (sample,), dynamo=True, opset_version=_OPSET,
            verbose=False, input_names=[INPUT], output_names=["probabilities", *OUTPUTS],
            dynamic_shapes={INPUT: {0: torch.export.Dim("N")}},
        )  # fmt: skip
        program.save(whole)
        onnx.checker.check_model(whole)
        if int8:
            quantize(whole, path)
        else:
            shutil.copyfile(whole, path)


def quantize(whole: Path, path: Path) -> None:
    """Writes a graph's weights and the inputs of its matrix products with 8 bits."""
    places = list(sys.path)
    from onnxruntime.quantization import QuantType, quantize_dynamic

    sys.path[:] = places  # it adds a folder of its own, whose metrics.py would hide ours of an editable install
    quantize_dynamic(
        whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"],
        extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
    )  # fmt: skip
