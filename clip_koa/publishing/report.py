"""The report of a run: metrics.json, pictures, and one page that opens offline."""

import base64
import io
import json
import os
from pathlib import Path

import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape

# Figures are built without pyplot, so that importing this changes no plotting state of the caller.
from matplotlib.figure import Figure

from modeling_clip_koa import GRADE_LABELS

TEMPLATES = Path(__file__).parent / "templates"
HEAD_NAMES = {
    "text": "text head",
    "text_flip_averaged": "text head, flip-averaged",
    "linear": "linear head",
}
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "quadratic_weighted_kappa": "quadratic weighted kappa",
    "mae": "MAE",
    "flip_agreement": "flip agreement",
}
LOSS_NAMES = {
    "loss": "total",
    "symmetry_loss": "symmetry",
    "consistency_loss": "consistency",
    "classifier_loss": "linear head",
}
# Okabe and Ito's colours, told apart by colour-blind readers too; markers and line styles tell them apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D")


def write_report(run_folder: str | Path) -> Path:
    """Writes `report/` from a run's metrics.jsonl, config.yaml and predictions; a run in progress will do.

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
    _write(report / "metrics.json", json.dumps(best, indent=2).encode())

    images = []
    for name, title, alt, figure in _draw_pictures(records, best, report):
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png", dpi=110, bbox_inches="tight")
        _write(report / name, buffer.getvalue())
        data = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
        images.append({"title": title, "alt": alt, "data": data})

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape())
    config = run_folder / "config.yaml"
    page = environment.get_template("report.html").render(
        name=run_folder.resolve().name,
        splits=[
            {"name": split, "samples": results["text"]["num_samples"], "tables": _tables(split, results)}
            for split, results in best.items()
        ],
        heads=list(HEAD_NAMES.values()),
        images=images,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )
    return _write(report / "index.html", page.encode())


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


def _write(path: Path, content: bytes) -> Path:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_bytes(content)
    os.replace(temporary, path)
    return path


def _tables(split: str, results: dict) -> list[tuple[str, str, list]]:
    """Caption, name of the first column, and rows of a title and a value for each head (None: it has none)."""
    metrics = [(title, [results[head][metric] for head in HEAD_NAMES]) for metric, title in METRIC_NAMES.items()]
    recalls = [
        (title, [results[head]["recall_per_grade"][grade] for head in HEAD_NAMES])
        for grade, title in enumerate(GRADE_LABELS)
    ]
    return [(f"Metrics on {split}", "metric", metrics), (f"Recall per grade on {split}", "grade", recalls)]


def _draw_pictures(records: list[dict], best: dict, report: Path) -> list[tuple[str, str, str, Figure]]:
    """File name, title, alternative text and figure of each picture that the run has figures for."""
    pictures = []
    if records:
        alt = "Two line charts over epochs: training losses by part, and validation metrics. metrics.jsonl holds both."
        pictures.append(("learning_curves.png", "Learning curves", alt, _learning_curves(records)))
    for split, results in best.items():
        averaged = results["text_flip_averaged"]
        alt = (
            f"Confusion matrix of {averaged['num_samples']} X-rays, rows true and columns predicted grades; "
            f"{averaged['accuracy']:.1%} lie on the diagonal. metrics.json holds the counts."
        )
        confusion = _confusion_matrix(np.array(averaged["confusion_matrix"]))
        pictures.append((f"confusion_matrix_{split}.png", f"Confusion matrix, {split}", alt, confusion))
        alt = "Bar chart of the recall of each grade for the three heads; the table above holds the figures."
        recalls = _recall_per_grade(results)
        pictures.append((f"recall_per_grade_{split}.png", f"Recall per grade, {split}", alt, recalls))
        predictions = report / f"predictions_{split}.jsonl"
        rows = _read_lines(predictions) if predictions.is_file() else []
        if rows:
            expected, labels = _expected_grades(rows)
            distance = np.abs(expected[0] - expected[1]).mean()
            alt = (
                f"Scatter plot of {len(rows)} X-rays: the grade expected of the mirror image against that of the "
                f"image. On average they lie {distance:.3f} grades apart."
            )
            scatter = _flip_scatter(expected, labels)
            pictures.append((f"flip_scatter_{split}.png", f"Image against mirror image, {split}", alt, scatter))
    return pictures


def _learning_curves(records: list[dict]) -> Figure:
    figure = Figure(figsize=(12, 4.5))
    losses, metrics = figure.subplots(1, 2)
    training = [record for record in records if record["kind"] == "train"]
    epochs = [record["epoch"] for record in training]
    # A handful of points would vanish without markers, and hundreds drown in them.
    size = 4 if len(training) < 30 else 0
    for (part, name), colour, style, marker in zip(LOSS_NAMES.items(), COLOURS, LINES, MARKERS, strict=True):
        values = [record[part] for record in training]
        # A part that is switched off is 0 throughout and has no place on a logarithmic axis.
        if any(values):
            losses.plot(epochs, values, label=name, color=colour, ls=style, marker=marker, ms=size, lw=1.3)
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log", title="Training losses by part")

    validation = [r for r in records if r["kind"] == "evaluation" and r["checkpoint"] == "last"]
    shown = (
        ("text_flip_averaged", "accuracy"),
        ("text_flip_averaged", "quadratic_weighted_kappa"),
        ("linear", "accuracy"),
        ("text", "flip_agreement"),
    )
    for (head, metric), colour, style, marker in zip(shown, COLOURS, LINES, MARKERS, strict=True):
        label = f"{METRIC_NAMES[metric]} ({HEAD_NAMES[head]})"
        values = [record[head][metric] for record in validation]
        metrics.plot(
            [r["epoch"] for r in validation], values, label=label, color=colour, ls=style, marker=marker, ms=4, lw=1.3
        )
    metrics.set(xlabel="epoch", title="Validation")
    metrics.xaxis.get_major_locator().set_params(integer=True)
    for axes, drawn in ((losses, training), (metrics, validation)):
        axes.grid(alpha=0.3)
        axes.spines[["top", "right"]].set_visible(False)
        if drawn:
            axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.14), ncols=2, frameon=False)
        else:
            axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", va="center")
    return figure


def _confusion_matrix(counts: np.ndarray) -> Figure:
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure = Figure(figsize=(6, 5.5))
    axes = figure.subplots()
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for (row, column), count in np.ndenumerate(counts):
        share = shares[row, column]
        colour = "white" if share > 0.5 else "black"
        axes.text(column, row, f"{count}\n{share:.0%}", ha="center", va="center", fontsize=9, color=colour)
    ticks = range(len(counts))
    axes.set_xticks(ticks, GRADE_LABELS, rotation=30, ha="right")
    axes.set_yticks(ticks, GRADE_LABELS)
    axes.set(xlabel="predicted grade", ylabel="true grade")
    axes.set_title("Text head, flip-averaged: X-rays and shares of each row", fontsize=11)
    return figure


def _recall_per_grade(results: dict) -> Figure:
    figure = Figure(figsize=(8, 4.2))
    axes = figure.subplots()
    width = 0.8 / len(HEAD_NAMES)
    for index, ((head, name), colour) in enumerate(zip(HEAD_NAMES.items(), COLOURS, strict=False)):
        recalls = results[head]["recall_per_grade"]
        places = np.arange(len(recalls)) + (index - 1) * width
        # A grade without X-rays gets no bar and the word for it, to tell it from a recall of 0.
        bars = axes.bar(places, [recall or 0.0 for recall in recalls], width, label=name, color=colour)
        texts = ["n/a" if recall is None else f"{recall:.2f}".removeprefix("0") for recall in recalls]
        axes.bar_label(bars, texts, fontsize=7, padding=1)
    axes.set_xticks(range(len(GRADE_LABELS)), GRADE_LABELS)
    axes.set(ylim=(0, 1.05), ylabel="recall", title="Share of each grade's X-rays that are recognised")
    axes.grid(axis="y", alpha=0.3)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=3, frameon=False)
    return figure


def _expected_grades(rows: list[dict]) -> tuple[np.ndarray, np.ndarray]:
    """Expected grade (2, N) of image and mirror image by the text head, 0 to 4, and the true grades (N,)."""
    views = np.array([[row["probabilities"], row["flipped_probabilities"]] for row in rows])  # (N, 2, K)
    return (views @ np.arange(views.shape[-1])).T, np.array([row["label"] for row in rows])


def _flip_scatter(expected: np.ndarray, labels: np.ndarray) -> Figure:
    grades = range(len(GRADE_LABELS))
    figure = Figure(figsize=(6, 5))
    axes = figure.subplots()
    axes.plot([0, grades[-1]], [0, grades[-1]], color="grey", lw=1, zorder=0)
    points = axes.scatter(*expected, c=labels, cmap="viridis", vmin=0, vmax=grades[-1], s=14, alpha=0.7)
    figure.colorbar(points, ax=axes, label="true grade", ticks=grades)
    axes.set(
        xlabel="expected grade, image", ylabel="expected grade, mirror image", title="Text head, without averaging"
    )
    axes.set(xticks=grades, yticks=grades, aspect="equal")
    axes.grid(alpha=0.3)
    return figure
