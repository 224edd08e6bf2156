"""An exported graph in the place of the model: the same logits from ONNX Runtime."""

from pathlib import Path

import torch

from modeling_clip_koa import CLIPKOAGrader
from modeling_clip_koa.grader_clip_koa import (
    CheckpointError,
    load_config,
    load_image_processor,
    read_threshold,
    read_typicality,
    readable,
)

MODEL_FILE = "model.onnx"
_OUTPUTS = ("logits", "flipped_logits", "features")


class OnnxNetwork:
    """Grades pixel values in ONNX Runtime; a `Network` of `CLIPKOAGrader`.

    Args:
        folder: as `clip-koa export-onnx` writes it.

    Raises:
        CheckpointError: no exported model there, or a damaged one.
        ImportError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: str | Path):
        path = Path(folder) / MODEL_FILE
        if not path.is_file():
            raise CheckpointError(f"{folder} holds no {MODEL_FILE}: name a folder that clip-koa export-onnx wrote.")
        try:
            import onnxruntime
        except ModuleNotFoundError as error:
            raise ImportError("ONNX Runtime is missing: pip install 'clip-koa[onnx]'.", name="onnxruntime") from error
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = torch.get_num_threads()
        with readable(str(path)):
            self.session = onnxruntime.InferenceSession(
                path, options, providers=["CPUExecutionProvider"],
                disabled_optimizers=["SkipLayerNormFusion"],  # the fused operation is the slower one
            )  # fmt: skip
        if missing := set(_OUTPUTS) - {output.name for output in self.session.get_outputs()}:
            raise CheckpointError(f"{path} gives no {', '.join(sorted(missing))}: it is not of clip-koa export-onnx.")

    def __call__(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) -> logits (N, K), the mirror images' (N, K), features (N, D)."""
        outputs = self.session.run(list(_OUTPUTS), {"pixel_values": pixel_values.numpy()})
        return tuple(map(torch.from_numpy, outputs))


def load_exported(folder: str, level: float) -> CLIPKOAGrader:
    """The grader of an exported folder; raises as `OnnxNetwork` and `CLIPKOAGrader.from_pretrained` do."""
    network = OnnxNetwork(folder)
    config = load_config(folder)
    image_processor = load_image_processor(folder, config.vision_config.image_size)
    threshold, typicality = read_threshold(folder, level), read_typicality(folder, config)
    return CLIPKOAGrader(None, image_processor, threshold, typicality, network=network, labels=config.id2label)
