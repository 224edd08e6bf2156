"""`clip-koa audit`: what `python -m dataset_script.audit` does, whose options it takes."""

from typing import Annotated

from typer import Argument

from clip_koa.commands import HANDED_ON

SETTINGS = HANDED_ON


def audit(arguments: Annotated[list[str] | None, Argument(metavar="[OPTIONS]")] = None) -> int:
    """Say whether a corpus is fit to train on."""
    from dataset_script import audit

    return audit.run(arguments or [], "clip-koa audit")
