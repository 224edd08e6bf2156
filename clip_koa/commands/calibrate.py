"""`clip-koa calibrate`."""

from pathlib import Path
from typing import Annotated

from typer import Option

from clip_koa.commands.options import DataDir, Split
from clip_koa.memory import importing, keep_freed_memory


def calibrate(
    model: Annotated[str, Option(help="Model folder, such as runs/small/best, or Hub id.")],
    data_dir: DataDir = None,
    split: Split = "validation",
    level: Annotated[float, Option(help="Of the confidence sets that are reported on.")] = 0.9,
    typical_xrays: Annotated[
        int,
        Option(
            "--typical_xrays", min=0,
            help="Training X-rays from which the model learns to tell images unlike them; 0: none.",
        ),
    ] = 2000,
    keep_weights: Annotated[
        bool,
        Option("--keep_weights", help="Leave the weights; fit anew what is kept beside them."),
    ] = False,
    output: Annotated[Path | None, Option(help="Folder to write to (default: the model's own).")] = None,
) -> None:  # fmt: skip
    """Calibrate a model on another split.

    The split is one that the model was not trained on. The command divides a temperature into the weights of each
    head, and keeps beside them what the confidence sets need, how the grades of a person's two knees go together, and
    what training X-rays look like. The model is replaced whole; with --keep_weights only the files beside its weights.
    """
    with importing():
        from accelerate import Accelerator

        from clip_koa.calibration import checkpoint
        from clip_koa.evaluation.loading import split_name
        from clip_koa.files import write_file
        from clip_koa.locks import WriterLock, only_writer
        from clip_koa.training.checkpoints import save_model_folder

    request = checkpoint.CalibrationRequest(model, data_dir, split_name(split), level, typical_xrays, keep_weights)
    folder = checkpoint.folder_to_write(request, output)
    keep_freed_memory()
    accelerator = Accelerator(mixed_precision="no")
    with only_writer(accelerator, WriterLock(folder)):
        done = checkpoint.calibrate_checkpoint(request, accelerator)
        if accelerator.is_main_process:
            if keep_weights:
                for name, content in done.files.items():
                    write_file(folder / name, content)
            else:
                save_model_folder(folder, done.model, done.image_processor, done.tokenizer, done.files)
            print(f"{checkpoint.describe_calibration(done.report)}\nModel:  {folder}")
