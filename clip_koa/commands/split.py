"""`clip-koa split`: what `python -m dataset_script.splitter` does, whose options it takes."""

from typing import Annotated

from typer import Argument

from clip_koa.commands import HANDED_ON

SETTINGS = HANDED_ON


def split(arguments: Annotated[list[str] | None, Argument(metavar="[OPTIONS]")] = None) -> int:
    """Split graded X-rays by person."""
    from dataset_script import splitter

    return splitter.run(arguments or [], "clip-koa split")
