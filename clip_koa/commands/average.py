"""`clip-koa average`."""

from pathlib import Path
from typing import Annotated

from typer import Argument, Option

from clip_koa.memory import importing


def average(
    models: Annotated[list[str], Argument(metavar="MODEL", help="Two model folders or more, or Hub ids.")],
    output: Annotated[Path, Option(help="Folder to write to.")],
) -> None:
    """Average the weights of several models.

    Runs that go on from the same weights end close enough to each other that the mean of their weights is a good model
    too, often a better one, at the cost of one (Wortsman et al. 2022, arXiv 2203.05482). Evaluate what comes out.
    """
    with importing():
        from clip_koa.evaluation.loading import load_tokenizer
        from clip_koa.locks import WriterLock
        from clip_koa.training.averaging import average_checkpoints
        from clip_koa.training.checkpoints import save_model_folder

    with WriterLock(output):
        model, image_processor = average_checkpoints(models)
        save_model_folder(output, model, image_processor, load_tokenizer(models[0], model))
    print(f"Model:  {output}")
