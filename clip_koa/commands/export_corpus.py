"""`clip-koa export-corpus`: what `python -m dataset_script.export` does, whose options it takes."""

from typing import Annotated

from typer import Argument

from clip_koa.commands import HANDED_ON

SETTINGS = HANDED_ON


def export_corpus(arguments: Annotated[list[str] | None, Argument(metavar="[OPTIONS]")] = None) -> int:
    """Write a corpus as Parquet files with a card."""
    from dataset_script import export

    return export.run(arguments or [], "clip-koa export-corpus")
