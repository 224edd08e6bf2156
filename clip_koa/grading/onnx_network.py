"""An exported model, which grades in ONNX Runtime as the checkpoint does in PyTorch."""

from pathlib import Path

import torch

from clip_koa.grading.model_loading import CheckpointError, checked_image_processor, load_config, readable
from modeling_clip_koa.grading_clip_koa import Beside, GradesXrays

MODEL_FILE = "model.onnx"
# Of a published model, by precision, in the names that transformers.js and Optimum look for.
RELEASE_FILES = {
    "fp32": "onnx/model.onnx",
    "fp16": "onnx/model_fp16.onnx",
    "int8": "onnx/model_quantized.onnx",
}
INPUT, OUTPUTS = "pixel_values", ("logits", "flipped_logits", "features")


class ExportedModel(GradesXrays):
    """The exported graph of a checkpoint in its place; it grades and cannot explain.

    Args:
        folder: as `clip-koa export-onnx` writes it, or a published model with graphs.
        file: of `RELEASE_FILES`; default: the graph that lies there, of full precision in a published model.

    Raises:
        CheckpointError: no exported model there, or a damaged one.
        ImportError: ONNX Runtime is not installed.
    """

    def __init__(self, folder: str | Path, file: str = ""):
        files = (file,) if file else (MODEL_FILE, RELEASE_FILES["fp32"])
        path = next((path for path in (Path(folder) / name for name in files) if path.is_file()), None)
        if path is None:
            raise CheckpointError(f"{folder} holds no {files[0]}: name a folder that clip-koa export-onnx wrote.")
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
        if missing := set(OUTPUTS) - {output.name for output in self.session.get_outputs()}:
            raise CheckpointError(f"{path} gives no {', '.join(sorted(missing))}: it is not of clip-koa export-onnx.")
        self.config = load_config(str(folder))
        self.beside = Beside.read(str(folder), self.config)
        checked_image_processor(str(folder), self.beside, self.config.vision_config.image_size)

    def grade_pixels(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(N, 3, H, W) -> logits (N, K), the mirror images' (N, K), features (N, D)."""
        outputs = self.session.run(list(OUTPUTS), {INPUT: pixel_values.numpy()})
        return tuple(map(torch.from_numpy, outputs))

    @property
    def can_find_knees(self) -> bool:
        """A graph gives no patches of the lower blocks."""
        return False

    def explain(self, *arguments, **options):
        """Raises `CheckpointError`: a graph gives no gradients."""
        raise CheckpointError("An exported network cannot explain: load the checkpoint it was exported from.")
