"""How much a perturbation of the X-rays costs: the change of each metric, and of each X-ray's grade."""

import tempfile
from collections.abc import Callable, Iterable

from datasets import Dataset
from tqdm.auto import tqdm

from clip_koa.evaluation.heads import HEADS, Predictions, grading
from clip_koa.evaluation.perturbation import PERTURBATIONS, perturb_split
from metrics.kl_grading.kl_grading import kl_grading_metrics
from metrics.kl_grading.paired import compare_kl_gradings


def predict_perturbed(
    split: Dataset, names: Iterable[str], predict_split: Callable[[Dataset, str], Predictions]
) -> dict[str, Predictions]:
    """Predictions of the split under each perturbation.

    Args:
        split: of the `KneeXray` builder.
        names: of `PERTURBATIONS`.
        predict_split: (split, what to call it) -> its predictions.
    """
    predictions = {}
    for name in names:
        with tempfile.TemporaryDirectory(prefix="clip-koa-perturbed-") as folder:
            predictions[name] = predict_split(perturb_split(split, name, folder), name)
    return predictions


def measure_robustness(plain: Predictions, perturbed: dict[str, Predictions], people: list[str]) -> dict[str, dict]:
    """What each perturbation does to each head, on the same X-rays.

    Args:
        plain: predictions of the X-rays as they are, N.
        perturbed: for each perturbation, those of the perturbed X-rays.
        people: whose each X-ray is, N.

    Returns:
        For each perturbation its `title`, and for each head `metrics` (under the perturbation), `change` (perturbed
        less plain) with its `intervals` over people, `grade_changed` (share of X-rays whose grade is another) with
        `grade_changed_interval`, `mean_change` (grades, signed) and `mean_absolute_change`.
    """
    references = plain.labels.tolist()
    results = {}
    for name, predictions in tqdm(perturbed.items(), desc="robustness", unit="perturbation", leave=False):
        results[name] = {"title": PERTURBATIONS[name].title}
        for head in HEADS:
            before, after = grading(plain, head), grading(predictions, head)
            comparison = compare_kl_gradings(before, after, references, people)
            # The grade before takes the place of the truth: agreement with it is what does not change.
            moved = kl_grading_metrics(after["predictions"], before["predictions"], people=people)
            kept = moved["intervals"]["accuracy"]
            results[name][head] = {
                "metrics": comparison["second"],
                "change": comparison["difference"],
                "intervals": comparison["intervals"],
                "grade_changed": 1 - moved["accuracy"],
                "grade_changed_interval": None if kept is None else [1 - kept[1], 1 - kept[0]],
                "mean_change": float((after["predictions"] - before["predictions"]).mean()),
                "mean_absolute_change": moved["mae"],
            }
    return results
