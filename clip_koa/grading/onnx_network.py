"""An exported graph in the place of the model: the same logits from ONNX Runtime."""

from pathlib import Path

import torch
from transformers import AutoImageProcessor

from modeling_clip_koa import CLIPKOAConfig, CLIPKOAGrader
from modeling_clip_koa.grader_clip_koa import read_threshold, read_typicality

MODEL_FILE = "model.onnx"


class OnnxNetwork:
    """Grades pixel values in ONNX Runtime; a `Network` of `CLIPKOAGrader`.

    Args:
        folder: as `export_onnx.py` writes it.

    Raises:
        OSError: no exported model there.
        ImportError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / MODEL_FILE
        if not path.is_file():
            raise OSError(f"{folder} holds no {MODEL_FILE}: name a folder that export_onnx.py wrote.")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("ONNX Runtime is missing: pip install 'clip-koa[onnx]'.") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        self.session = onnxruntime.InferenceSession(
            path, options, providers=["CPUExecutionProvider"],
            disabled_optimizers=["SkipLayerNormFusion"],  # the fused operation is the slower one
        )  # fmt: skip

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) -> logits (N, K), the mirror images' (N, K), features (N, D)."""
        outputs = self.session.run(["logits", "flipped_logits", "features"], {"pixel_values": pixel_values.numpy()})
        return tuple(map(torch.from_numpy, outputs))


def load_exported(folder: str, level: float) -> CLIPKOAGrader:
    """The grader of an exported folder; raises as `OnnxNetwork` and `CLIPKOAGrader.from_pretrained` do."""
    network = OnnxNetwork(folder)
    labels = CLIPKOAConfig.from_pretrained(folder).id2label
    image_processor = AutoImageProcessor.from_pretrained(folder)
    return CLIPKOAGrader(
        None, image_processor, read_threshold(folder, level), read_typicality(folder), network=network, labels=labels
    )
