"""What an ablation gave: a table with means, spreads and paired comparisons, as Markdown, CSV and a picture."""

import csv
import io
import statistics
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib.figure import Figure

from clip_koa.evaluation.heads import HEADS, grading, measure_heads
from clip_koa.evaluation.predictions import GradedSplit, PredictionsError
from clip_koa.files import write_file
from clip_koa.reporting.page import save_picture
from clip_koa.reporting.pictures import COLOURS, HEAD_NAMES, MARKERS
from metrics.kl_grading.paired import compare_kl_gradings
from studies.ablation.grid import BASELINE, Cell

# Shown in the Markdown table and the picture; the CSV holds these too.
FIGURES = {
    "accuracy": "accuracy",
    "quadratic_weighted_kappa": "QWK",
    "mae": "MAE",
    "macro_f1": "macro-F1",
    "flip_agreement": "flip agreement",
    "flip_divergence": "flip divergence",
    "expected_calibration_error": "ECE",
}
_DRAWN = ("accuracy", "quadratic_weighted_kappa", "flip_agreement")


@dataclass
class CellResult:
    """A cell's predictions by seed."""

    cell: Cell
    runs: dict[int, GradedSplit]

    def values(self, head: str, name: str) -> list[float]:
        """A figure for each seed."""
        return [results[head][name] for results in self._measured.values()]

    def __post_init__(self):
        self._measured = {seed: measure_heads(run.predictions) for seed, run in self.runs.items()}


def load_results(cells: list[Cell], runs: dict[tuple[str, int], GradedSplit]) -> list[CellResult]:
    """The results of the cells that have any; `runs` are what was predicted, by cell name and seed.

    Raises:
        PredictionsError: runs that graded different X-rays.
    """
    results = []
    for cell in cells:
        own = {seed: graded for (name, seed), graded in runs.items() if name == cell.name}
        if own:
            results.append(CellResult(cell, own))
    graded = [(result.cell.name, run) for result in results for run in result.runs.values()]
    for name, run in graded:
        if (run.files, run.people) != (graded[0][1].files, graded[0][1].people):
            raise PredictionsError(f"{name} graded other X-rays than {graded[0][0]}: give another --output.")
    return results


def compare_cells(first: CellResult, second: CellResult, first_head: str, second_head: str) -> dict | None:
    """Second less first over the seeds that both have, their X-rays put together; None where they share no seed.

    The bootstrap draws people, each with the X-rays of all seeds, so that the interval is of the mean over these
    seeds. McNemar's test takes X-rays for independent, which those of several seeds are not: it is given by seed.

    Returns:
        `difference` and `intervals` as `compare_kl_gradings`, `mcnemar_p` by seed.
    """
    seeds = sorted(set(first.runs) & set(second.runs))
    if not seeds:
        return None

    def joined(result, head, seeds):
        parts = [grading(result.runs[seed].predictions, head) for seed in seeds]
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def compare(seeds, **options):
        runs = [first.runs[seed] for seed in seeds]
        labels = [label for run in runs for label in run.predictions.labels.tolist()]
        people = [person for run in runs for person in run.people]
        sides = joined(first, first_head, seeds), joined(second, second_head, seeds)
        return compare_kl_gradings(*sides, labels, people, **options)

    together = compare(seeds)
    return {
        "seeds": seeds,
        "difference": together["difference"],
        "intervals": together["intervals"],
        "mcnemar_p": {seed: compare([seed], resamples=1)["mcnemar_p"] for seed in seeds},
    }


def table_rows(results: list[CellResult]) -> list[dict]:
    """A row for each cell and head, with mean and standard deviation over seeds, and the difference to the baseline.

    The baseline is read by the same head.
    """
    baseline = next((result for result in results if result.cell.name == BASELINE), None)
    rows = []
    for result in results:
        for head in HEADS:
            row = {"cell": result.cell.name, "head": head, "seeds": len(result.runs)}
            for name in FIGURES:
                values = [value for value in result.values(head, name) if value is not None]
                row[name] = statistics.fmean(values) if values else None
                row[f"{name}_sd"] = statistics.stdev(values) if len(values) > 1 else None
            compared = None
            if baseline and baseline is not result:
                compared = compare_cells(baseline, result, head, head)
            for name in FIGURES if compared else ():
                bounds = compared["intervals"][name]
                row[f"{name}_difference"] = compared["difference"][name]
                row[f"{name}_low"], row[f"{name}_high"] = bounds if bounds else (None, None)
            if compared:
                row["mcnemar_p"] = " ".join(f"{p:.3g}" for p in compared["mcnemar_p"].values())
            rows.append(row)
    return rows


def markdown(results: list[CellResult], rows: list[dict]) -> str:
    """The tables: each cell by one view of the text head, against the baseline, and each way to read the cells."""
    lines = ["| cell | seeds | " + " | ".join(FIGURES.values()) + " |", "|---|---|" + "---|" * len(FIGURES)]
    for result, row in zip(results, (r for r in rows if r["head"] == "text"), strict=True):
        figures = " | ".join(_mean(row, name) for name in FIGURES)
        lines.append(f"| {row['cell']}: {result.cell.meaning} | {row['seeds']} | {figures} |")
    names = ("accuracy", "quadratic_weighted_kappa", "flip_agreement")
    compared = [row for row in rows if row["head"] == "text" and "mcnemar_p" in row]
    if compared:
        lines += [
            "",
            f"| less {BASELINE} | " + " | ".join(FIGURES[name] for name in names) + " | McNemar's p by seed |",
        ]
        lines.append("|---|" + "---|" * (len(names) + 1))
        for row in compared:
            lines.append(f"| {row['cell']} | {' | '.join(_less(row, n) for n in names)} | {row['mcnemar_p']} |")
    lines += ["", "| cell | read by | accuracy | QWK | flip agreement |", "|---|---|---|---|---|"]
    for row in rows:
        lines.append(f"| {row['cell']} | {HEAD_NAMES[row['head']]} | {' | '.join(_mean(row, n) for n in names)} |")
    return "\n".join(lines) + "\n"


def _mean(row: dict, name: str) -> str:
    if row[name] is None:
        return ""
    spread = row[f"{name}_sd"]
    return f"{row[name]:.3f}" + (f" ± {spread:.3f}" if spread is not None else "")


def _less(row: dict, name: str) -> str:
    low, high = row[f"{name}_low"], row[f"{name}_high"]
    bounds = f" [{low:+.3f}, {high:+.3f}]" if low is not None else ""
    return f"{row[f'{name}_difference']:+.3f}{bounds}"


def draw(results: list[CellResult]) -> Figure:
    """Every run as a point, a cell a line, a figure a panel; the bar is the mean over seeds."""
    picture = Figure(figsize=(12, 1.6 + 0.5 * len(results)), layout="constrained")
    panels = picture.subplots(1, len(_DRAWN), sharey=True)
    for axes, name in zip(panels, _DRAWN, strict=True):
        for place, result in enumerate(results):
            for offset, head in zip((-0.2, 0, 0.2), HEADS, strict=True):
                if name == "flip_agreement" and head == "text_flip_averaged":
                    continue  # 1 by construction
                number = HEADS.index(head)
                values = result.values(head, name)
                heights = [place + offset] * len(values)
                label = HEAD_NAMES[head] if place == 0 else None
                axes.plot(values, heights, MARKERS[number], color=COLOURS[number], ms=5, alpha=0.7, label=label)
                axes.plot([statistics.fmean(values)], heights[:1], "|", color=COLOURS[number], ms=14, mew=2)
        axes.set(title=FIGURES[name][0].upper() + FIGURES[name][1:])
        axes.grid(True, axis="x")
    panels[0].set_yticks(range(len(results)), [result.cell.name for result in results])
    panels[0].invert_yaxis()
    panels[0].legend(loc="best")
    return picture


def write_summary(folder: Path, results: list[CellResult], name: str = "ablation") -> Path:
    """Writes {name}.md, {name}.csv and {name}.png; returns the first."""
    rows = table_rows(results)
    columns = list(dict.fromkeys(column for row in rows for column in row))
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, columns)
    writer.writeheader()
    writer.writerows(rows)
    write_file(folder / f"{name}.csv", buffer.getvalue().encode())
    alt = f"Accuracy, kappa and flip agreement of every run, by cell and head. {name}.csv holds them."
    save_picture(folder / f"{name}.png", "Ablation", alt, draw, results)
    return write_file(folder / f"{name}.md", markdown(results, rows).encode())
