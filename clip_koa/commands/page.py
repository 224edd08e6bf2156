"""`clip-koa page`."""

from pathlib import Path
from typing import Annotated

from typer import Option

from clip_koa.memory import importing


def page(
    model: Annotated[
        str | None,
        Option(help="Model folder or Hub id (default: $CLIP_KOA_MODEL, what a Space's card names, the released one)."),
    ] = None,
    level: Annotated[float, Option(help="Of the confidence sets.")] = 0.9,
    host: Annotated[
        str | None, Option(help="Address to listen on (default: this computer only; 0.0.0.0: all networks).")
    ] = None,
    port: Annotated[
        int | None, Option(min=1, max=65535, help="Port (default: the first free one from 7860 on).")
    ] = None,
    max_visitors: Annotated[int, Option("--max_visitors", min=1, help="Visitors at a time.")] = 100,
    keep_minutes: Annotated[
        float, Option("--keep_minutes", help="X-rays of a visit that nobody uses are forgotten after so many minutes.")
    ] = 60,
    examples: Annotated[
        Path | None, Option(metavar="DIR", help="X-rays that a visitor may try (default: examples/).")
    ] = None,
    mcp: Annotated[bool, Option("--mcp", help="Also serve agents, over the Model Context Protocol.")] = False,
) -> None:
    """Serve a page that grades X-rays.

    One drops X-rays on it, reads grade, certainty and heat map, and keeps a report. It works offline, sends nothing
    anywhere and keeps nothing of a visit.
    """
    with importing():
        from clip_koa.webapp.serve import PageSettings, serve

    serve(PageSettings(model, level, host, port, max_visitors, keep_minutes, examples, mcp))
