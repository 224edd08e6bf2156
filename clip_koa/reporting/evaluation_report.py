"""The report of one evaluation: metrics.json, pictures, tables of robustness, and one page that opens offline."""

import csv
import io
import json
from pathlib import Path

from clip_koa.evaluation.checkpoint import Evaluation
from clip_koa.evaluation.heads import HEADS, Predictions, grading
from clip_koa.evaluation.predictions import GradedSplit
from clip_koa.evaluation.stock import STOCK_HEADS
from clip_koa.files import write_file
from clip_koa.reporting import pictures
from clip_koa.reporting.page import (
    MAIN_HEAD,
    METRIC_NAMES,
    figure_text,
    interval_text,
    save_picture,
    signed_interval_text,
    signed_text,
    split_section,
    write_page,
)

# Columns of the table of robustness: heading, head, what of it.
_ROBUSTNESS_COLUMNS = (
    ("accuracy", MAIN_HEAD, "accuracy"),
    ("QWK", MAIN_HEAD, "quadratic_weighted_kappa"),
    ("MAE", MAIN_HEAD, "mae"),
    ("AUROC, grade ≥ 2", MAIN_HEAD, "auroc_osteoarthritis"),
    ("flip agreement", "text", "flip_agreement"),
)


def write_evaluation(folder: Path, split: str, found: Evaluation, thumbnails: bool = True) -> Path:
    """Writes what an evaluation found into `folder`.

    Args:
        split: its name.
        thumbnails: show the hardest X-rays; the page is then for the reader's own disk.

    Returns:
        The path of the page, which embeds its pictures and needs nothing else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    record = {"about": found.about, "split": split, **found.results}
    if found.stock:
        record["stock"] = found.stock
    if found.pairs:
        record["pairs"] = found.pairs
    if found.robustness:
        record["robustness"] = found.robustness
        _write_robustness(folder, found.robustness, found.graded, found.perturbed)
    write_file(folder / "metrics.json", json.dumps(record, indent=2, allow_nan=False).encode())
    xrays = found.xrays if thumbnails else None
    return write_page(
        folder / "index.html",
        "evaluation.html",
        facts=list(found.about.items()),
        section=split_section(folder, split, found.results, found.graded, xrays),
        heads=list(pictures.HEAD_NAMES.values()),
        stock=_stock_table(found.stock) if found.stock else None,
        pairs=_pairs_table(found.pairs) if found.pairs else None,
        robustness=_robustness_part(folder, found.robustness) if found.robustness else None,
    )


def _stock_table(stock: dict) -> dict:
    rows = [
        (
            title,
            [
                (figure_text(stock[head][metric]), interval_text(stock[head]["intervals"][metric]))
                for head in STOCK_HEADS
            ],
        )
        for metric, title in METRIC_NAMES.items()
    ]
    return {"rows": rows, **stock["agreement"]}


def _pairs_table(pairs: dict) -> dict:
    """Figures of each knee alone and of both together, with the difference and its interval."""
    rows = []
    for metric, title in METRIC_NAMES.items():
        if metric in pairs["difference"]:
            change = signed_text(pairs["difference"][metric]), signed_interval_text(pairs["intervals"][metric])
            rows.append((title, [*((figure_text(pairs[side][metric]), "") for side in ("first", "second")), change]))
    return {"rows": rows, **{name: pairs[name] for name in ("num_pairs", "weight", "mcnemar_p")}}


def _robustness_part(folder: Path, robustness: dict) -> dict:
    alt = (
        f"For each of {len(robustness)} perturbations the change of accuracy, quadratic weighted kappa and MAE with "
        "intervals, and the share of X-rays whose grade changes. The table below holds the figures."
    )
    picture = save_picture(
        folder / "robustness.png",
        "Change under each perturbation",
        alt,
        pictures.robustness,
        robustness,
        MAIN_HEAD,
    )
    return {"picture": picture, "columns": _columns(), "rows": _rows(robustness)}


def _columns() -> list[str]:
    names = [f"Δ {title}" for title, _, _ in _ROBUSTNESS_COLUMNS]
    return [*names, "changed grades", "changed, not averaged", "mean Δ grade"]


def _rows(robustness: dict) -> list[tuple[str, list[tuple[str, str]]]]:
    """For each perturbation its title, and figure and interval of each column."""
    rows = []
    for values in robustness.values():
        cells = []
        for _, head, metric in _ROBUSTNESS_COLUMNS:
            change, bounds = values[head]["change"][metric], values[head]["intervals"][metric]
            cells.append((signed_text(change), signed_interval_text(bounds)))
        for head in (MAIN_HEAD, "text"):
            cells.append(
                (f"{values[head]['grade_changed']:.3f}", interval_text(values[head]["grade_changed_interval"]))
            )
        rows.append((values["title"], [*cells, (signed_text(values[MAIN_HEAD]["mean_change"]), "")]))
    return rows


def _write_robustness(folder: Path, robustness: dict, graded: GradedSplit, perturbed: dict) -> None:
    """robustness.md (the page's table), robustness.csv (every figure), grade_changes.csv (every X-ray)."""
    lines = ["| " + " | ".join(["perturbation", *_columns()]) + " |", "|---" * (len(_columns()) + 1) + "|"]
    for title, cells in _rows(robustness):
        texts = [f"{figure} ({bounds})" if bounds else figure for figure, bounds in cells]
        lines.append("| " + " | ".join([title, *texts]) + " |")
    write_file(folder / "robustness.md", ("\n".join(lines) + "\n").encode())
    write_file(folder / "robustness.csv", _figures_csv(robustness).encode())
    write_file(folder / "grade_changes.csv", _grades_csv(graded, perturbed).encode())


def _figures_csv(robustness: dict) -> str:
    """A line for each perturbation, head and figure."""
    rows = [("perturbation", "head", "metric", "value", "change", "change_low", "change_high")]
    for name, values in robustness.items():
        for head in HEADS:
            of_head = values[head]
            for metric, change in of_head["change"].items():
                value, bounds = of_head["metrics"][metric], of_head["intervals"][metric]
                if not isinstance(change, list):
                    rows.append((name, head, metric, value, change, *(bounds or ("", ""))))
                    continue
                for grade, part in enumerate(change):
                    limits = bounds[grade] or ("", "")
                    rows.append((name, head, f"{metric}.{grade}", value[grade], part, *limits))
            low, high = of_head["grade_changed_interval"] or ("", "")
            rows.append((name, head, "grade_changed", of_head["grade_changed"], "", low, high))
            for metric in ("mean_change", "mean_absolute_change"):
                rows.append((name, head, metric, of_head[metric], "", "", ""))
    return _csv(rows)


def _grades_csv(graded: GradedSplit, perturbed: dict[str, Predictions]) -> str:
    """A line for each X-ray: its grade as it is and under each perturbation, flip-averaged."""
    grades = {"as_it_is": graded.predictions, **perturbed}
    columns = [grading(predictions, MAIN_HEAD)["predictions"].tolist() for predictions in grades.values()]
    rows = [("file", "person", "label", *grades)]
    rows += zip(graded.files, graded.people, graded.predictions.labels.tolist(), *columns, strict=True)
    return _csv(rows)


def _csv(rows: list[tuple]) -> str:
    buffer = io.StringIO()
    csv.writer(buffer, lineterminator="\n").writerows(rows)
    return buffer.getvalue()
