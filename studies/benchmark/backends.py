"""Both views by each backend and precision, against one view of transformers' image-classification pipeline."""

import tempfile
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

from PIL import Image

from clip_koa.grading.grader import Grader
from dataset_script.synthetic import draw_knee
from studies.benchmark.inference import LINEAR, draw_images, pipelines, write_model
from studies.benchmark.measure import measure, ratio

_CALIBRATION_XRAYS = 30


def measure_backends(name: str, batch_size: int, prompts: str, rounds: int) -> dict:
    """X-rays per second from images in memory to grades, over the pipeline's in fp32, with the same weights.

    Args:
        name: of `MODELS`; its weights are random, and the same for all.

    Returns:
        For each backend and precision that the machine has: `X-rays/s` of both views over those of the pipeline's one.
    """
    images = draw_images(name, batch_size)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary) / "model"
        write_model(folder, name, prompts)
        pipeline = pipelines(folder, images, [])[LINEAR]
        ways = _ways(folder, images)
        seconds = measure({LINEAR: pipeline} | ways, rounds)
    return {f"{way}, X-rays/s over the pipeline": ratio(seconds[LINEAR], seconds[way]) for way in ways}


def _ways(folder: Path, images: list[Image.Image]) -> dict[str, Callable]:
    """Each gives the grades of all images; those whose extra is missing are left out."""
    graders = {f"PyTorch {kind}": Grader(str(folder), precision=kind) for kind in ("fp32", "bf16")}
    if find_spec("openvino"):
        graders["OpenVINO fp32"] = Grader(str(folder), backend="openvino")
        fast = Grader(str(folder), backend="openvino", precision="auto")
        graders[f"OpenVINO {fast.precision}"] = fast
    if find_spec("openvino") and find_spec("nncf"):
        exported = str(_in_int8(folder))
        graders["OpenVINO int8"] = Grader(exported, backend="openvino")
        fast = Grader(exported, backend="openvino", precision="auto")
        graders[f"OpenVINO {fast.precision}"] = fast
    if find_spec("onnx") and find_spec("onnxruntime"):
        from clip_koa.exporting.export import export

        for kind in ("fp32", "int8"):
            exported = folder.with_name(f"onnx-{kind}")
            export(folder, exported, kind == "int8")
            graders[f"ONNX Runtime {kind}"] = Grader(str(exported), backend="onnx")
    return {way: lambda model=grader.model: model.grade(images) for way, grader in graders.items()}


def _in_int8(folder: Path) -> Path:
    """The export in 8 bits, calibrated on drawn X-rays: their number and content change nothing of its speed."""
    from clip_koa.exporting.openvino_export import export_int8

    corpus, exported = folder.with_name("corpus"), folder.with_name("int8")
    for split, count in (("train", _CALIBRATION_XRAYS), ("val", 5)):
        for number in range(count):
            place = corpus / split / str(number % 5)
            place.mkdir(parents=True, exist_ok=True)
            draw_knee(number % 5, "L", number, 224).save(place / f"{split}{number}.png")
    export_int8(folder, exported, corpus, _CALIBRATION_XRAYS)
    return exported
