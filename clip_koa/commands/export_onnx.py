"""`clip-koa export-onnx`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from clip_koa.memory import importing


def export_onnx(
    checkpoint: Annotated[Path, Argument(metavar="MODEL", help="Model folder, such as runs/demo/best.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder; an earlier export there is replaced.")],
    int8: Annotated[bool, Option("--int8", help="Matrix products in 8 bits: faster, not quite the same.")] = False,
) -> None:
    """Export a model for ONNX Runtime.

    Both views, calibration and softmax are in one graph. It is checked against the model before it is put in place.
    `clip-koa grade --backend onnx --model OUTPUT` runs it.
    """
    with importing():
        from clip_koa.exporting.export import export
        from clip_koa.locks import WriterLock

    with WriterLock(output):
        difference = export(checkpoint, output, int8)
    size = (output / "model.onnx").stat().st_size / 2**20
    print(f"{output}: {size:.1f} MiB; probabilities differ by at most {difference:.1g} on drawn X-rays.")
