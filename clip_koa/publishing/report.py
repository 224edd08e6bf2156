"""The report of a run: metrics.json, pictures, and one page that opens offline."""

import base64
import json
import os
from pathlib import Path

import matplotlib
import numpy as np
from jinja2 import Environment, FileSystemLoader, select_autoescape

from modeling_clip_koa import GRADE_LABELS

matplotlib.use("Agg")
from matplotlib import pyplot as plt  # noqa: E402 (the backend comes first)

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
# Okabe and Ito's colours, told apart by colour-blind readers too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7")


def write_report(run_folder: str | Path) -> Path:
    """Writes `report/` from a run's metrics.jsonl, config.yaml and predictions.

    Returns:
        The path of the page.

    Raises:
        FileNotFoundError: the folder holds no metrics.jsonl, so is no run.
    """
    run_folder = Path(run_folder)
    if not (run_folder / "metrics.jsonl").is_file():
        raise FileNotFoundError(f"{run_folder} holds no metrics.jsonl: name the output_dir of a training run.")
    lines = (run_folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    records = [json.loads(line) for line in lines if line.strip()]
    best = {r["split"]: r for r in records if r["kind"] == "evaluation" and r["checkpoint"] == "best"}
    report = run_folder / "report"
    report.mkdir(exist_ok=True)
    _write(report / "metrics.json", json.dumps(best, indent=2))

    pictures = [("learning_curves.png", "Learning curves", _learning_curves(records))]
    for split, results in best.items():
        confusion = np.array(results["text_flip_averaged"]["confusion_matrix"])
        pictures.append((f"confusion_matrix_{split}.png", f"Confusion matrix, {split}", _confusion_matrix(confusion)))
        pictures.append((f"recall_per_grade_{split}.png", f"Recall per grade, {split}", _recall_per_grade(results)))
        predictions = report / f"predictions_{split}.jsonl"
        if predictions.is_file():
            pictures.append(
                (f"flip_scatter_{split}.png", f"Image against mirror image, {split}", _scatter(predictions))
            )
    images = []
    for name, title, figure in pictures:
        figure.savefig(report / name, dpi=110, bbox_inches="tight")
        plt.close(figure)
        encoded = base64.b64encode((report / name).read_bytes()).decode()
        images.append({"title": title, "data": f"data:image/png;base64,{encoded}"})

    environment = Environment(loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape())
    config = run_folder / "config.yaml"
    page = environment.get_template("report.html").render(
        name=run_folder.name,
        splits=[
            {"name": split, "step": results["step"], "samples": results["text"]["num_samples"], "results": results}
            for split, results in best.items()
        ],
        heads=HEAD_NAMES,
        metrics=METRIC_NAMES,
        images=images,
        config=config.read_text(encoding="utf-8") if config.is_file() else "",
    )
    return _write(report / "index.html", page)


def _write(path: Path, text: str) -> Path:
    temporary = path.with_name(f".{path.name}.writing")
    temporary.write_text(text, encoding="utf-8")
    os.replace(temporary, path)
    return path


def _learning_curves(records: list[dict]):
    figure, (losses, metrics) = plt.subplots(1, 2, figsize=(12, 4))
    training = [record for record in records if record["kind"] == "train"]
    for (part, name), colour in zip(LOSS_NAMES.items(), COLOURS, strict=True):
        losses.plot([r["epoch"] for r in training], [r[part] for r in training], label=name, color=colour, lw=1.2)
    losses.set(xlabel="epoch", ylabel="training loss", yscale="log", title="Losses by part")
    validation = [r for r in records if r["kind"] == "evaluation" and r["checkpoint"] == "last"]
    shown = (
        ("text_flip_averaged", "accuracy"),
        ("text_flip_averaged", "quadratic_weighted_kappa"),
        ("linear", "accuracy"),
        ("text", "flip_agreement"),
    )
    for (head, metric), colour in zip(shown, COLOURS, strict=True):
        label = f"{METRIC_NAMES[metric]} ({HEAD_NAMES[head]})"
        values = [record[head][metric] for record in validation]
        metrics.plot([r["epoch"] for r in validation], values, label=label, color=colour, marker="o", ms=4)
    metrics.set(xlabel="epoch", title="Validation")
    for axes in (losses, metrics):
        axes.grid(alpha=0.3)
        if axes.lines:
            axes.legend(fontsize=8)
    return figure


def _confusion_matrix(counts: np.ndarray):
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    figure, axes = plt.subplots(figsize=(5.5, 5))
    axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    for row, column in np.ndindex(*counts.shape):
        axes.text(
            column,
            row,
            f"{counts[row, column]}\n{shares[row, column]:.0%}",
            ha="center",
            va="center",
            fontsize=9,
            color="white" if shares[row, column] > 0.5 else "black",
        )
    ticks = range(len(counts))
    axes.set_xticks(ticks, GRADE_LABELS[: len(counts)], rotation=30, ha="right")
    axes.set_yticks(ticks, GRADE_LABELS[: len(counts)])
    axes.set(xlabel="predicted", ylabel="true", title="Text head, flip-averaged: X-rays and row shares")
    return figure


def _recall_per_grade(results: dict):
    figure, axes = plt.subplots(figsize=(7, 4))
    width = 0.8 / len(HEAD_NAMES)
    for index, ((head, name), colour) in enumerate(zip(HEAD_NAMES.items(), COLOURS, strict=False)):
        recalls = [recall or 0.0 for recall in results[head]["recall_per_grade"]]
        places = np.arange(len(recalls)) + (index - 1) * width
        axes.bar(places, recalls, width, label=name, color=colour)
    axes.set_xticks(range(len(GRADE_LABELS)), GRADE_LABELS)
    axes.set(ylim=(0, 1), ylabel="recall", title="Share of each grade's X-rays that are recognised")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    return figure


def _scatter(predictions: Path):
    rows = [json.loads(line) for line in predictions.read_text(encoding="utf-8").splitlines()]
    grades = np.arange(len(rows[0]["probabilities"]))
    expected = [np.array([row[key] for row in rows]) @ grades for key in ("probabilities", "flipped_probabilities")]
    labels = np.array([row["label"] for row in rows])
    figure, axes = plt.subplots(figsize=(5.5, 5))
    axes.plot([0, grades[-1]], [0, grades[-1]], color="grey", lw=1)
    points = axes.scatter(*expected, c=labels, cmap="viridis", s=12, alpha=0.7)
    figure.colorbar(points, ax=axes, label="true grade", ticks=grades)
    axes.set(
        xlabel="expected grade, image", ylabel="expected grade, mirror image", title="Text head, without averaging"
    )
    return figure
