"""Comparing two prediction files of the same X-rays: differences by person, and who is right alone."""

from pathlib import Path

from clip_koa.evaluation.heads import grading
from clip_koa.evaluation.predictions import GradedSplit, PredictionsError, read_predictions
from metrics.kl_grading.paired import compare_kl_gradings


def compare_files(first: str | Path, second: str | Path, head: str, second_head: str | None = None) -> dict:
    """Paired comparison of two prediction files, second less first.

    Args:
        first, second: prediction files; their lines may be in different order.
        head: of `HEADS`, which grades the first file's X-rays, and the second's where `second_head` is not given.

    Returns:
        The dictionary of `compare_kl_gradings`.

    Raises:
        PredictionsError: a file that can't be read, or files that do not hold the same X-rays with the same grades and
            people; the message names the first difference.
    """
    one, other = read_predictions(first), read_predictions(second)
    places = same_xrays(one, other, str(first), str(second))
    theirs = {name: values[places] for name, values in grading(other.predictions, second_head or head).items()}
    return compare_kl_gradings(grading(one.predictions, head), theirs, one.predictions.labels.tolist(), one.people)


def describe_comparison(comparison: dict) -> str:
    """The comparison as lines to print: figures that are one number, their difference, and who is right alone."""
    lines = [f"{comparison['num_samples']} X-rays of {comparison['num_people']} people; intervals are over people"]
    lines.append(f"{'figure':28}  {'first':>8}  {'second':>8}  {'difference':>10}  95 % interval")
    for name, difference in comparison["difference"].items():
        if isinstance(difference, list) or difference is None:
            continue
        bounds = comparison["intervals"][name]
        spread = f"{bounds[0]:+.4f} to {bounds[1]:+.4f}" if bounds else "none"
        first, second = comparison["first"][name], comparison["second"][name]
        lines.append(f"{name:28}  {first:8.4f}  {second:8.4f}  {difference:+10.4f}  {spread}")
    lines.append(
        f"right: both {comparison['both_right']}, only the first {comparison['only_first_right']}, only the second "
        f"{comparison['only_second_right']}, neither {comparison['both_wrong']}; "
        f"McNemar's exact test p = {comparison['mcnemar_p']:.3g}"
    )
    return "\n".join(lines)


def same_xrays(one: GradedSplit, other: GradedSplit, first: str, second: str) -> list[int]:
    """Where the second file holds each X-ray of the first.

    Raises:
        PredictionsError: as `compare_files`.
    """
    for graded, path in ((one, first), (other, second)):
        if len(set(graded.files)) < len(graded.files):
            twice = next(file for file in graded.files if graded.files.count(file) > 1)
            raise PredictionsError(f"{path} holds {twice} more than once: it must hold each X-ray once.")
    place = {file: index for index, file in enumerate(other.files)}
    for file in one.files:
        if file not in place:
            raise PredictionsError(f"{second} lacks {file} of {first}: compare predictions of the same X-rays.")
    if len(other.files) > len(one.files):
        extra = next(file for file in other.files if file not in set(one.files))
        raise PredictionsError(f"{first} lacks {extra} of {second}: compare predictions of the same X-rays.")
    places = [place[file] for file in one.files]
    for index, (file, at) in enumerate(zip(one.files, places, strict=True)):
        labels = one.predictions.labels[index].item(), other.predictions.labels[at].item()
        if labels[0] != labels[1] or one.people[index] != other.people[at]:
            raise PredictionsError(
                f"{file} is grade {labels[0]} of person {one.people[index]} in {first}, but grade {labels[1]} of "
                f"person {other.people[at]} in {second}: compare predictions on the same data."
            )
    return places
