"""The pictures of the reports, drawn from metrics, predictions and the records of a run."""

import numpy as np

# Pictures are built without pyplot, so that importing this changes no plotting state of the caller.
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from sklearn.metrics import roc_curve

from clip_koa.evaluation.heads import Predictions, grading
from metrics.kl_grading.kl_grading import CALIBRATION_BINS, OSTEOARTHRITIS_GRADE
from modeling_clip_koa import GRADE_LABELS

HEAD_NAMES = {
    "text": "text head",
    "text_flip_averaged": "text head, flip-averaged",
    "linear": "linear head",
}
LOSS_NAMES = {
    "loss": "total",
    "symmetry_loss": "symmetry",
    "consistency_loss": "consistency",
    "classifier_loss": "linear head",
}
# Okabe and Ito's colours, told apart by colour-blind readers too; markers and line styles tell them apart in print.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00")
LINES = ("-", "--", "-.", ":")
MARKERS = ("o", "s", "^", "D", "v")
CURVE_POINTS = 200
HEAD_COLOURS = dict(zip(HEAD_NAMES, COLOURS, strict=False))
GRADES = tuple(range(len(GRADE_LABELS)))
SHORT_LABELS = tuple(label.split()[0] for label in GRADE_LABELS)  # KL0 ...
# What matplotlib draws by, while one of these pictures is drawn and saved.
STYLE = {
    "font.size": 10,
    "font.family": "sans-serif",
    "axes.titlesize": 11,
    "axes.titleweight": "bold",
    "axes.titlelocation": "left",
    "axes.edgecolor": "#57606a",
    "axes.labelcolor": "#1b1f24",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "grid.color": "#d8dee4",
    "grid.linewidth": 0.7,
    "legend.frameon": False,
    "legend.fontsize": 9,
    "xtick.color": "#57606a",
    "ytick.color": "#57606a",
    "savefig.dpi": 144,
    "savefig.bbox": "tight",
}


def learning_curves(records: list[dict]) -> Figure:
    """Losses by part, and accuracy, kappa and flip agreement on validation, over the epochs of a run."""
    picture = Figure(figsize=(11, 7.4), layout="constrained")
    (losses, accuracy), (kappa, flips) = picture.subplots(2, 2)
    training = [record for record in records if record["kind"] == "train"]
    validation = [r for r in records if r["kind"] == "evaluation" and r["checkpoint"] == "last"]
    _draw_losses(losses, training, validation)
    heads = dict(zip(HEAD_NAMES, zip(COLOURS, LINES, MARKERS, strict=False), strict=False))
    panels = (
        (accuracy, "accuracy", "Accuracy on validation", tuple(HEAD_NAMES)),
        (kappa, "quadratic_weighted_kappa", "Quadratic weighted kappa on validation", tuple(HEAD_NAMES)),
        # Averaging the two views makes it 1.
        (flips, "flip_agreement", "Flip agreement on validation", ("text", "linear")),
    )
    for axes, metric, title, shown in panels:
        for head in shown:
            colour, line, marker = heads[head]
            drawn = [(r["epoch"], r[head][metric]) for r in validation if metric in r.get(head, {})]
            if drawn:
                axes.plot(
                    *zip(*drawn, strict=True), line, label=HEAD_NAMES[head], color=colour, marker=marker, ms=4, lw=1.4
                )
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        _finish_curves(axes)
    return picture


def _draw_losses(axes: Axes, training: list[dict], validation: list[dict]) -> None:
    epochs = _thinned([record["epoch"] for record in training])
    # A handful of points would vanish without markers, and hundreds drown in them.
    size = 4 if len(training) < 30 else 0
    for (part, name), colour, style, marker in zip(LOSS_NAMES.items(), COLOURS, LINES, MARKERS, strict=False):
        values = _thinned([record[part] for record in training])
        # A part that is switched off is 0 throughout and has no place on a logarithmic axis.
        if any(values):
            axes.plot(epochs, values, label=name, color=colour, ls=style, marker=marker, ms=size, lw=1.3)
    if validation and all(record.get("loss") for record in validation):
        points = [(record["epoch"], record["loss"]) for record in validation]
        axes.plot(*zip(*points, strict=True), "k", ls="", marker="x", ms=5, label="total, validation")
    axes.set(title="Losses by part, logarithmic", xlabel="epoch", yscale="log")
    _finish_curves(axes)


def _thinned(values: list[float]) -> list[float]:
    """At most `CURVE_POINTS` means of values that follow each other: single steps would draw a band, not a line."""
    if len(values) <= CURVE_POINTS:
        return values
    return [float(part.mean()) for part in np.array_split(np.array(values), CURVE_POINTS)]


def _finish_curves(axes: Axes) -> None:
    axes.grid(True)
    if axes.lines:
        axes.legend(loc="best")
    else:
        axes.text(0.5, 0.5, "nothing recorded yet", transform=axes.transAxes, ha="center", va="center")


def confusion_matrices(results: dict) -> Figure:
    """For each head the X-rays of each pair of true and predicted grade, and their share of the row."""
    picture = Figure(figsize=(13, 4.6), layout="constrained")
    for axes, (head, name) in zip(picture.subplots(1, len(HEAD_NAMES)), HEAD_NAMES.items(), strict=True):
        counts = np.array(results[head]["confusion_matrix"])
        shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            share = shares[row, column]
            colour = "white" if share > 0.55 else "#1b1f24" if count else "#8c959f"
            axes.text(column, row - 0.13, f"{count}", ha="center", va="center", fontsize=11, color=colour)
            axes.text(column, row + 0.22, f"{share:.0%}", ha="center", va="center", fontsize=8, color=colour)
        axes.set_xticks(GRADES, SHORT_LABELS)
        axes.set_yticks(GRADES, SHORT_LABELS)
        axes.set(title=name[0].upper() + name[1:], xlabel="predicted grade", ylabel="true grade")
        axes.spines[:].set_visible(False)
        axes.tick_params(length=0)
    return picture


def recall_per_grade(results: dict) -> Figure:
    """Bars of the recall of each grade for each head, with its interval where there is one."""
    picture = Figure(figsize=(11, 4.2), layout="constrained")
    axes = picture.subplots()
    width = 0.8 / len(HEAD_NAMES)
    for index, (head, name) in enumerate(HEAD_NAMES.items()):
        recalls = results[head]["recall_per_grade"]
        intervals = results[head].get("intervals", {}).get("recall_per_grade", [None] * len(recalls))
        places = np.arange(len(recalls)) + (index - 1) * width
        axes.bar(places, [recall or 0.0 for recall in recalls], width * 0.94, label=name, color=HEAD_COLOURS[head])
        for place, recall, bounds in zip(places, recalls, intervals, strict=True):
            if bounds:
                axes.plot([place, place], bounds, color="#1b1f24", lw=1.2, marker="_", ms=6)
            # A grade without X-rays gets no bar and the word for it, to tell it from a recall of 0.
            text = "n/a" if recall is None else f"{recall:.2f}".removeprefix("0")
            top = max(recall or 0.0, bounds[1] if bounds else 0.0)
            axes.text(place, top + 0.02, text, ha="center", va="bottom", fontsize=8, color="#1b1f24")
    counts = [sum(row) for row in results["text"]["confusion_matrix"]]
    axes.set_xticks(GRADES, [f"{label}\n{count} X-rays" for label, count in zip(GRADE_LABELS, counts, strict=True)])
    axes.set(ylim=(0, 1.12), yticks=np.linspace(0, 1, 6), ylabel="recall")
    axes.grid(axis="y")
    axes.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(HEAD_NAMES))
    return picture


def reliability(predictions: Predictions, results: dict) -> Figure:
    """For each head: how often the top grade is right among X-rays of equal confidence, and how many those are."""
    picture = Figure(figsize=(13, 5), layout="constrained")
    rows = picture.subplots(2, len(HEAD_NAMES), sharex=True, height_ratios=(3, 1))
    edges = np.linspace(0, 1, CALIBRATION_BINS + 1)
    for (upper, lower), (head, name) in zip(rows.T, HEAD_NAMES.items(), strict=True):
        probabilities = grading(predictions, head)["probabilities"]
        confidence = probabilities.max(axis=1)
        right = probabilities.argmax(axis=1) == predictions.labels.numpy()
        bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        counts = np.bincount(bins, minlength=CALIBRATION_BINS)
        filled = counts > 0
        accuracy = np.bincount(bins, right, CALIBRATION_BINS)[filled] / counts[filled]
        mean_confidence = np.bincount(bins, confidence, CALIBRATION_BINS)[filled] / counts[filled]
        colour = HEAD_COLOURS[head]
        upper.plot([0, 1], [0, 1], color="#8c959f", lw=1, ls="--")
        upper.vlines(mean_confidence, mean_confidence, accuracy, color=colour, alpha=0.35, lw=5)
        upper.scatter(mean_confidence, accuracy, color=colour, s=24, zorder=3)
        upper.set(ylim=(0, 1.02), xlim=(0, 1), ylabel="share right")
        upper.set_title(
            f"{name[0].upper()}{name[1:]}\nECE {results[head]['expected_calibration_error']:.3f}", fontsize=11
        )
        lower.bar(edges[:-1], counts, 1 / CALIBRATION_BINS, align="edge", color=colour, edgecolor="white", lw=0.5)
        lower.set(xlabel="confidence", ylabel="X-rays")
        upper.grid(True)
    return picture


def roc(predictions: Predictions, results: dict) -> Figure:
    """ROC of the probability of osteoarthritis, grade 2 and above, for each head; both classes must occur."""
    picture = Figure(figsize=(5.6, 5.2), layout="constrained")
    axes = picture.subplots()
    axes.plot([0, 1], [0, 1], color="#8c959f", lw=1, ls="--")
    diseased = predictions.labels.numpy() >= OSTEOARTHRITIS_GRADE
    for (head, name), line in zip(HEAD_NAMES.items(), LINES, strict=False):
        score = grading(predictions, head)["probabilities"][:, OSTEOARTHRITIS_GRADE:].sum(axis=1)
        false_positives, true_positives, _ = roc_curve(diseased, score)
        bounds = results[head].get("intervals", {}).get("auroc_osteoarthritis")
        spread = f" [{bounds[0]:.3f}, {bounds[1]:.3f}]" if bounds else ""
        label = f"{name}\nAUROC {results[head]['auroc_osteoarthritis']:.3f}{spread}"
        axes.plot(false_positives, true_positives, line, color=HEAD_COLOURS[head], lw=1.6, label=label)
    axes.set(xlabel="1 - specificity", ylabel="sensitivity", xlim=(-0.01, 1.01), ylim=(-0.01, 1.01), aspect="equal")
    axes.grid(True)
    axes.legend(loc="lower right")
    return picture


def flip_scatter(predictions: Predictions) -> Figure:
    """Text head: the probability of each grade, and the expected grade, of the image against its mirror image."""
    values = grading(predictions, "text")
    image, mirror = values["probabilities"], values["flipped_probabilities"]  # (N, K)
    picture = Figure(figsize=(11, 5), layout="constrained")
    shares, expected = picture.subplots(1, 2)
    for grade, colour, marker in zip(GRADES, COLOURS, MARKERS, strict=True):
        shares.scatter(
            image[:, grade], mirror[:, grade], s=9, alpha=0.45, color=colour, marker=marker, lw=0,
            label=SHORT_LABELS[grade],
        )  # fmt: skip
    shares.set(title="Probability of each grade", xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    shares.legend(title="grade", markerscale=2, loc="upper left")
    points = expected.scatter(
        image @ GRADES, mirror @ GRADES, c=predictions.labels, cmap="viridis", vmin=0, vmax=GRADES[-1], s=14, lw=0,
        alpha=0.7,
    )  # fmt: skip
    picture.colorbar(points, ax=expected, label="true grade", ticks=GRADES)
    expected.set(title="Expected grade", xticks=GRADES, yticks=GRADES)
    for axes, top in ((shares, 1), (expected, GRADES[-1])):
        axes.plot([0, top], [0, top], color="#8c959f", lw=1, zorder=0)
        axes.set(xlabel="of the image", ylabel="of the mirror image", aspect="equal")
        axes.grid(True)
    return picture


def robustness(results: dict, head: str) -> Figure:
    """For each perturbation the change of accuracy, kappa and MAE, with intervals, and the share of changed grades."""
    names = list(results)[::-1]
    places = np.arange(len(names))
    picture = Figure(figsize=(13, 0.8 + 0.32 * len(names)), layout="constrained")
    panels = picture.subplots(1, 4, sharey=True)
    metrics = {"accuracy": "Change of accuracy", "quadratic_weighted_kappa": "Change of QWK", "mae": "Change of MAE"}
    for axes, (metric, title) in zip(panels, metrics.items(), strict=False):
        changes = [results[name][head]["change"][metric] for name in names]
        worse = [change > 0 if metric == "mae" else change < 0 for change in changes]
        colours = [COLOURS[1] if bad else COLOURS[2] for bad in worse]
        axes.axvline(0, color="#57606a", lw=1)
        for place, name, change, colour in zip(places, names, changes, colours, strict=True):
            bounds = results[name][head]["intervals"][metric]
            if bounds:
                axes.plot(bounds, [place, place], color=colour, lw=2.2, alpha=0.5, solid_capstyle="butt")
            axes.plot([change], [place], "o", color=colour, ms=5)
        axes.set_title(title)
        axes.grid(axis="x")
    changed = [results[name][head]["grade_changed"] for name in names]
    panels[3].barh(places, changed, color=COLOURS[0], height=0.65)
    for place, share in zip(places, changed, strict=True):
        panels[3].text(share, place, f" {share:.1%}", va="center", fontsize=8)
    panels[3].set(title="Grades that change", xlim=(0, max(0.05, 1.25 * max(changed))))
    panels[0].set_yticks(places, [results[name]["title"] for name in names])
    return picture


def graded_examples(images: list, titles: list[str], probabilities: list) -> Figure:
    """X-rays in rows of one for each grade, each over bars of the probabilities that a model gives it.

    Args:
        images: arrays (H, W, 3) of 8 bits, N of them.
        titles: what the data set calls each.
        probabilities: (N, K), of each.
    """
    columns = len(GRADES)
    rows = -(-len(images) // columns)
    picture = Figure(figsize=(7, 2.2 * rows), layout="constrained")
    grid = picture.subplots(2 * rows, columns, height_ratios=(3, 1) * rows, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for place, (image, title, shares) in enumerate(zip(images, titles, probabilities, strict=True)):
        row, column = divmod(place, columns)
        above, below = grid[2 * row, column], grid[2 * row + 1, column]
        above.imshow(image)
        above.set_title(title, fontsize=6)
        below.set_axis_on()
        named = int(np.argmax(shares))
        below.bar(GRADES, shares, color=[COLOURS[1] if grade == named else "#b8c0c8" for grade in GRADES])
        below.set(ylim=(0, 1), yticks=(), xticks=GRADES)
        below.set_xticklabels(SHORT_LABELS, fontsize=5)
        below.set_title(f"model: {GRADE_LABELS[named]}, {shares[named]:.0%}", fontsize=6, weight="normal")
    return picture
