"""`clip-koa grade`."""

from pathlib import Path
from typing import Annotated, Literal

from typer import Argument, Option

from clip_koa.memory import importing, keep_freed_memory
from clip_koa.released import released_model

Backend = Literal["auto", "pytorch", "openvino", "onnx"]
Precision = Literal["fp32", "bf16", "int8", "auto"]
Framing = Literal["auto", "as_is"]


def grade(
    inputs: Annotated[list[str], Argument(metavar="XRAY_OR_FOLDER", help="Files, folders of them, or patterns.")],
    model: Annotated[str, Option(help="Model folder or Hub id (default: the released one).")] = "",
    output: Annotated[Path | None, Option(help="Table: .csv, .jsonl, .parquet, or a folder for one.")] = None,
    level: Annotated[float, Option(help="How often the confidence set is to hold the true grade.")] = 0.9,
    backend: Annotated[Backend, Option(help="auto: OpenVINO on a CPU where it is installed, else PyTorch.")] = "auto",
    precision: Annotated[
        Precision | None,
        Option(help="bf16: faster on some hardware; int8: of clip-koa export-openvino. [default: fp32]"),
    ] = None,
    keep_polarity: Annotated[bool, Option("--keep_polarity", help="Do not invert X-rays whose bone is dark.")] = False,
    framing: Annotated[Framing, Option(help="auto: find the knees of films; as_is: X-rays are cropped.")] = "auto",
    pairs: Annotated[bool, Option("--pairs", help="Combine the grades of a person's two knees.")] = False,
    readings: Annotated[int, Option(help="1, or 3: also turned slightly either way, 3 times slower.")] = 1,
    explain: Annotated[Path | None, Option(metavar="DIR", help="Write the X-rays under heat maps there.")] = None,
    dicom_results: Annotated[
        Path | None,
        Option("--dicom_results", metavar="DIR", help="Write a report and a picture of each DICOM image there."),
    ] = None,
    ray: Annotated[str | None, Option(metavar="ADDRESS", help="Ray cluster: local, auto, or HOST:PORT.")] = None,
    cores: Annotated[int | None, Option(help="Of the cluster, how many cores grade (default: GPUs, or all).")] = None,
) -> int:
    """Grade X-rays, and say how sure the model is.

    Knees are found in films and in X-rays that are not cropped as the training X-rays are; each gets a row. Without
    --output it prints a line for each X-ray and one for its mirror image. A table that is there is brought up
    to date: what is new is graded, and a run that was stopped goes on where it was. With --ray all
    GPUs or cores of a machine grade, or those of a cluster.
    """
    model = model or released_model()
    with importing():
        from clip_koa.grading.run import GradeRun, grade_inputs

    keep_freed_memory()
    return grade_inputs(GradeRun(
        inputs, model, output, level, backend, precision, keep_polarity, explain, framing, pairs, dicom_results,
        ray, cores, readings,
    ))  # fmt: skip
