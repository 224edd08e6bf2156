"""By what a model's networks are computed: PyTorch, OpenVINO, or ONNX Runtime."""

from importlib.util import find_spec
from pathlib import Path

import torch

from clip_koa.grading.model_loading import CheckpointError, load_checkpoint
from clip_koa.grading.onnx_network import MODEL_FILE, ExportedModel
from clip_koa.grading.openvino_network import EXPORT_FILE, OpenVINOModel
from clip_koa.grading.precision import PRECISIONS, set_precision
from modeling_clip_koa.grading_clip_koa import GradesXrays

BACKENDS = ("auto", "pytorch", "openvino", "onnx")


def choose_backend(name: str, device: str | None = None) -> str:
    """What auto stands for: what an exported folder is for, OpenVINO on a CPU where it is installed, else PyTorch.

    Args:
        name: model folder or Hub id.
        device: a torch device; default: a GPU where there is one.
    """
    if (Path(name) / MODEL_FILE).is_file():
        return "onnx"
    if (Path(name) / EXPORT_FILE).is_file():
        return "openvino"
    is_cpu = torch.device(device).type == "cpu" if device else not torch.cuda.is_available()
    return "openvino" if is_cpu and find_spec("openvino") else "pytorch"


def is_export(name: str) -> bool:
    """Whether a folder holds networks alone, which give no gradients and so draw no heat maps."""
    return any((Path(name) / file).is_file() for file in (MODEL_FILE, EXPORT_FILE))


def load_model(name: str, backend: str, precision: str | None, device: str | None) -> tuple[GradesXrays, str]:
    """A model that grades, and the precision in which it does.

    Args:
        name: model folder or Hub id; for onnx, a folder that clip-koa export-onnx wrote.
        backend: one of `BACKENDS` but auto.
        precision: one of `PRECISIONS`; default: that of an export, else fp32.
        device: a torch device, for PyTorch; default: a GPU where there is one.

    Raises:
        CheckpointError: no such model, a damaged one, or a precision that it cannot be graded in.
        ImportError: the backend is not installed.
        ValueError: another backend or precision.
    """
    for value, known, what in ((backend, BACKENDS[1:], "backend"), (precision or "fp32", PRECISIONS, "precision")):
        if value not in known:
            raise ValueError(f"There is no {what} {value!r}: use one of {', '.join(known)}.")
    if backend == "openvino":
        model = OpenVINOModel(name, precision)
        return model, model.precision
    if backend == "onnx":
        if precision:
            raise CheckpointError(f"--precision {precision}: an exported graph keeps the one it has; leave it out.")
        return ExportedModel(name), "exported"
    model, _ = load_checkpoint(name, dtype=torch.float32)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return model, set_precision(model, precision or "fp32")
