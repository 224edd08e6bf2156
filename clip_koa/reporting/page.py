"""What all reports share: pictures and pages written whole, and the section on one split's results."""

import base64
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from datasets import Dataset, Image
from jinja2 import Environment, FileSystemLoader, select_autoescape
from matplotlib.figure import Figure
from PIL.Image import Image as Picture

from clip_koa.evaluation.heads import grading
from clip_koa.evaluation.predictions import GradedSplit
from clip_koa.files import write_file
from clip_koa.reporting import pictures
from clip_koa.reporting.pictures import HEAD_NAMES
from dataset_script.radiograph import read_stored_image
from modeling_clip_koa import GRADE_LABELS

TEMPLATES = Path(__file__).parent / "templates"
# The head that a grade is read from, and so the one that the reports lead with.
MAIN_HEAD = "text_flip_averaged"
METRIC_NAMES = {
    "accuracy": "accuracy",
    "balanced_accuracy": "balanced accuracy",
    "macro_f1": "macro-F1",
    "quadratic_weighted_kappa": "quadratic weighted kappa",
    "mae": "MAE (grades)",
    "adjacent_accuracy": "adjacent accuracy",
    "auroc_osteoarthritis": "AUROC, grade ≥ 2",
    "expected_calibration_error": "ECE, 15 bins",
    "brier_score": "Brier score",
    "log_loss": "log loss (nats)",
    "flip_agreement": "flip agreement",
    "flip_divergence": "flip divergence (nats)",
}
HARDEST = 12
THUMBNAIL = 160  # pixels


def write_page(path: Path, template: str, **values) -> Path:
    """Renders a template of this package; what is put in is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=select_autoescape(), trim_blocks=True, lstrip_blocks=True
    )
    return write_file(path, environment.get_template(template).render(**values).encode())


def save_picture(path: Path, title: str, alt: str, draw: Callable[..., Figure], *arguments) -> dict:
    """Draws a picture, saves it as PNG, and gives what a page needs to embed it."""
    buffer = io.BytesIO()
    with matplotlib.rc_context(pictures.STYLE):
        drawn = draw(*arguments)
        drawn.savefig(buffer, format="png")
    write_file(path, buffer.getvalue())
    # Drawn with more dots than a page's 96 an inch, so that it stays sharp on fine screens and in print.
    width = round(drawn.get_figwidth() * 96)
    return {"title": title, "alt": alt, "width": width, "data": _data_url(buffer.getvalue(), "png")}


def split_section(
    folder: Path, split: str, results: dict, graded: GradedSplit | None, xrays: Dataset | None = None
) -> dict:
    """All that a page says of one split: headline, tables, pictures (saved in `folder`) and the hardest X-rays.

    Args:
        results: for each head its metrics, with or without intervals.
        graded: the predictions that the metrics are of; without them there is no diagram of probabilities.
        xrays: the split itself, for thumbnails of the hardest X-rays.
    """
    main = results[MAIN_HEAD]
    return {
        "name": split,
        "samples": main["num_samples"],
        "people": main.get("num_people"),
        "headline": _headline(results),
        "tables": _tables(split, results),
        "pictures": _pictures(folder, split, results, graded),
        "hardest": hardest_xrays(graded, xrays) if graded else [],
        "thumbnails": xrays is not None,
    }


def figure_text(value: float | None) -> str:
    """A figure with three decimals, or n/a."""
    return "n/a" if value is None else f"{value:.3f}"


def interval_text(bounds: list | None) -> str:
    """An interval with three decimals, or nothing."""
    return "" if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"


def signed_text(value: float | None) -> str:
    """A difference with its sign and three decimals, or n/a."""
    if value is None:
        return "n/a"
    text = f"{value:+.3f}"
    return "0.000" if float(text) == 0 else text


def signed_interval_text(bounds: list | None) -> str:
    """A difference's interval, or nothing."""
    return "" if bounds is None else f"{signed_text(bounds[0])} to {signed_text(bounds[1])}"


def _headline(results: dict) -> list[tuple[str, str, str]]:
    """Name, figure and interval of what a reader looks for first."""
    shown = (
        ("accuracy", MAIN_HEAD, "accuracy"),
        ("quadratic_weighted_kappa", MAIN_HEAD, "quadratic weighted kappa"),
        ("mae", MAIN_HEAD, "MAE, in grades"),
        ("auroc_osteoarthritis", MAIN_HEAD, "AUROC of grade ≥ 2"),
        ("flip_agreement", "text", "flip agreement, not averaged"),
    )
    return [
        (title, figure_text(results[head][metric]), interval_text(results[head].get("intervals", {}).get(metric)))
        for metric, head, title in shown
        if metric in results[head]
    ]


def _tables(split: str, results: dict) -> list[dict]:
    """Tables of a title and, for each head, the figure and its interval."""

    def cells(metric, grade=None):
        for head in HEAD_NAMES:
            value, bounds = results[head][metric], results[head].get("intervals", {}).get(metric)
            if grade is not None:
                value, bounds = value[grade], bounds[grade] if bounds else None
            yield figure_text(value), interval_text(bounds)

    known = [metric for metric in METRIC_NAMES if metric in results["text"]]
    tables = [
        {"caption": f"Metrics on {split}", "corner": "metric",
         "rows": [(METRIC_NAMES[metric], list(cells(metric))) for metric in known]},
    ]  # fmt: skip
    for metric, title in (("recall_per_grade", "Recall"), ("f1_per_grade", "F1")):
        if metric in results["text"]:
            rows = [(label, list(cells(metric, grade))) for grade, label in enumerate(GRADE_LABELS)]
            tables.append({"caption": f"{title} per grade on {split}", "corner": "grade", "rows": rows})
    return tables


def _pictures(folder: Path, split: str, results: dict, graded: GradedSplit | None) -> list[dict]:
    main = results[MAIN_HEAD]
    saved = []

    def add(name, title, alt, draw, *arguments):
        saved.append(save_picture(folder / f"{name}_{split}.png", title, alt, draw, *arguments))

    alt = (
        f"For each head a confusion matrix of {main['num_samples']} X-rays, rows true and columns predicted grades; "
        f"flip-averaged, {main['accuracy']:.1%} lie on the diagonal. metrics.json holds the counts."
    )
    add("confusion_matrix", "Confusion matrices", alt, pictures.confusion_matrices, results)
    title = "Recall per grade, with 95 % intervals" if "intervals" in main else "Recall per grade"
    alt = "Bar chart of the recall of each grade for the three heads; the table above holds the figures."
    add("recall_per_grade", title, alt, pictures.recall_per_grade, results)
    if graded is None:
        return saved
    predictions = graded.predictions
    alt = (
        f"For each head the share of right grades against confidence in {pictures.CALIBRATION_BINS} bins, over a "
        f"histogram of confidence; flip-averaged, ECE is {main['expected_calibration_error']:.3f}."
    )
    title = "Reliability: how often a grade of some confidence is right"
    add("reliability", title, alt, pictures.reliability, predictions, results)
    if main["auroc_osteoarthritis"] is not None:
        alt = f"ROC curves of the three heads; flip-averaged, the area under it is {main['auroc_osteoarthritis']:.3f}."
        add("roc", "ROC of osteoarthritis, grade 2 and above", alt, pictures.roc, predictions, results)
    values = grading(predictions, "text")
    expected = [values[name] @ np.array(pictures.GRADES) for name in ("probabilities", "flipped_probabilities")]
    alt = (
        f"Two scatter plots of {len(graded.files)} X-rays, image against mirror image: probabilities of each grade, "
        f"and expected grades, which lie {np.abs(expected[0] - expected[1]).mean():.3f} apart on average."
    )
    title = "Image against mirror image, text head without averaging"
    add("flip_scatter", title, alt, pictures.flip_scatter, predictions)
    return saved


def hardest_xrays(graded: GradedSplit, xrays: Dataset | None = None, count: int = HARDEST) -> list[dict]:
    """The X-rays whose true grade gets the least probability, averaged over both views, with what each view says."""
    predictions = graded.predictions
    averaged = grading(predictions, MAIN_HEAD)["probabilities"]
    views = grading(predictions, "text")
    labels = predictions.labels.numpy()
    order = averaged[np.arange(len(labels)), labels].argsort(kind="stable")[:count]
    thumbnails = _thumbnails(xrays, [graded.files[index] for index in order]) if xrays is not None else {}
    return [
        {
            "file": graded.files[index],
            "true": pictures.SHORT_LABELS[labels[index]],
            "predicted": pictures.SHORT_LABELS[averaged[index].argmax()],
            "thumbnail": thumbnails.get(graded.files[index]),
            "rows": [
                {
                    "label": pictures.SHORT_LABELS[grade],
                    "true": grade == labels[index],
                    "image": views["probabilities"][index, grade],
                    "mirror": views["flipped_probabilities"][index, grade],
                }
                for grade in pictures.GRADES
            ],
        }
        for index in order
    ]


def stored_pictures(xrays: Dataset, files: list[str]) -> dict[str, Picture]:
    """The named X-rays of a split, (H, W) in mode L, as far as it holds them."""
    place = {file: index for index, file in enumerate(xrays["file"])}
    stored = xrays.cast_column("image", Image(decode=False))
    return {file: read_stored_image(stored[place[file]]["image"]) for file in files if file in place}


def _thumbnails(xrays: Dataset, files: list[str]) -> dict[str, str]:
    """Small JPEG pictures of the named X-rays, as data URLs."""
    thumbnails = {}
    for file, image in stored_pictures(xrays, files).items():
        image.thumbnail((THUMBNAIL, THUMBNAIL))
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=80)
        thumbnails[file] = _data_url(buffer.getvalue(), "jpeg")
    return thumbnails


def _data_url(content: bytes, kind: str) -> str:
    return f"data:image/{kind};base64,{base64.b64encode(content).decode()}"
