"""The configuration of a training run, out of a YAML file and of `--group.field value` on the command line.

The fields themselves are in `config_fields`, how a file is read in `config_file`; here jsonargparse checks each value.
"""

import argparse
import dataclasses
import difflib
import re
import sys
from functools import cache, partial
from pathlib import Path
from typing import Literal

from clip_koa.training.config_fields import (
    FIELDS,
    GROUPS,
    LARGEST_NUMBER,
    LARGEST_WHOLE,
    OptimisationOptions,
    RunConfig,
    RunConfigError,
    from_values,
)
from clip_koa.training.config_file import FLAT_NAMES, read_fields, shortened
from clip_koa.training.trackers import TRACKERS, check_trackers

__all__ = [
    "FIELDS",
    "OptimisationOptions",
    "RunConfig",
    "RunConfigError",
    "check_texts",
    "parse_run_config",
    "read_run_config",
]

# Plain decimals: YAML would read 010 as 8 and 1:30 as 90. So many digits are beyond any bound.
_NUMBERS = {
    int: re.compile(r"[+-]?(0|[1-9][0-9]{0,30})"),
    float: re.compile(r"[+-]?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,4})?"),
}
_CONTROL = re.compile(r"[\x00-\x1f\x7f]")
_METAVARS = {int: "N", float: "NUMBER", str: "TEXT"}
_COLUMNS = 100


def parse_run_config(arguments: list[str] | None = None) -> RunConfig:
    """Reads `--config FILE` and `--group.field value` overrides from the command line.

    Raises:
        RunConfigError: a missing file, unknown fields, or a value of the wrong type or range.
    """
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    given = vars(_parse(arguments))
    if given.get("config") is None:
        return _build(given)
    return _build({**vars(_parse(_as_arguments(read_fields(given["config"]).texts))), **given})


def read_run_config(path: str | Path) -> RunConfig:
    """The configuration in a YAML file, such as a run folder's config.yaml.

    Raises:
        RunConfigError: as `parse_run_config`.
    """
    return _build(vars(_parse(_as_arguments(read_fields(path).texts))))


def check_texts(texts: dict[str, str]) -> dict[str, object]:
    """The values that texts by dotted name stand for, each of its field's type.

    Raises:
        RunConfigError: a value of the wrong type or range.
    """
    return {name: value for name, value in vars(_parse(_as_arguments(texts))).items() if name in FIELDS}


def _as_arguments(texts: dict[str, str]) -> list[str]:
    return [f"--{name}={text}" for name, text in texts.items()]


def _build(given: dict) -> RunConfig:
    values = {name: value for name, value in given.items() if name in FIELDS}
    return from_values(values, given.get("resume") or "", check_trackers(given.get("trackers") or TRACKERS[0]))


def _parse(arguments: list[str]) -> argparse.Namespace:
    """What the command line gives, by dotted name, and nothing that it does not give."""
    try:
        parsed = _parser().parse_args(arguments, defaults=False)
    except argparse.ArgumentError as error:
        raise RunConfigError(_explain(str(error), arguments)) from error
    return argparse.Namespace(**{name: _plain(value) for name, value in parsed.items() if value is not None})


def _plain(value):
    """Numbers and texts as Python's own, for jsonargparse gives types of its own."""
    return next((kind(value) for kind in (bool, int, float, str) if isinstance(value, kind)), value)


def _explain(error: str, arguments: list[str]) -> str:
    """A line that names the field, its value, and what would be right."""
    if key := re.search(r'Parser key "([\w.]+)"', error):
        name = key[1]
        places = [number for number, word in enumerate(arguments) if word.split("=")[0] == f"--{name}"]
        word = arguments[places[-1]]
        value = word.partition("=")[2] if "=" in word else arguments[places[-1] + 1]
        return f"{name}={shortened(value)}: it must be {_wanted(name)}."
    if unknown := re.search(r"nrecognized arguments: (\S+)", error):
        name = unknown[1].partition("=")[0].lstrip("-")
        near = FLAT_NAMES.get(name) or next(iter(difflib.get_close_matches(name, FIELDS, 1)), None)
        hint = f"did you mean --{near}?" if near else "`--help` lists the fields."
        return f"{shortened(unknown[1])} is no field: {hint}"
    return f"{' '.join(error.split())[:300]}. `--help` lists the fields."


def _wanted(name: str) -> str:
    option = FIELDS[name]
    if option.metadata["choices"]:
        return f"one of {', '.join(option.metadata['choices'])}"
    if option.type is bool:
        return "true or false"
    if option.type is str:
        return "text on one line"
    low, high = option.metadata["at_least"], option.metadata["at_most"]
    kind = "a whole number" if option.type is int else "a finite number"
    most = high if high is not None else LARGEST_WHOLE if option.type is int else None
    return f"{kind}, at least {low}" + (f" and at most {most}" if most is not None else "")


def _check(name: str, cls: type, text) -> None:
    """Raises ValueError where a text is no value of the field; jsonargparse calls it."""
    option = FIELDS[name]
    if option.type is str:
        if _CONTROL.search(text):
            raise ValueError(_wanted(name))
        return
    low, high = option.metadata["at_least"], option.metadata["at_most"]
    largest = high if high is not None else LARGEST_WHOLE if option.type is int else LARGEST_NUMBER
    if not (_NUMBERS[option.type].fullmatch(str(text)) and low <= option.type(text) <= largest):
        raise ValueError(_wanted(name))


@cache
def _parser():
    from jsonargparse import ArgumentParser
    from jsonargparse.typing import extend_base_type

    parser = ArgumentParser(
        prog="clip-koa train",
        description="Train CLIP-KOA. Every field can stand in a YAML file, in its group, and be overridden here.",
        usage="%(prog)s [--config FILE] [--resume latest] [--trackers NAMES] [--GROUP.FIELD VALUE ...]",
        formatter_class=partial(argparse.HelpFormatter, max_help_position=44, width=_COLUMNS),
        exit_on_error=False,
        allow_abbrev=False,
    )
    launch = parser.add_argument_group("launch", "What this launch does with the run.")
    launch.add_argument("--config", metavar="FILE", help="YAML file with any of the fields below")
    launch.add_argument("--resume", metavar="CHECKPOINT", help="latest, or a folder under checkpoints/, to go on from")
    launch.add_argument(
        "--trackers", metavar="NAMES", help="tensorboard (default), trackio, or both with a comma between them"
    )
    for group, options in GROUPS.items():
        section = parser.add_argument_group(group, options.__doc__)
        for option in dataclasses.fields(options):
            name, choices = f"{group}.{option.name}", option.metadata["choices"]
            kind = bool if option.type is bool else Literal[choices] if choices else None
            text = f"{option.metadata['help']} (default: {option.default!r})"
            section.add_argument(
                f"--{name}",
                type=kind or extend_base_type(f"Text of {name}", option.type, partial(_check, name)),
                default=option.default,
                metavar=_metavar(option),
                help=text.replace("%", "%%"),
            )
    return parser


def _metavar(option: dataclasses.Field) -> str:
    choices = option.metadata["choices"] or (("true", "false") if option.type is bool else None)
    if choices is None:
        return _METAVARS[option.type]
    return "|".join(choices) if len(choices) < 5 else "CHOICE"
