"""`clip-koa export-openvino`."""

from pathlib import Path
from typing import Annotated

from typer import Argument

from clip_koa.commands.options import DataDir
from clip_koa.memory import importing, keep_freed_memory


def export_openvino(
    checkpoint: Annotated[Path, Argument(metavar="MODEL", help="Model folder, such as runs/demo/best.")],
    output: Annotated[Path, Argument(metavar="OUTPUT", help="Folder; an earlier export there is replaced.")],
    data_dir: DataDir = None,
) -> None:
    """Export a model in 8 bits for OpenVINO.

    Matrix products in 8 bits are faster and not quite the same. They are calibrated on X-rays of the train split. What
    they cost is measured on the validation split and printed. `clip-koa grade --model OUTPUT` grades with them.
    """
    with importing():
        from clip_koa.exporting.openvino_export import export_int8
        from clip_koa.locks import WriterLock
        from dataset_script.layouts import resolve_data_dir

    keep_freed_memory()
    with WriterLock(output):
        measured = export_int8(checkpoint, output, resolve_data_dir(data_dir))
    print(f"{output}: what 8 bits cost, on the X-rays of validation; int8+bf16 is graded by --precision auto.")
    for precision, cost in measured.items():
        print(
            f"{precision}: {cost.same_grades:.1%} of {cost.num_xrays} get the grade that fp32 gives. "
            f"Accuracy {cost.accuracy:.3f} (fp32 {cost.accuracy_fp32:.3f}), QWK {cost.qwk:.3f} ({cost.qwk_fp32:.3f}), "
            f"taken for no frontal knee X-ray: {cost.warned:.1%} ({cost.warned_fp32:.1%})."
        )
