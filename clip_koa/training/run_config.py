"""The configuration of a training run: one dataclass, read from a YAML file with overrides on the command line."""

import argparse
import dataclasses
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from modeling_clip_koa import PROMPT_SETS
from modeling_clip_koa.configuration_clip_koa import CONSISTENCY_KINDS


class RunConfigError(ValueError):
    """A configuration that cannot be run; the message names the field and says what would be right."""


def _option(default, help: str, choices: tuple | None = None, at_least: float | None = None):
    return field(default=default, metadata={"help": help, "choices": choices, "at_least": at_least})


@dataclass
class RunConfig:
    """One training run. Every field can stand in the YAML file and be overridden as `--field value`."""

    output_dir: str = _option("runs/clip_koa", "run folder: best/, checkpoints/, metrics.jsonl, report/")
    data_dir: str = _option(
        "", "knee X-rays: folder {split}/{grade}/{file}, .zip, .csv or Parquet; empty: the environment's KNEE_XRAY_DIR"
    )
    synthetic_people: int = _option(0, "train on generated X-rays of this many people instead of data_dir", at_least=0)
    model: str = _option("tiny", "start: tiny, a DINOv2 .onnx file, or a folder or Hub id of CLIP or DINOv2 weights")
    prompts: str = _option("ensemble", "set of grade prompts in prompts_clip_koa.py", tuple(PROMPT_SETS))
    freeze_layers: int = _option(
        0, "lower blocks of the vision tower kept as they are, with its embeddings", at_least=0
    )
    epochs: int = _option(10, "passes over the train split", at_least=1)
    max_steps: int = _option(0, "optimizer steps at which to stop earlier; 0: no bound", at_least=0)
    batch_size: int = _option(32, "X-rays per optimizer step, over all processes and accumulation", at_least=1)
    gradient_accumulation_steps: int = _option(1, "parts that a batch is computed in, to save memory", at_least=1)
    learning_rate: float = _option(1e-5, "peak learning rate of pretrained weights", at_least=0)
    new_learning_rate: float = _option(1e-4, "peak learning rate of weights that start at random", at_least=0)
    weight_decay: float = _option(0.05, "AdamW weight decay, on matrices only", at_least=0)
    warmup: float = _option(0.1, "share of the steps over which the learning rate rises; a cosine follows")
    max_grad_norm: float = _option(1.0, "gradients are clipped to this norm", at_least=0)
    mixed_precision: str = _option("auto", "auto: bf16 where the hardware has it", ("auto", "no", "bf16", "fp16"))
    augmentation: float = _option(
        1.0, "strength of rotation, shift, scale, brightness and contrast; 0: none", at_least=0
    )
    symmetry: bool = _option(True, "cross-entropy on the mirror image too (the paper's symmetry loss)")
    consistency: str = _option("js", "distance between the two views' grade distributions", CONSISTENCY_KINDS)
    consistency_weight: float = _option(1.0, "weight of the consistency loss; 0: off", at_least=0)
    classifier_weight: float = _option(1.0, "weight of the linear head's loss beside the text head's", at_least=0)
    best_metric: str = _option(
        "text_flip_averaged.quadratic_weighted_kappa",
        "head.metric on validation that chooses best/; mae: lower is best",
    )
    evaluate_test: bool = _option(False, "after training, evaluate best/ on the test split too")
    seed: int = _option(0, "seed of weights, order and augmentation")
    num_workers: int = _option(0, "processes that decode X-rays", at_least=0)
    checkpoint_steps: int = _option(0, "optimizer steps between checkpoints; 0: one each epoch", at_least=0)
    resume: str = _option("", "latest, or a folder under checkpoints/, to go on from")

    def __post_init__(self):
        if not 0 <= self.warmup <= 1:
            raise RunConfigError(f"warmup={self.warmup}: it is a share of the steps, 0 to 1.")
        for option in dataclasses.fields(self):
            value, choices, at_least = (
                getattr(self, option.name),
                option.metadata["choices"],
                option.metadata["at_least"],
            )
            if choices and value not in choices:
                raise RunConfigError(f"{option.name}={value!r}: use one of {', '.join(choices)}.")
            # Written so that NaN is refused too.
            if at_least is not None and not value >= at_least:
                raise RunConfigError(f"{option.name}={value}: it must be at least {at_least}.")
        if self.batch_size % self.gradient_accumulation_steps:
            raise RunConfigError(
                f"batch_size={self.batch_size} is no multiple of "
                f"gradient_accumulation_steps={self.gradient_accumulation_steps}."
            )

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
    for option in dataclasses.fields(RunConfig):
        text = f"{option.metadata['help']} (default: {option.default!r})".replace("%", "%%")
        parser.add_argument(f"--{option.name}", metavar=option.type.__name__.upper(), help=text)
    given = vars(parser.parse_args(arguments))
    values = _read_yaml(given.pop("config"))
    values.update({name: value for name, value in given.items() if value is not None})
    types = {option.name: option.type for option in dataclasses.fields(RunConfig)}
    return RunConfig(**{name: _convert(name, value, types[name]) for name, value in values.items()})


def _read_yaml(path: str | None) -> dict:
    if path is None:
        return {}
    if not Path(path).is_file():
        raise RunConfigError(
            f"--config {path}: there is no such file; configs/ holds the ones that come with CLIP-KOA."
        )
    try:
        values = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
    except yaml.YAMLError as error:
        raise RunConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(values, dict):
        raise RunConfigError(f"{path} must hold `field: value` lines.")
    known = {option.name for option in dataclasses.fields(RunConfig)}
    unknown = [str(key) for key in values if key not in known]
    if unknown:
        raise RunConfigError(f"{path} has unknown keys: {', '.join(unknown)}. `train.py --help` lists the known ones.")
    return values


def _convert(name: str, value, kind: type):
    if kind is bool and not isinstance(value, bool):
        words = {"true": True, "false": False, "1": True, "0": False, "yes": True, "no": False}
        if str(value).lower() not in words:
            raise RunConfigError(f"{name}={value!r}: use true or false.")
        return words[str(value).lower()]
    try:
        return kind("" if value is None else value)
    except (TypeError, ValueError) as error:
        raise RunConfigError(f"{name}={value!r}: it must be of type {kind.__name__}.") from error
