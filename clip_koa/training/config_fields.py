"""The fields of a training run, in six groups; each says what it does, its bounds, and if it is of the recipe."""

import dataclasses
from dataclasses import dataclass, field

import yaml

from clip_koa.evaluation.heads import CHOOSABLE_METRICS
from modeling_clip_koa import PROMPT_SETS, CLIPKOAError
from modeling_clip_koa.configuration_clip_koa import CONSISTENCY_KINDS

LARGEST_WHOLE = 2**31 - 1
LARGEST_NUMBER = 1e300


class RunConfigError(CLIPKOAError, ValueError):
    """A configuration that cannot be run; the message names the field and says what would be right."""


def _field(
    default, help: str, *, recipe: bool = True, place: bool = False, at_least=None, at_most=None,
    choices: tuple | None = None,
):  # fmt: skip
    """A field of a group.

    Args:
        recipe: it is of what is learned, so a resume may not change it and the card shows it; else it says where
            things lie, or how they are computed to the same result.
        place: it is of the recipe and names a file of this machine, so no card shows it.
        at_least, at_most: bounds of a number.
        choices: the only values of a text.
    """
    bounds = {"at_least": at_least, "at_most": at_most, "choices": choices}
    return field(default=default, metadata={"help": help, "recipe": recipe, "on_card": recipe and not place, **bounds})


@dataclass(frozen=True)
class RunOptions:
    """The run folder, and which of its models is kept."""

    output_dir: str = _field(
        "runs/clip_koa", "run folder: best/, checkpoints/, metrics.jsonl, report/, tensorboard/", recipe=False
    )
    checkpoint_steps: int = _field(
        0, "optimizer steps between checkpoints; 0: one each epoch", recipe=False, at_least=0
    )
    evaluation_epochs: int = _field(1, "epochs between evaluations; the end is evaluated always", at_least=1)
    best_metric: str = _field(
        "text_flip_averaged.quadratic_weighted_kappa",
        "head.metric on validation that chooses best/, such as linear.accuracy (of mae the lowest is best); "
        "last: best/ is always the newest",
        choices=CHOOSABLE_METRICS,
    )
    seed: int = _field(0, "seed of weights, order and augmentation", at_least=0, at_most=2**32 - 1)


@dataclass(frozen=True)
class DataOptions:
    """The X-rays, and how they are shown."""

    corpus: str = _field(
        "",
        "knee X-rays: a folder {split}/{grade}/{file}, .zip, .csv or Parquet; synthetic:40 draws those of 40 people; "
        "empty: what the environment's KNEE_XRAY_DIR names",
        recipe=False,
    )
    soft_labels: str = _field(
        "",
        "Parquet file of a teacher's shares of the grades for each X-ray, by its pixels; empty: the grades",
        place=True,
    )
    class_balance: float = _field(
        0.0, "0: X-rays as they come; 1: every grade as often as any other", at_least=0, at_most=1
    )
    augmentation: float = _field(
        1.0, "strength of rotation, shift, scale, brightness, contrast, blur and sharpening; 0: none", at_least=0
    )
    random_flip: float = _field(
        0.0, "chance that an X-ray is mirrored before it is seen; for steps with one view", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class ModelOptions:
    """The start, and what of its vision tower is trained."""

    start: str = _field(
        "tiny", "tiny, a DINOv2 .onnx file, or a folder or Hub id of CLIP or DINOv2 weights", recipe=False
    )
    prompts: str = _field("standard", "set of grade prompts in prompts_clip_koa.py", choices=tuple(PROMPT_SETS))
    freeze_layers: int = _field(
        0, "lower blocks of the vision tower kept as they are, with its embeddings", at_least=0
    )
    lora_rank: int = _field(
        0, "train the vision tower by LoRA of this rank (needs peft); 0: all its weights", at_least=0
    )
    drop_path: float = _field(
        0.0, "chance that the vision tower's last block is skipped; lower blocks less", at_least=0, at_most=0.9
    )
    patch_dropout: float = _field(
        0.0, "share of the patches left out while training, fewest at the joint", at_least=0, at_most=0.9
    )


@dataclass(frozen=True)
class LossOptions:
    """What is minimised."""

    symmetry: bool = _field(True, "cross-entropy on the mirror image too (the paper's symmetry loss)")
    consistency: str = _field(
        "kl", "distance between the two views' grade distributions", choices=tuple(CONSISTENCY_KINDS)
    )
    consistency_weight: float = _field(8.0, "weight of the consistency loss; 0: off", at_least=0)
    one_view_until: float = _field(
        0.0, "share of the steps that see the X-ray alone; then its mirror image joins in", at_least=0, at_most=1
    )
    ordinal_smoothing: float = _field(
        0.0, "width, in grades, over which a label is shared with its neighbours", at_least=0
    )


@dataclass(frozen=True)
class OptimisationOptions:
    """Steps and learning rates."""

    epochs: int = _field(8, "passes over the train split", at_least=1)
    max_steps: int = _field(0, "optimizer steps at which to stop earlier; 0: no bound", at_least=0)
    batch_size: int = _field(16, "X-rays per optimizer step, over all processes and accumulation", at_least=1)
    learning_rate: float = _field(3e-5, "peak learning rate of pretrained weights", at_least=0)
    new_learning_rate: float = _field(1e-3, "peak learning rate of weights that start at random", at_least=0)
    layer_decay: float = _field(
        1.0, "factor on the learning rate of pretrained towers for each block further down", at_least=0, at_most=1
    )
    scale_rates: bool = _field(False, "learning rate of pretrained layers in proportion to the size of their weights")
    warmup: float = _field(
        0.1, "share of the steps over which the learning rate rises; a cosine follows", at_least=0, at_most=1
    )
    ema_decay: float = _field(
        0.0, "moving average of the weights, evaluated and saved in their place; 0: none", at_least=0, at_most=1
    )


@dataclass(frozen=True)
class ComputeOptions:
    """How it is computed."""

    num_workers: int = _field(0, "processes that decode X-rays", recipe=False, at_least=0, at_most=1024)
    gradient_accumulation_steps: int = _field(
        1, "parts that a batch is computed in, to save memory", recipe=False, at_least=1
    )
    mixed_precision: str = _field(
        "auto", "auto: bf16 where the hardware has it", choices=("auto", "no", "bf16", "fp16")
    )


@dataclass(frozen=True)
class RunConfig:
    """One training run; `resume` and `trackers` are of one launch of it and are not kept.

    Raises:
        RunConfigError: fields that do not go together. What each of them may hold, the reader of them checks
            (`clip_koa.training.run_config`).
    """

    run: RunOptions = RunOptions()
    data: DataOptions = DataOptions()
    model: ModelOptions = ModelOptions()
    losses: LossOptions = LossOptions()
    optimisation: OptimisationOptions = OptimisationOptions()
    compute: ComputeOptions = ComputeOptions()
    resume: str = field(default="", compare=False)
    trackers: tuple[str, ...] = field(default=("tensorboard",), compare=False)

    def __post_init__(self):
        if self.model.lora_rank and self.model.freeze_layers:
            raise RunConfigError(
                "model.lora_rank keeps the whole vision tower as it is: leave model.freeze_layers at 0."
            )
        losses, batch, parts = self.losses, self.optimisation.batch_size, self.compute.gradient_accumulation_steps
        if losses.one_view_until and not (losses.symmetry or losses.consistency_weight):
            raise RunConfigError(
                f"losses.one_view_until={losses.one_view_until}: losses.symmetry and losses.consistency_weight are "
                "off, so no step sees the mirror image. Leave it at 0."
            )
        if self.data.soft_labels and losses.ordinal_smoothing:
            raise RunConfigError(
                f"data.soft_labels={self.data.soft_labels} gives labels that are shared already: leave "
                "losses.ordinal_smoothing at 0."
            )
        if batch % parts:
            raise RunConfigError(
                f"optimisation.batch_size={batch} is no multiple of compute.gradient_accumulation_steps={parts}."
            )

    def values(self) -> dict[str, object]:
        """Every field's value by its dotted name, such as `optimisation.epochs`."""
        return {name: getattr(getattr(self, name.split(".")[0]), name.split(".")[1]) for name in FIELDS}

    def changed(self, changes: dict[str, object]) -> "RunConfig":
        """This configuration with other values, by dotted name."""
        return from_values({**self.values(), **changes}, self.resume, self.trackers)

    def differences(self, other: "RunConfig") -> list[str]:
        """Fields of the recipe that differ, as `name: other -> own`: a resumed run may not change them."""
        before, now = other.values(), self.values()
        names = (name for name, option in FIELDS.items() if option.metadata["recipe"])
        return [f"{name}: {before[name]} -> {now[name]}" for name in names if before[name] != now[name]]

    def to_yaml(self) -> str:
        """The resolved configuration, as it would be written in a file."""
        return yaml.safe_dump({name: dataclasses.asdict(getattr(self, name)) for name in GROUPS}, sort_keys=False)


GROUPS = {group.name: group.type for group in dataclasses.fields(RunConfig) if dataclasses.is_dataclass(group.type)}
# By dotted name.
FIELDS = {f"{name}.{option.name}": option for name, group in GROUPS.items() for option in dataclasses.fields(group)}


def from_values(
    values: dict[str, object], resume: str = "", trackers: tuple[str, ...] = ("tensorboard",)
) -> RunConfig:
    """A configuration out of values by dotted name; the fields left out have their defaults.

    Raises:
        RunConfigError: fields that do not go together.
        KeyError: a name that is no field's.
    """
    groups = {name: {} for name in GROUPS}
    for name, value in values.items():
        groups[name.split(".")[0]][FIELDS[name].name] = value
    built = {name: GROUPS[name](**given) for name, given in groups.items()}
    return RunConfig(**built, resume=resume, trackers=trackers)
