"""The networks that run in a browser, as ONNX graphs whose large weights are kept in 8 or 16 bits.

Only the weights are rounded: what passes between layers stays in fp32. So the graphs are small to fetch and give the
checkpoint's grades; rounding what passes between the layers too gave another grade to one of ten examples. Weights of
the network that finds knees have 16 bits, since a box that is a pixel off changes a grade more than 8 bits of the
other do (docs/notebook/browser_trials.md).
"""

import tempfile
from pathlib import Path

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper

from clip_koa.grading.networks import GradingNetwork, quiet
from modeling_clip_koa import CLIPKOAForImageClassification
from modeling_clip_koa.localisation_clip_koa import KneeLocator

GRADE_FILE, LOCATE_FILE = "grade.onnx", "locate.onnx"
_OPSET = 20  # the first with an operation of its own for GELU
_LEAST_WEIGHTS = 4096  # of a matrix that is rounded


class _Locates(torch.nn.Module):
    """Windows (N, S, S), gray values 0 to 255, to what `KneeLocator.locate` gives of them, (N, 6)."""

    def __init__(self, model: CLIPKOAForImageClassification, locator: KneeLocator):
        super().__init__()
        self.model, self.locator = model, locator
        self.register_buffer("signs", torch.tensor([-1.0, 1.0, 1.0, -1.0, 1.0, 1.0]))

    def forward(self, windows: torch.Tensor) -> torch.Tensor:
        locator = self.locator
        views = torch.cat([windows, windows.flip(-1)])[:, None] / 255
        pixels = (views - locator.image_mean[:, None, None]) / locator.image_std[:, None, None]
        tokens = self.model.tokens_after(pixels, locator.blocks, any_size=True)[:, 1:]
        found = torch.cat([locator(tokens), locator.strangeness(tokens)[:, None].float()], dim=1)
        count = windows.shape[0]
        found = (found[:count] + found[count:] * self.signs) / 2
        return torch.cat([found[:, :4], found[:, 4:5].sigmoid(), found[:, 5:]], dim=1)


def write_graphs(model: CLIPKOAForImageClassification, folder: Path) -> list[str]:
    """Writes the graphs of a model, and returns their names: that which grades, and where it finds knees that too.

    Args:
        model: in fp32 and in evaluation mode.
        folder: is there.
    """
    vision = model.config.vision_config
    pixels = torch.zeros(2, vision.num_channels, vision.image_size, vision.image_size)
    network = GradingNetwork(model)
    _write(network, pixels, "pixel_values", ("logits", "flipped_logits", "features"), folder / GRADE_FILE, 8)
    if not model.can_find_knees:
        return [GRADE_FILE]
    locator = model.beside.locator
    windows = torch.zeros(2, locator.window, locator.window)
    _write(_Locates(model, locator), windows, "windows", ("found",), folder / LOCATE_FILE, 16)
    return [GRADE_FILE, LOCATE_FILE]


def _write(
    network: torch.nn.Module, sample: torch.Tensor, name: str, outputs: tuple[str, ...], path: Path, bits: int
) -> None:  # fmt: skip
    with tempfile.TemporaryDirectory() as place, quiet():
        whole = Path(place) / path.name
        torch.onnx.export(
            network.eval(), (sample,), dynamo=True, opset_version=_OPSET, verbose=False, input_names=[name],
            output_names=list(outputs), dynamic_shapes=({0: torch.export.Dim("N")},),
        ).save(whole)  # fmt: skip
        graph = onnx.load(whole)
    _round_weights(graph.graph, bits)
    _forget_origin(graph)
    onnx.checker.check_model(graph)
    onnx.save(graph, path)


def _round_weights(graph: onnx.GraphProto, bits: int) -> None:
    """Keeps the matrices of matrix products in 8 bits, with a scale for each column, or in 16.

    ONNX Runtime makes them 32 bits again once, when it loads the graph.
    """
    read = {name for node in graph.node if node.op_type in ("MatMul", "Gemm") for name in node.input}
    kept, added = [], []
    for tensor in graph.initializer:
        is_matrix = tensor.data_type == TensorProto.FLOAT and len(tensor.dims) == 2
        if tensor.name not in read or not is_matrix or np.prod(tensor.dims) < _LEAST_WEIGHTS:
            kept.append(tensor)
            continue
        values, name = numpy_helper.to_array(tensor), tensor.name
        if bits == 16:
            kept.append(numpy_helper.from_array(values.astype(np.float16), f"{name}.rounded"))
            added.append(helper.make_node("Cast", [f"{name}.rounded"], [name], to=TensorProto.FLOAT))
            continue
        scale = np.maximum(np.abs(values).max(0, keepdims=True) / 127, np.finfo(np.float32).tiny)
        rounded = np.rint(values / scale).astype(np.int8)
        kept.append(numpy_helper.from_array(rounded, f"{name}.rounded"))
        kept.append(numpy_helper.from_array(scale.astype(np.float32), f"{name}.scale"))
        added.append(helper.make_node("Cast", [f"{name}.rounded"], [f"{name}.cast"], to=TensorProto.FLOAT))
        added.append(helper.make_node("Mul", [f"{name}.cast", f"{name}.scale"], [name]))
    nodes = [*added, *graph.node]
    del graph.initializer[:], graph.node[:]
    graph.initializer.extend(kept)
    graph.node.extend(nodes)


def _forget_origin(model: onnx.ModelProto) -> None:
    """Takes out what the exporter notes of each node: it names files of this machine."""
    graph = model.graph
    for part in (model, graph, *graph.node, *graph.value_info, *graph.input, *graph.output, *graph.initializer):
        part.doc_string = ""
        del part.metadata_props[:]
    del graph.value_info[:]
