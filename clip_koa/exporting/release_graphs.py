"""The graphs of a published model, one in each precision, in the names that transformers.js and Optimum look for."""

from collections.abc import Iterator
from pathlib import Path

import onnx

from clip_koa.exporting.export import compare, quantize, write_graph
from clip_koa.exporting.folders import ExportError
from clip_koa.grading.networks import quiet
from clip_koa.grading.onnx_network import RELEASE_FILES, ExportedModel
from modeling_clip_koa import CLIPKOAForImageClassification

# Of a probability on drawn X-rays. The lower precisions differ by design: theirs only tell a broken graph.
TOLERANCES = {"fp32": 1e-4, "fp16": 0.05, "int8": 0.25}


def write_release_graphs(model: CLIPKOAForImageClassification, folder: Path) -> dict[str, float]:
    """Writes `RELEASE_FILES` into a published model's folder, which holds its configuration already.

    All three compute what `model.grade` does, calibration and both views included, from pixel values in fp32.

    Args:
        model: as the folder's weights are.

    Returns:
        For each precision the largest difference of a probability from the model's own, on drawn X-rays.

    Raises:
        ExportError: a graph that differs by more than its precision explains.
    """
    paths = {precision: folder / file for precision, file in RELEASE_FILES.items()}
    paths["fp32"].parent.mkdir()
    write_graph(model, paths["fp32"], int8=False)
    with quiet():
        quantize(paths["fp32"], paths["int8"])
        _halve(paths["fp32"], paths["fp16"])
    for path in paths.values():
        _drop_notes(path)
    differences = {name: compare(model, ExportedModel(folder, file)) for name, file in RELEASE_FILES.items()}
    for precision, difference in differences.items():
        if not difference <= TOLERANCES[precision]:
            raise ExportError(
                f"{RELEASE_FILES[precision]}: its probabilities differ by {difference:.2g}, more than "
                f"{TOLERANCES[precision]:g}."
            )
    return differences


def _halve(whole: Path, path: Path) -> None:
    """Writes a graph that computes in fp16; what goes in and comes out stays fp32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16
    from onnxruntime.transformers.onnx_model import OnnxModel

    halved = OnnxModel(convert_float_to_float16(onnx.load(whole), keep_io_types=True))
    halved.topological_sort()  # the conversion puts its casts at the end
    onnx.save(halved.model, path)


def _drop_notes(path: Path) -> None:
    """Takes out what the exporter notes of the code and the machine that it ran on; nothing reads it."""
    model = onnx.load(path)
    for part in _parts(model):
        for field in ("metadata_props", "doc_string"):
            part.ClearField(field)
    onnx.save(model, path)


def _parts(model: onnx.ModelProto) -> Iterator:
    """All of a graph that can carry notes."""
    graph = model.graph
    yield from (model, graph, *graph.node, *graph.input, *graph.output, *graph.initializer, *graph.value_info)
