"""An exported folder: the graph in fp32 or int8, what grading needs beside it; checked before it is put in place."""

import shutil
import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnxruntime.quantization import QuantType, quantize_dynamic

from clip_koa.exporting.graph import ExportError, build_graph
from clip_koa.grading.onnx_network import MODEL_FILE, OnnxNetwork
from clip_koa.training.checkpoints import written_whole
from dataset_script.synthetic import GRADES, draw_knee
from modeling_clip_koa import CALIBRATION_FILE, TYPICALITY_FILE, CLIPKOAGrader
from modeling_clip_koa.grader_clip_koa import load_checkpoint

TOLERANCE = 1e-4  # of a probability, in fp32
_BESIDE = ("config.json", "preprocessor_config.json", CALIBRATION_FILE, TYPICALITY_FILE)


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
    if folder.exists() and not (folder / MODEL_FILE).is_file():
        raise ExportError(f"{folder} is there and no export: name another folder.")
    for name in _BESIDE[:2]:
        if not (checkpoint / name).is_file():
            raise ExportError(f"{checkpoint} has no {name}: name a model folder, such as runs/demo/best.")
    model, image_processor = load_checkpoint(str(checkpoint), dtype=torch.float32)
    with written_whole(folder) as temporary:
        _write_graph(model, temporary / MODEL_FILE, int8)
        for name in _BESIDE:
            if (checkpoint / name).is_file():
                shutil.copyfile(checkpoint / name, temporary / name)
        difference = compare(model, image_processor, OnnxNetwork(temporary))
        if not int8 and not difference <= TOLERANCE:
            raise ExportError(f"The graph's probabilities differ by {difference:.2g}, more than {TOLERANCE:g}.")
    return difference


def compare(model, image_processor, network: OnnxNetwork) -> float:
    """The largest difference of a probability, averaged or of either view, on drawn X-rays of each grade."""
    images = [draw_knee(grade, side, (11, grade)) for grade in GRADES for side in "LR"]
    one, other = (
        grader.grade(images)
        for grader in (
            CLIPKOAGrader(model, image_processor),
            CLIPKOAGrader(None, image_processor, network=network, labels=model.config.id2label),
        )
    )
    parts = ("probabilities", "image_probabilities", "mirror_probabilities")
    return max(
        float(np.abs(np.subtract(getattr(ours, part), getattr(theirs, part))).max())
        for ours, theirs in zip(one, other, strict=True)
        for part in parts
    )


def _write_graph(model, path: Path, int8: bool) -> None:
    graph = build_graph(model)
    onnx.checker.check_model(graph)
    if not int8:
        onnx.save(graph, path)
        return
    with tempfile.TemporaryDirectory() as folder:
        whole = Path(folder) / MODEL_FILE
        onnx.save(graph, whole)
        # The type is told, for shapes cannot be inferred through ONNX Runtime's own operations.
        quantize_dynamic(
            whole, path, weight_type=QuantType.QInt8, per_channel=True, op_types_to_quantize=["MatMul"],
            extra_options={"DefaultTensorType": onnx.TensorProto.FLOAT},
        )  # fmt: skip
