"""`clip-koa`, the one command: each subcommand is a file here that parses, calls one function of a room, and prints.

A subcommand is imported when it is asked for, and imports its room when it runs, so that help and completion are quick
and grading never waits for what only training needs.
"""

import functools
import sys
from collections.abc import Sequence
from importlib import import_module

import typer
from typer.core import TyperGroup

from clip_koa.threads import let_waiting_threads_sleep
from dataset_script.exit_status import MEANINGS, run_command

COMMANDS = (
    "grade", "page", "listen", "fetch", "train", "evaluate", "calibrate", "fit-framing", "average", "export-onnx",
    "export-openvino", "publish", "frame", "audit", "split", "export-corpus", "draw",
)  # fmt: skip
_STATUSES = "\n".join(f"  {status:<3} {meaning}" for status, meaning in MEANINGS.items())
_EPILOG = f"\b\nExit status of every command:\n{_STATUSES}\n  128 and more: stopped by a signal, nothing is kept"
# For commands whose options another parser knows: all that follows is handed on to it.
HANDED_ON = {
    "context_settings": {"ignore_unknown_options": True},
    "add_help_option": False,
    "options_metavar": "",
}


class _Commands(TyperGroup):
    """The subcommands, each imported when it is asked for."""

    def list_commands(self, ctx) -> list[str]:
        return list(COMMANDS)

    def get_command(self, ctx, cmd_name: str):
        return _load(cmd_name) if cmd_name in COMMANDS else None


def _load(name: str):
    """The parser of a subcommand, around its function."""
    place = name.replace("-", "_")
    module = import_module(f"{__name__}.{place}")
    function = getattr(module, place)

    @functools.wraps(function)
    def run(**options) -> None:
        status = run_command(f"clip-koa {name}", functools.partial(function, **options), getattr(module, "hide", str))
        raise typer.Exit(status)

    app = _typer()
    app.command(name, **getattr(module, "SETTINGS", {}))(run)
    return typer.main.get_command(app)


def _typer(**settings) -> typer.Typer:
    return typer.Typer(add_completion=False, rich_markup_mode=None, pretty_exceptions_enable=False, **settings)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs `clip-koa`; returns the exit status.

    Args:
        arguments: of the command line; default: this process's.
    """
    let_waiting_threads_sleep()
    app = typer.Typer(
        cls=_Commands, epilog=_EPILOG, rich_markup_mode=None, pretty_exceptions_enable=False, no_args_is_help=True,
        # An option may be written with hyphens too.
        context_settings={"token_normalize_func": lambda name: name.replace("-", "_"), "max_content_width": 119},
    )  # fmt: skip

    @app.callback()
    def clip_koa() -> None:
        """Grade knee osteoarthritis on X-rays, and all that a model for it needs. Research only, no medical device."""

    try:
        app(sys.argv[1:] if arguments is None else list(map(str, arguments)), prog_name="clip-koa")
    except SystemExit as end:
        return end.code or 0
    return 0
