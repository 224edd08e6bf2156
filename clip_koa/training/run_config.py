"""The configuration of a training run: one dataclass, read from a YAML file with overrides on the command line."""

import argparse
import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import yaml

from modeling_clip_koa import PROMPT_SETS
from modeling_clip_koa.configuration_clip_koa import CONSISTENCY_KINDS

_CONTROL = re.compile(r"[\x00-\x1f\x7f]")


class RunConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and says what would be right."""


_LARGEST_WHOLE = 2**31 - 1


def _is_of(value, kind: type) -> bool:
    """Whether a value is of a field's type: true is no number, and no number is infinite or NaN."""
    if kind is float:
        return type(value) in (int, float) and math.isfinite(value)
    return type(value) is kind and (kind is not str or not _CONTROL.search(value))


def _option(
    section: str,
    default,
    help: str,
    choices: tuple | None = None,
    at_least: float | None = None,
    at_most: float | None = None,
):
    if at_most is None and type(default) is int:
        at_most = _LARGEST_WHOLE
    return field(
        default=default,
        metadata={"section": section, "help": help, "choices": choices, "at_least": at_least, "at_most": at_most},
    )


# What may differ when a run goes on: where things lie and what is kept, not what is learned.
CHANGEABLE_ON_RESUME = {
    "output_dir", "resume", "checkpoint_steps", "keep_checkpoints", "log_steps", "trackers", "evaluate_test",
    "patience", "data_dir", "num_workers", "model", "gradient_accumulation_steps", "gradient_checkpointing",
}  # fmt: skip

_run, _data, _model = partial(_option, "run"), partial(_option, "data"), partial(_option, "model")
_losses, _tuning, _compute = partial(_option, "losses"), partial(_option, "fine-tuning"), partial(_option, "compute")


@dataclass
class RunConfig:
    """One training run. Every field can stand in the YAML file and be overridden as `--field value`."""

    output_dir: str = _run("runs/clip_koa", "run folder: best/, checkpoints/, metrics.jsonl, report/, tensorboard/")
    resume: str = _run("", "latest, or a folder under checkpoints/, to go on from")
    checkpoint_steps: int = _run(0, "optimizer steps between checkpoints; 0: one each epoch", at_least=0)
    keep_checkpoints: int = _run(2, "newest checkpoints to keep; best/ is kept besides", at_least=1)
    log_steps: int = _run(10, "optimizer steps between lines of metrics.jsonl", at_least=1)
    trackers: str = _run("tensorboard", "trackers of Accelerate, by name, with commas between; empty: none")
    evaluate_test: bool = _run(False, "after training, evaluate best/ on the test split too")
    best_metric: str = _run(
        "text_flip_averaged.quadratic_weighted_kappa",
        "head.metric on validation that chooses best/ (mae: lower is best); last: best/ is always the newest",
    )
    evaluation_epochs: int = _run(1, "epochs between evaluations; the end is evaluated always", at_least=1)
    patience: int = _run(0, "epochs without a better best_metric after which to stop; 0: no early stop", at_least=0)
    seed: int = _run(0, "seed of weights, order and augmentation", at_least=0, at_most=2**32 - 1)

    data_dir: str = _data(
        "", "knee X-rays: folder {split}/{grade}/{file}, .zip, .csv or Parquet; empty: the environment's KNEE_XRAY_DIR"
    )
    synthetic_people: int = _data(0, "train on generated X-rays of this many people instead of data_dir", at_least=0)
    class_balance: float = _data(
        0.0, "0: X-rays as they come; 1: every grade as often as any other", at_least=0, at_most=1
    )
    augmentation: float = _data(
        1.0, "strength of rotation, shift, scale, brightness, contrast, blur and sharpening; 0: none", at_least=0
    )
    random_flip: float = _data(
        0.0, "chance that an X-ray is mirrored before it is seen; for steps with one view", at_least=0, at_most=1
    )
    num_workers: int = _data(0, "processes that decode X-rays", at_least=0, at_most=1024)

    model: str = _model("tiny", "start: tiny, a DINOv2 .onnx file, or a folder or Hub id of CLIP or DINOv2 weights")
    image_size: int = _model(
        0,
        "side in pixels of the X-rays the vision tower reads, a multiple of its patches; 0: the start's",
        at_least=0,
        at_most=4096,
    )
    prompts: str = _model("ensemble", "set of grade prompts in prompts_clip_koa.py", tuple(PROMPT_SETS))
    freeze_layers: int = _model(
        0, "lower blocks of the vision tower kept as they are, with its embeddings", at_least=0
    )
    mirror_symmetric: bool = _model(
        False, "patches and positions made and kept mirror-symmetric: the mirror image always gets the X-ray's grade"
    )
    lora_rank: int = _model(
        0, "train the vision tower by LoRA of this rank (needs peft); 0: all its weights", at_least=0
    )
    drop_path: float = _model(
        0.0, "chance that the vision tower's last block is skipped; lower blocks less", at_least=0, at_most=0.9
    )
    patch_dropout: float = _model(
        0.0, "share of the patches left out while training, fewest at the joint", at_least=0, at_most=0.9
    )
    patch_dropout_until: float = _model(
        1.0, "share of the steps that leave patches out; the last ones see all, as grading does", at_least=0, at_most=1
    )

    symmetry: bool = _losses(True, "cross-entropy on the mirror image too (the paper's symmetry loss)")
    consistency: str = _losses("js", "distance between the two views' grade distributions", CONSISTENCY_KINDS)
    consistency_weight: float = _losses(1.0, "weight of the consistency loss; 0: off", at_least=0)
    one_view_until: float = _losses(
        0.0, "share of the steps that see the X-ray alone; then its mirror image joins in", at_least=0, at_most=1
    )
    classifier_weight: float = _losses(1.0, "weight of the linear head's loss beside the text head's", at_least=0)
    label_smoothing: float = _losses(0.0, "share of the label spread evenly over the grades", at_least=0, at_most=1)
    ordinal_smoothing: float = _losses(
        0.0, "width, in grades, over which a label is shared with its neighbours", at_least=0
    )

    epochs: int = _tuning(10, "passes over the train split", at_least=1)
    max_steps: int = _tuning(0, "optimizer steps at which to stop earlier; 0: no bound", at_least=0)
    batch_size: int = _tuning(32, "X-rays per optimizer step, over all processes and accumulation", at_least=1)
    learning_rate: float = _tuning(1e-5, "peak learning rate of pretrained weights", at_least=0)
    new_learning_rate: float = _tuning(1e-4, "peak learning rate of weights that start at random", at_least=0)
    layer_decay: float = _tuning(
        1.0, "factor on the learning rate of pretrained towers for each block further down", at_least=0, at_most=1
    )
    scale_rates: bool = _tuning(False, "learning rate of pretrained layers in proportion to the size of their weights")
    weight_decay: float = _tuning(0.05, "AdamW weight decay, on matrices only", at_least=0)
    warmup: float = _tuning(
        0.1, "share of the steps over which the learning rate rises; a cosine follows", at_least=0, at_most=1
    )
    max_grad_norm: float = _tuning(1.0, "gradients are clipped to this norm; 0: not clipped", at_least=0)
    ema_decay: float = _tuning(
        0.0, "moving average of the weights, evaluated and saved in their place; 0: none", at_least=0, at_most=1
    )

    gradient_accumulation_steps: int = _compute(1, "parts that a batch is computed in, to save memory", at_least=1)
    gradient_checkpointing: bool = _compute(False, "compute activations twice instead of keeping them")
    mixed_precision: str = _compute("auto", "auto: bf16 where the hardware has it", ("auto", "no", "bf16", "fp16"))

    def __post_init__(self):
        for option in dataclasses.fields(self):
            value, bounds = getattr(self, option.name), option.metadata
            if bounds["choices"] and value not in bounds["choices"]:
                raise RunConfigError(f"{option.name}={value!r}: use one of {', '.join(bounds['choices'])}.")
            if not _is_of(value, option.type):
                raise RunConfigError(
                    f"{option.name}={_shortened(value)}: it must be {option.type.__name__}, on one line and finite."
                )
            if bounds["at_least"] is not None and not value >= bounds["at_least"]:
                raise RunConfigError(f"{option.name}={value}: it must be at least {bounds['at_least']}.")
            if bounds["at_most"] is not None and not value <= bounds["at_most"]:
                raise RunConfigError(f"{option.name}={_shortened(value)}: it must be at most {bounds['at_most']}.")
        if self.lora_rank and self.freeze_layers:
            raise RunConfigError("lora_rank keeps the whole vision tower as it is: leave freeze_layers at 0.")
        if self.mirror_symmetric and (self.one_view_until or self.random_flip):
            raise RunConfigError(
                "mirror_symmetric: to such a tower the mirror image is the X-ray, so no step sees both and flips "
                "change nothing. Leave one_view_until and random_flip at 0."
            )
        if self.one_view_until and not (self.symmetry or self.consistency_weight):
            raise RunConfigError(
                f"one_view_until={self.one_view_until}: symmetry and consistency_weight are off, so no step sees the "
                "mirror image. Leave it at 0."
            )
        if self.patch_dropout_until < 1 and not self.patch_dropout:
            raise RunConfigError(
                f"patch_dropout_until={self.patch_dropout_until}: patch_dropout is 0, so no step leaves patches out. "
                "Leave it at 1."
            )
        if self.batch_size % self.gradient_accumulation_steps:
            raise RunConfigError(
                f"batch_size={self.batch_size} is no multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}."
            )

    def differences(self, other: "RunConfig") -> list[str]:
        """Fields that a resumed run may not change but that differ, as `name: other -> own`."""
        names = (option.name for option in dataclasses.fields(self) if option.name not in CHANGEABLE_ON_RESUME)
        pairs = ((name, getattr(other, name), getattr(self, name)) for name in names)
        return [f"{name}: {before} -> {now}" for name, before, now in pairs if before != now]

    def to_yaml(self) -> str:
        """The resolved configuration, as it would be written in a file."""
        return yaml.safe_dump(dataclasses.asdict(self), sort_keys=False)


def parse_run_config(arguments: list[str] | None = None) -> RunConfig:
    """Reads `--config FILE` and `--field value` overrides from the command line.

    Raises:
        RunConfigError: a missing file, unknown keys in it, or a value of the wrong type or range.
    """
    parser = argparse.ArgumentParser(description="Train CLIP-KOA.", allow_abbrev=False)
    parser.add_argument("--config", metavar="FILE", help="YAML file with any of the fields below")
    sections = {}
    for option in dataclasses.fields(RunConfig):
        name = option.metadata["section"]
        if name not in sections:
            sections[name] = parser.add_argument_group(name)
        text = f"{option.metadata['help']} (default: {option.default!r})".replace("%", "%%")
        sections[name].add_argument(f"--{option.name}", metavar=option.type.__name__.upper(), help=text)
    given = vars(parser.parse_args(arguments))
    values = _read_yaml(given.pop("config"))
    values.update({name: value for name, value in given.items() if value is not None})
    return _build(values)


def read_run_config(path: str | Path) -> RunConfig:
    """The configuration in a YAML file, such as a run folder's config.yaml.

    Raises:
        RunConfigError: as `parse_run_config`.
    """
    return _build(_read_yaml(str(path)))


def _build(values: dict[str, str]) -> RunConfig:
    return RunConfig(**{name: _convert(name, text, _KINDS[name]) for name, text in values.items()})


def _read_yaml(path: str | None) -> dict[str, str]:
    """The fields in a YAML file, each as its text: of what type it is, its field says."""
    if path is None:
        return {}
    if not Path(path).is_file():
        raise RunConfigError(
            f"--config {path}: there is no such file; configs/ holds the ones that come with CLIP-KOA."
        )
    try:
        with open(path, "rb") as file:
            content = file.read(_LARGEST_FILE + 1)
    except OSError as error:
        raise RunConfigError(f"--config {path} cannot be read: {error.strerror}.") from error
    if len(content) > _LARGEST_FILE:
        raise RunConfigError(f"{path} is larger than {_LARGEST_FILE >> 20} MiB: no configuration is.")
    try:
        values = _fields(yaml.parse(content.decode("utf-8"), yaml.SafeLoader), path)
    except UnicodeDecodeError as error:
        raise RunConfigError(f"{path} is not valid YAML: byte {error.start} is no UTF-8.") from error
    except yaml.YAMLError as error:
        line = f"line {error.problem_mark.line + 1}: " if getattr(error, "problem_mark", None) else ""
        reason = getattr(error, "problem", None) or getattr(error, "reason", None) or "it cannot be read"
        raise RunConfigError(f"{path} is not valid YAML: {line}{reason}.") from error
    if not values:
        raise RunConfigError(f"{path} holds no field: it must hold `field: value` lines.")
    if unknown := [_shortened(name) for name in values if name not in _KINDS]:
        named = ", ".join(unknown[:_NAMED]) + (", ..." if len(unknown) > _NAMED else "")
        raise RunConfigError(f"{path} has unknown keys: {named}. `train.py --help` lists the known ones.")
    return values


def _fields(events: Iterator[yaml.Event], path: str) -> dict[str, str]:
    """`field: value` lines from the events of a YAML file, which are read one by one.

    So nothing is built of what does not belong in it, such as lists, or aliases that stand for thousands of others.
    """
    values, lines, name, inside = {}, {}, None, False
    for event in events:
        line = event.start_mark.line + 1
        is_plain = not getattr(event, "anchor", None) and not getattr(event, "tag", None)
        if isinstance(event, yaml.ScalarEvent) and inside and is_plain:
            if name is None:
                name = event.value
                if name in lines:
                    raise RunConfigError(
                        f"{path}, line {line}: {_shortened(name)} is given on line {lines[name]} too."
                    )
                lines[name] = line
                continue
            if event.style in ("'", '"') and _KINDS.get(name, str) is not str:
                raise RunConfigError(f"{path}, line {line}: {name}={_shortened(event.value)}: leave out the quotes.")
            is_null = event.style is None and event.value.lower() in ("~", "null")
            values[name], name = "" if is_null else event.value, None
        elif isinstance(event, yaml.MappingStartEvent) and not inside and not lines and is_plain:
            inside = True
        elif isinstance(event, yaml.MappingEndEvent):
            inside = False
        elif not isinstance(event, _FRAME):
            raise RunConfigError(f"{path}, line {line}: it must hold `field: value` lines, each with one plain value.")
    return values


def _convert(name: str, text: str, kind: type):
    if kind is str:
        return text
    if kind is bool:
        if text.lower() not in _WORDS:
            raise RunConfigError(f"{name}={_shortened(text)}: use true or false.")
        return _WORDS[text.lower()]
    if not _NUMBERS[kind].fullmatch(text):
        wanted = "a whole number, such as 3" if kind is int else "a finite number, such as 0.1"
        raise RunConfigError(f"{name}={_shortened(text)}: it must be {wanted}.")
    return kind(text)


def _shortened(value) -> str:
    text = repr(value)
    return text if len(text) <= _LONGEST_SHOWN else f"{text[:_LONGEST_SHOWN]}..."


_KINDS = {option.name: option.type for option in dataclasses.fields(RunConfig)}
_WORDS = {"true": True, "false": False, "yes": True, "no": False, "on": True, "off": False}
# Plain decimals: YAML would read 010 as 8 and 1:30 as 90. So many digits are beyond any bound.
_NUMBERS = {
    int: re.compile(r"[+-]?(0|[1-9][0-9]{0,30})"),
    float: re.compile(r"[+-]?([0-9]{1,300}(\.[0-9]{0,300})?|\.[0-9]{1,300})([eE][+-]?[0-9]{1,4})?"),
}
_FRAME = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
_LARGEST_FILE = 1 << 20  # bytes
_LONGEST_SHOWN = 60  # characters of a value
_NAMED = 4
