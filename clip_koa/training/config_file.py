"""The fields that a YAML file gives, as texts by dotted name; and files of runs made when fields had no groups."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from clip_koa.training.config_fields import FIELDS, GROUPS, RunConfigError

_FRAME = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
_LARGEST_FILE = 1 << 20  # bytes
_LONGEST_SHOWN = 60  # characters of a value
_NAMED = 4
_HELD = "it must hold groups of `field: value` lines, each with one plain value"

# Fields had no groups once, and their names were those of today but for these.
FLAT_NAMES = {name.split(".")[1]: name for name in FIELDS} | {
    "model": "model.start",
    "data_dir": "data.corpus",
}
# Fields that are gone: the value that trains as today's code does, or None where none changes what is learned.
_GONE = {
    "image_size": "0",
    "mirror_symmetric": "false",
    "patch_dropout_until": "1",
    "classifier_weight": "1",
    "label_smoothing": "0",
    "patience": "0",
    "weight_decay": "0.05",
    "max_grad_norm": "1",
    "gradient_checkpointing": None,
    "keep_checkpoints": None,
    "log_steps": None,
    "trackers": None,
    "evaluate_test": None,
}


@dataclass
class GivenFields:
    """What a file gives."""

    texts: dict[str, str] = field(default_factory=dict)  # by dotted name, and `resume`
    gone: dict[str, str] = field(
        default_factory=dict
    )  # fields that are gone, where they are not as today's code trains
    unknown: list[str] = field(default_factory=list)  # names that no field has or had


def read_fields(path: str | Path) -> GivenFields:
    """The fields of a YAML file.

    Raises:
        RunConfigError: as `parse_fields`; no such file, or one too large; a field that is not known or that is gone.
    """
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except (FileNotFoundError, IsADirectoryError) as error:
        raise RunConfigError(
            f"--config {path}: there is no such file; configs/ holds the ones that come with CLIP-KOA."
        ) from error
    except OSError as error:
        raise RunConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
    given = parse_fields(content, path)
    if given.unknown:
        named = ", ".join(map(shortened, given.unknown[:_NAMED])) + (", ..." if len(given.unknown) > _NAMED else "")
        raise RunConfigError(f"{path} has unknown keys: {named}. `--help` lists the known ones.")
    for name, text in given.gone.items():
        raise RunConfigError(
            f"{path}: {name}={shortened(text)}: this field is gone, and all runs are trained as with {_GONE[name]}. "
            "Leave it out."
        )
    return given


def parse_fields(content: bytes, path: str | Path) -> GivenFields:
    """The fields in the content of a YAML file, each as its text: of what type it is, its field says.

    Raises:
        RunConfigError: a content of over 1 MiB, that is no YAML, holds no field, holds lists, aliases or tags, gives a
            field twice, or a number in quotes.
    """
    if len(content) > _LARGEST_FILE:
        raise RunConfigError(f"{path} is larger than {_LARGEST_FILE >> 20} MiB: no configuration is.")
    given, lines, people, name = GivenFields(), {}, "", ""
    for name, event in _scalars(content, path):
        line, text, full = event.start_mark.line + 1, _text(event), FLAT_NAMES.get(name, name)
        if name in _GONE:
            if not _is_as_today(name, text):
                given.gone[name] = text
        elif name == "synthetic_people":  # stood beside data_dir, and came before it
            people = text
        elif full not in FIELDS and full != "resume":
            if text or name not in GROUPS:  # a group without fields is none
                given.unknown.append(name)
        else:
            if event.style in ("'", '"') and full in FIELDS and FIELDS[full].type is not str:
                raise RunConfigError(f"{path}, line {line}: {full}={shortened(text)}: leave out the quotes.")
            if full in lines:
                raise RunConfigError(f"{path}, line {line}: {full} is given on line {lines[full]} too.")
            lines[full], given.texts[full] = line, text
    if not name:
        raise RunConfigError(f"{path} holds no field: {_HELD}.")
    if people not in ("", "0"):
        given.texts["data.corpus"] = f"synthetic:{people}"
    return given


def _is_as_today(name: str, text: str) -> bool:
    today = _GONE[name]
    if today is None or text.lower() == today:
        return True
    try:
        return float(text) == float(today)
    except ValueError:
        return False


def _text(event: yaml.ScalarEvent) -> str:
    return "" if event.style is None and event.value.lower() in ("~", "null") else event.value


def _scalars(content: bytes, path: str | Path) -> Iterator[tuple[str, yaml.ScalarEvent]]:
    """(name, value) of each field of a YAML file, by dotted name, from its events, which are read one by one.

    So nothing is built of what does not belong in it, such as lists, or aliases that stand for thousands of others.
    """
    try:
        yield from _walk(yaml.parse(content.decode("utf-8"), yaml.SafeLoader), path)
    except UnicodeDecodeError as error:
        raise RunConfigError(f"{path} is not valid YAML: byte {error.start} is no UTF-8.") from error
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if getattr(error, "problem_mark", None) else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise RunConfigError(f"{path} is not valid YAML: {line}{reason}.") from error


def _walk(events: Iterator[yaml.Event], path: str | Path) -> Iterator[tuple[str, yaml.ScalarEvent]]:
    names, depth = [], 0  # names: of the open group, and of the field whose value comes next
    lines = {}  # of each name
    for event in events:
        line = event.start_mark.line + 1
        is_plain = not getattr(event, "anchor", None) and not getattr(event, "tag", None)
        awaits_value = depth and len(names) == depth
        if isinstance(event, yaml.ScalarEvent) and depth and is_plain:
            if awaits_value:
                yield ".".join(names), event
                names.pop()
                continue
            names.append(event.value)
            name = ".".join(names)
            if name in lines:
                raise RunConfigError(f"{path}, line {line}: {shortened(name)} is given on line {lines[name]} too.")
            lines[name] = line
        elif (
            isinstance(event, yaml.MappingStartEvent)
            and is_plain
            and ((depth == 0 and not lines) or (depth == 1 and awaits_value))
        ):
            depth += 1
        elif isinstance(event, yaml.MappingEndEvent):
            depth -= 1
            names = names[:-1]
        elif not isinstance(event, _FRAME):
            raise RunConfigError(f"{path}, line {line}: {_HELD}.")


def shortened(value) -> str:
    """A value as a message shows it."""
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."
