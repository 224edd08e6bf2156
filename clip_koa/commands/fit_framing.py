"""`clip-koa fit-framing`."""

from pathlib import Path
from typing import Annotated

from typer import Option

from clip_koa.commands.options import DataDir
from clip_koa.memory import importing, keep_freed_memory


def fit_framing(
    model: Annotated[str, Option(help="Model folder, such as runs/small/best, or Hub id.")],
    data_dir: DataDir = None,
    output: Annotated[
        Path | None, Option(help="File to write (default: localisation.safetensors in the model's folder).")
    ] = None,
    films: Annotated[
        Path | None, Option(help="DetKneeData, archive or folder: fit to its films as well as to crops.")
    ] = None,
    people: Annotated[int, Option(min=2, help="Of the train split, at most; and films.")] = 1500,
    per_person: Annotated[int, Option("--per_person", min=1, help="Windows of each.")] = 4,
    epochs: Annotated[int, Option(min=1, help="Over the windows.")] = 20,
    seed: Annotated[int, Option(help="Of windows and fit.")] = 0,
) -> None:  # fmt: skip
    """Fit what finds knees on films to training X-rays.

    No film is needed: windows are cut out of the train split's crops and out of films composed of them. Real films
    whose knees are known may be added. What is fitted lies beside the weights, in localisation.safetensors; the
    weights stay as they are.
    """
    with importing():
        import torch

        from clip_koa.evaluation.loading import CheckpointError, load_checkpoint
        from clip_koa.files import write_file
        from clip_koa.localisation.fit import describe, fit_locator
        from clip_koa.locks import WriterLock
        from dataset_script.layouts import resolve_data_dir
        from modeling_clip_koa.localisation_clip_koa import LOCALISATION_FILE, locator_file

    if not output and not Path(model).is_dir():
        raise CheckpointError(f"--model {model} is no folder to write to: name a file by --output.")
    keep_freed_memory()
    output = output or Path(model) / LOCALISATION_FILE
    # What replaces a model folder would take the file away with it.
    with WriterLock(output.parent if (output.parent / "config.json").is_file() else output):
        loaded, image_processor = load_checkpoint(model, dtype=torch.float32)
        numbers = {"people": people, "per_person": per_person, "epochs": epochs, "seed": seed}
        locator, found = fit_locator(loaded, image_processor, resolve_data_dir(data_dir), films=films, **numbers)
        write_file(output, locator_file(locator))
    print(f"{describe(found)}\nFile:  {output}")
