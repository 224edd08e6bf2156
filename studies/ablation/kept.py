"""Kept runs: what a run of the ablation said of the validation X-rays, one small Parquet file each.

Tables can be made of them without a training, so the runs may come from several machines, one after another.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import torch

from clip_koa.data.soft_labels import KEY
from clip_koa.evaluation.heads import Predictions
from clip_koa.evaluation.predictions import LOGITS, GradedSplit
from clip_koa.files import file_digest
from clip_koa.training.config_fields import FIELDS
from clip_koa.training.run_config import RunConfig
from metrics.kl_grading.kl_grading import NUM_GRADES
from modeling_clip_koa import CLIPKOAError
from studies.members.member_files import write_member_file
from studies.members.xrays import load_splits, read_keys

_COLUMNS = tuple(f"{name}_{grade}" for name in LOGITS for grade in range(NUM_GRADES))
_SCHEMA = pa.schema([(KEY, pa.string()), ("grade", pa.int8()), *((name, pa.float32()) for name in _COLUMNS)])
_METADATA = b"recipe"


class KeptRunError(CLIPKOAError, ValueError):
    """A file of a kept run that cannot be used; the message names it and what would be right."""


@dataclass(frozen=True)
class ValidationXrays:
    """The N X-rays of a validation split in its order: `keys` as `xray_key` gives them, `files`, `people`."""

    keys: list[str]
    files: list[str]
    people: list[str]

    @classmethod
    def of_corpus(cls, corpus: str) -> "ValidationXrays":
        """Those of a corpus, or of the environment's KNEE_XRAY_DIR where it is empty.

        Raises:
            CorpusError: no corpus, a damaged one, or two X-rays of the same pixels.
        """
        split = load_splits(corpus or None)["validation"]
        people = read_keys(split)
        return cls(list(people), list(split["file"]), list(people.values()))


def recipe_of(config: RunConfig) -> dict[str, object]:
    """What a run learned by, by the dotted names of its fields; a file that it names stands there by its SHA-256."""
    recipe = {name: value for name, value in config.values().items() if FIELDS[name].metadata["recipe"]}
    named = {"model.start": config.model.start, "data.soft_labels": config.data.soft_labels}
    return {**recipe, **{name: _content(place) for name, place in named.items()}}


def _content(name: str) -> str:
    path = Path(name)
    path = path / "model.safetensors" if path.is_dir() else path
    return file_digest(path) if path.is_file() else path.name


def write_kept_run(path: Path, config: RunConfig, graded: GradedSplit, xrays: ValidationXrays) -> None:
    """Writes a kept run, whole or not at all; its rows are in the order of the keys, so neighbours tell nothing.

    Raises:
        KeptRunError: predictions of other X-rays.
    """
    if graded.files != xrays.files:
        raise KeptRunError(f"{path}: the run graded other X-rays than the validation split: give another --output.")
    logits = torch.cat([getattr(graded.predictions, name) for name in LOGITS], dim=1).tolist()
    rows = sorted(zip(xrays.keys, graded.predictions.labels.tolist(), logits, strict=True))
    columns = [[key for key, _, _ in rows], [label for _, label, _ in rows]]
    columns += map(list, zip(*(values for _, _, values in rows), strict=True))
    schema = _SCHEMA.with_metadata({_METADATA: json.dumps(recipe_of(config)).encode()})
    write_member_file(path, pa.table(columns, schema=schema))


def read_kept_run(path: Path, config: RunConfig, xrays: ValidationXrays) -> GradedSplit:
    """Reads a kept run of a configuration.

    Raises:
        KeptRunError: a damaged file, or one that is of another run or of other X-rays.
    """
    try:
        table = pq.read_table(path)
    except (OSError, pa.ArrowException) as error:
        raise KeptRunError(f"{path} is damaged or no Parquet file: {error}") from error
    if not table.schema.equals(_SCHEMA) or _METADATA not in (table.schema.metadata or {}):
        raise KeptRunError(f"{path} is no kept run: it must hold {', '.join(_SCHEMA.names)}.")
    # A field that is newer than the file had its default.
    before, now = recipe_of(RunConfig()) | json.loads(table.schema.metadata[_METADATA]), recipe_of(config)
    names = [name for name in before if before[name] != now.get(name)]
    if differences := [f"{name}: {before[name]} -> {now.get(name)}" for name in names]:
        raise KeptRunError(f"{path} is of another run ({'; '.join(differences)}): give another --kept.")
    rows = {key: place for place, key in enumerate(table[KEY].to_pylist())}
    if set(rows) != set(xrays.keys) or len(rows) < table.num_rows:
        raise KeptRunError(f"{path} is of other X-rays than this validation split: give another --kept.")
    table = table.take([rows[key] for key in xrays.keys])
    values = torch.tensor([table[name].to_pylist() for name in _COLUMNS], dtype=torch.float32).T
    labels = torch.tensor(table["grade"].to_pylist())
    predictions = Predictions(torch.arange(len(labels)), labels, *values.split(NUM_GRADES, dim=1))
    return GradedSplit(predictions, xrays.files, xrays.people)
