"""The report of a training run: metrics.json, pictures, and one page that opens offline."""

import json
from collections.abc import Mapping
from pathlib import Path

from datasets import Dataset
from PIL.Image import Image

from clip_koa.evaluation.heads import measure_heads
from clip_koa.evaluation.predictions import GradedSplit, read_predictions
from clip_koa.files import write_file
from clip_koa.reporting import pictures
from clip_koa.reporting.page import hardest_xrays, save_picture, split_section, stored_pictures, write_page


def write_report(run_folder: str | Path, corpus: Mapping[str, Dataset] | None = None) -> Path:
    """Writes `report/` from a run's metrics.jsonl, config.yaml, run.json and predictions; one in progress will do.

    Args:
        run_folder: with metrics.jsonl, and report/predictions_{split}.jsonl for intervals and diagrams.
        corpus: its splits, for thumbnails of the hardest X-rays; the page then holds pictures of patients and is for
            the reader's own disk.

    Returns:
        The path of the page, which embeds its pictures and needs nothing else.

    Raises:
        FileNotFoundError: the folder holds no metrics.jsonl, so is no run.
        ValueError: a line of metrics.jsonl or of the predictions that is no JSON; the message names it.
    """
    run_folder = Path(run_folder)
    if not (run_folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{run_folder} holds no metrics.jsonl: name the output_dir of a training run.")
    records = _read_lines(run_folder / "metrics.jsonl")
    best = {r["split"]: r for r in records if r["kind"] == "evaluation" and r["checkpoint"] == "best"}
    report = run_folder / "report"
    report.mkdir(exist_ok=True)

    sections = []
    for split, record in best.items():
        graded = _read_graded(report / f"predictions_{split}.jsonl")
        if graded:  # intervals need to know whose X-rays they are
            best[split] = record = {**record, **measure_heads(graded.predictions, graded.people)}
        sections.append(split_section(report, split, record, graded, corpus.get(split) if corpus else None))
    write_file(report / "metrics.json", json.dumps(best, indent=2).encode())
    curves = []
    if records:
        alt = "Line charts over epochs: losses by part, and validation metrics of each head. metrics.jsonl holds them."
        curves = [save_picture(report / "learning_curves.png", "Curves", alt, pictures.learning_curves, records)]
    papers = {"Resolved configuration": run_folder / "config.yaml", "What repeats this run": run_folder / "run.json"}
    return write_page(
        report / "index.html",
        "report.html",
        name=run_folder.resolve().name,
        facts=_facts(records, best),
        sections=sections,
        heads=list(pictures.HEAD_NAMES.values()),
        curves=curves,
        papers={title: path.read_text(encoding="utf-8") for title, path in papers.items() if path.is_file()},
    )


def hardest_pictures(run_folder: Path, corpus: Mapping[str, Dataset]) -> list[tuple[Image, str]]:
    """The validation X-rays whose true grade a run's best model takes for least likely, each with what it says.

    Args:
        run_folder: with report/predictions_validation.jsonl.
        corpus: its splits.
    """
    graded = _read_graded(run_folder / "report" / "predictions_validation.jsonl")
    if graded is None:
        return []
    hardest = hardest_xrays(graded)
    found = stored_pictures(corpus["validation"], [row["file"] for row in hardest])
    return [(found[row["file"]], f"{row['true']}, graded {row['predicted']}") for row in hardest]


def _read_graded(path: Path) -> GradedSplit | None:
    """The predictions, or None where a run has none yet."""
    return read_predictions(path) if path.is_file() and path.stat().st_size else None


def _facts(records: list[dict], best: dict) -> list[tuple[str, str]]:
    """What the run did, in a few lines."""
    training = [record for record in records if record["kind"] == "train"]
    facts = []
    if training:
        facts.append(("trained", f"{training[-1]['step']} steps, {training[-1]['epoch']:g} epochs"))
        speeds = sorted(record["images_per_second"] for record in training)
        facts.append(("speed", f"{speeds[len(speeds) // 2]:.1f} X-rays a second, both views of each (median)"))
        facts.append(("last loss", f"{training[-1]['loss']:.4f}"))
    steps = {record["step"] for record in best.values()}
    if steps:
        facts.append(("best checkpoint", "of step " + ", ".join(map(str, sorted(steps)))))
    return facts


def _read_lines(path: Path) -> list[dict]:
    """The JSON lines of a file; a last line without its end is one that a killed run was still writing."""
    *whole, last = path.read_text(encoding="utf-8").split("\n")
    records = []
    for number, line in enumerate([*whole, last], start=1):
        try:
            if line.strip():
                records.append(json.loads(line))
        except json.JSONDecodeError as error:
            if number <= len(whole):
                raise ValueError(f"{path}, line {number} is not valid JSON: {error}.") from error
    return records
