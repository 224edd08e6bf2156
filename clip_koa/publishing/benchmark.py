"""The corpus's repository as a benchmark: fixed splits, the metric, entries of anybody's, and the table of results."""

import json
from pathlib import Path

import yaml
from jinja2 import Environment, FileSystemLoader

from clip_koa.evaluation.submissions import (
    RANKED_BY,
    BenchmarkSplit,
    SubmissionError,
    benchmark_split,
    measure_entries,
    read_entry,
)
from clip_koa.publishing.beside import DATASET_FILES, METRIC_FILES, PROJECT, build_dataset
from clip_koa.publishing.plain_files import copy_plain
from clip_koa.reporting.page import figure_text, interval_text, signed_interval_text, signed_text
from dataset_script.layouts import find_files, resolve_data_dir

SPLITS = ("validation", "test")  # that a model may be measured on
_METRIC = tuple(name for name in METRIC_FILES if name.endswith(".py"))
BENCHMARK_FILES = (
    *DATASET_FILES, "eval.yaml", *(f"kl_grading/{name}" for name in _METRIC),
    *(f"{kind}/{split}.{ending}" for split in SPLITS for kind, ending in (("splits", "csv"), ("results", "json"))),
    *(f"submissions/{split}/*--*.jsonl" for split in SPLITS),
)  # fmt: skip
# The Hub reads this file of a data set's repository (https://huggingface.co/docs/hub/eval-results).
_FRAMEWORK = "clip-koa"
_DESCRIPTION = (
    "Kellgren-Lawrence grades, 0 to 4, of frontal knee X-rays. Ranked by the quadratic weighted kappa, with intervals "
    "over people. Research only."
)
_FIGURES = ("accuracy", RANKED_BY, "mae", "macro_f1", "expected_calibration_error")


def build_benchmark(folder: Path, corpus: str, repo_id: str, entries: Path) -> None:
    """Writes the repository; it holds no X-ray and no name of a person or of a file of theirs.

    Args:
        folder: new.
        corpus: the X-rays, in any layout, of which the splits are taken.
        repo_id: where it will be published.
        entries: a folder of SPLIT/USER--MODEL.jsonl.

    Raises:
        SubmissionError: no split to measure on, entries of another, or one that cannot be measured.
        CorpusError: no corpus, or an X-ray that cannot be read.
    """
    listed = find_files(resolve_data_dir(corpus))
    splits = {name: benchmark_split(listed[name], name) for name in SPLITS if name in listed}
    if not splits:
        raise SubmissionError(f"{corpus} has neither a validation nor a test split: there is nothing to measure on.")
    found = _find_entries(entries, splits)
    build_dataset(folder)
    (folder / "kl_grading").mkdir()
    for name in _METRIC:
        copy_plain(PROJECT / "metrics" / "kl_grading", name, folder / "kl_grading" / name)
    tables = {}
    for name, split in splits.items():
        rows = _write_split(folder, name, split, found[name])
        tables[name] = {"xrays": len(split.xrays), "people": len(set(split.people)), "rows": [*map(_cells, rows)]}
    tasks = [{"id": name, "config": "default", "split": name} for name in splits]
    benchmark = {
        "name": "Knee osteoarthritis grading", "description": _DESCRIPTION, "evaluation_framework": _FRAMEWORK,
        "tasks": tasks,
    }  # fmt: skip
    (folder / "eval.yaml").write_text(yaml.safe_dump(benchmark, sort_keys=False), encoding="utf-8")
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"), trim_blocks=True, lstrip_blocks=True
    )
    section = environment.get_template("benchmark.md").render(repo_id=repo_id, tables=tables)
    with open(folder / "README.md", "a", encoding="utf-8") as card:
        card.write(section)


def _find_entries(entries: Path, splits: dict[str, BenchmarkSplit]) -> dict[str, list[Path]]:
    if not entries.is_dir():
        raise SubmissionError(f"--benchmark {entries} is no folder: name one that holds SPLIT/USER--MODEL.jsonl.")
    found = {name: sorted((entries / name).glob("*")) for name in splits}
    if strange := [path for path in sorted(entries.iterdir()) if path.name not in splits]:
        raise SubmissionError(f"{strange[0]} is no split of the corpus, which has {', '.join(splits)}.")
    return found


def _write_split(folder: Path, name: str, split: BenchmarkSplit, files: list[Path]) -> list[dict]:
    """Writes a split, its entries, each as it was read, and their figures."""
    for part in ("splits", "results", f"submissions/{name}"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    (folder / "splits" / f"{name}.csv").write_text(split.to_csv(), encoding="utf-8")
    entries = [read_entry(path, split) for path in files]
    for path, entry in zip(files, entries, strict=True):
        (folder / "submissions" / name / path.name).write_text(entry.to_lines(split), encoding="utf-8")
    rows = measure_entries(split, entries)
    (folder / "results" / f"{name}.json").write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
    return rows


def _cells(row: dict) -> list[str]:
    """A line of the table of results."""
    figures, against = row["figures"], row["against_first"]
    cells = [row["model"]]
    for name in _FIGURES:
        cells.append(_with_bounds(figure_text(figures[name]), interval_text(figures["intervals"][name])))
    cells.append(figure_text(figures["recall_per_grade"][1]))
    if against is None:
        return [*cells, "", ""]
    change, bounds = against["difference"][RANKED_BY], against["intervals"][RANKED_BY]
    difference = _with_bounds(signed_text(change), signed_interval_text(bounds))
    return [*cells, difference, f"{against['mcnemar_p']:.2g}"]


def _with_bounds(figure: str, bounds: str) -> str:
    """A figure and, where it has one, its interval: the X-rays of one person give none."""
    return f"{figure} ({bounds})" if bounds else figure
