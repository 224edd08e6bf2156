"""One evaluation for everyone: both views and both heads of each X-ray, and the metrics of each way to read them."""

from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass, fields

import numpy as np
import torch

from metrics.kl_grading.kl_grading import kl_grading_metrics
from modeling_clip_koa import CLIPKOAConfig, CLIPKOAError, consistency_loss, symmetry_loss
from modeling_clip_koa.preprocessing_clip_koa import turn, turns_of

# The ways to read a grade off the model; the linear head stands without averaging, as a stock pipeline runs it.
HEADS = ("text", "text_flip_averaged", "linear")

# What a best checkpoint can be chosen by: head.metric, or that it is the newest.
NEWEST = "last"
CHOOSABLE_METRICS = tuple(
    f"{head}.{metric}"
    for head in HEADS
    for metric in ("accuracy", "balanced_accuracy", "macro_f1", "quadratic_weighted_kappa", "mae", "flip_agreement")
) + (NEWEST,)


class NotFiniteError(CLIPKOAError, FloatingPointError):
    """Numbers of a model that are not finite; the message says where they came up."""


@dataclass
class Predictions:
    """Logits of both heads for N X-rays and for their mirror images, none of them averaged; on the CPU."""

    index: torch.Tensor  # (N,), place in the split
    labels: torch.Tensor  # (N,), grades
    logits: torch.Tensor  # (N, K), text head
    flipped_logits: torch.Tensor  # (N, K), text head, mirror image
    classifier_logits: torch.Tensor  # (N, K), linear head
    flipped_classifier_logits: torch.Tensor  # (N, K), linear head, mirror image

    def of_head(self, head: str) -> tuple[torch.Tensor, torch.Tensor]:
        """Logits (N, K) that `head` grades the X-rays and their mirror images by."""
        if head == "text":
            return self.logits, self.flipped_logits
        if head == "text_flip_averaged":
            return (self.logits + self.flipped_logits) / 2, (self.flipped_logits + self.logits) / 2
        if head == "linear":
            return self.classifier_logits, self.flipped_classifier_logits
        raise ValueError(f"head={head!r}: use one of {', '.join(HEADS)}.")


@torch.no_grad()
def predict(
    model: torch.nn.Module, batches: Iterable[dict], accelerator, *, autocast: bool = True, readings: int = 1
) -> Predictions:
    """Runs the model on every X-ray and its mirror image.

    Args:
        model: a CLIP-KOA model, prepared by the accelerator or not; its training mode is kept.
        batches: of `pixel_values`, `labels`, `index`; a loader prepared by the accelerator.
        accelerator: gathers the predictions of all processes, each X-ray once.
        autocast: compute in the accelerator's precision; False: in the weights' own, as a figure to report should be.
        readings: of `READINGS`, over how many an X-ray's logits are averaged, as `grade` of the model does.

    Raises:
        ValueError: a number of readings that is none of `READINGS`.
    """
    turns, was_training = turns_of(readings), model.training
    model.eval()
    gathered = []
    for batch in batches:
        read = []
        for degrees in turns:
            pixel_values = turn(batch["pixel_values"], degrees)
            with accelerator.autocast() if autocast else nullcontext():
                output = model(torch.cat([pixel_values, pixel_values.flip(-1)]), flip_average=False)
            read.append((*output.logits.float().chunk(2), *output.classifier_logits.float().chunk(2)))
        own = (batch["index"], batch["labels"], *(sum(views) / readings for views in zip(*read, strict=True)))
        gathered.append([part.cpu() for part in accelerator.gather_for_metrics(own)])
    model.train(was_training)
    columns = [torch.cat(parts) for parts in zip(*gathered, strict=True)]
    order = columns[0].argsort()
    return Predictions(**{f.name: column[order] for f, column in zip(fields(Predictions), columns, strict=True)})


def evaluate(predictions: Predictions, config: CLIPKOAConfig, people: list[str] | None = None) -> dict:
    """Losses by part, and the metrics of each head.

    Args:
        people: whose each X-ray is (N); with it every figure of a head has its interval.

    Returns:
        `loss`, `symmetry_loss`, `consistency_loss`, `classifier_loss` as the model defines them, over the whole split,
        and for each of `HEADS` the dictionary of `kl_grading_metrics`.
    """

    def parts(head):
        logits, flipped = predictions.of_head(head)
        symmetry = symmetry_loss(logits, flipped if config.symmetry else None, predictions.labels)
        return symmetry.item(), consistency_loss(logits, flipped, config.consistency).item()

    symmetry, consistency = parts("text")
    classifier_symmetry, classifier_consistency = parts("linear")
    classifier = classifier_symmetry + config.consistency_weight * classifier_consistency
    return {
        "loss": symmetry + config.consistency_weight * consistency + config.classifier_weight * classifier,
        "symmetry_loss": symmetry,
        "consistency_loss": consistency,
        "classifier_loss": classifier,
        **measure_heads(predictions, people),
    }


def measure_heads(predictions: Predictions, people: list[str] | None = None) -> dict[str, dict]:
    """`kl_grading_metrics` of each of `HEADS`; with `people` (N) also the intervals."""
    references = predictions.labels.tolist()
    return {
        head: kl_grading_metrics(references=references, people=people, **grading(predictions, head)) for head in HEADS
    }


def describe_results(results: dict) -> str:
    """A line for each head: the figures a reader looks for first, with their intervals where there are any."""
    shown = {
        "accuracy": "accuracy",
        "quadratic_weighted_kappa": "QWK",
        "mae": "MAE",
        "macro_f1": "macro-F1",
        "flip_agreement": "flip agreement",
    }

    def text(values, metric):
        bounds = values.get("intervals", {}).get(metric)
        return f"{values[metric]:.4f}" + (f" [{bounds[0]:.4f}, {bounds[1]:.4f}]" if bounds else "")

    lines = (
        f"{head:18}  " + "  ".join(f"{title} {text(results[head], metric)}" for metric, title in shown.items())
        for head in HEADS
    )
    return "\n".join(lines)


def grading(predictions: Predictions, head: str) -> dict[str, np.ndarray]:
    """What the metric takes of one head: grades (N,) and probabilities (N, K) of X-rays and mirror images.

    Raises:
        NotFiniteError: logits that are not finite.
    """
    logits, flipped = predictions.of_head(head)
    broken = ~(logits.isfinite() & flipped.isfinite()).all(-1)
    if broken.any():
        place = predictions.index[broken][0].item()
        raise NotFiniteError(
            f"The {head} head's logits of X-ray {place} are not finite: the weights are damaged, or training diverged "
            "(lower the learning rate)."
        )
    return {
        "predictions": logits.argmax(-1).numpy(),
        "flipped_predictions": flipped.argmax(-1).numpy(),
        "probabilities": logits.double().softmax(-1).numpy(),
        "flipped_probabilities": flipped.double().softmax(-1).numpy(),
    }
