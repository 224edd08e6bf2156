"""`clip-koa draw`: what `python -m dataset_script.synthetic` does, whose options it takes."""

from typing import Annotated

from typer import Argument

from clip_koa.commands import HANDED_ON

SETTINGS = HANDED_ON


def draw(arguments: Annotated[list[str] | None, Argument(metavar="[OPTIONS]")] = None) -> int:
    """Draw knee X-rays by grade, for tests."""
    from dataset_script import synthetic

    return synthetic.run(arguments or [], "clip-koa draw")
