"""The mean of runs that differ in their seed alone, each graded on the same X-rays, with intervals over people."""

import numpy as np

from clip_koa.evaluation.comparison import same_xrays
from clip_koa.evaluation.heads import HEADS, grading
from clip_koa.evaluation.predictions import read_predictions
from metrics.kl_grading.kl_grading import RESAMPLES, GradedSample, interval, plain


def average_files(paths: list, *, resamples: int = RESAMPLES) -> dict:
    """The mean over prediction files of every figure of each head, how far apart the files are, and its interval.

    A figure is that of each file alone, then averaged. The bootstrap draws the same people for all files, so the
    interval tells how the mean of these runs would vary with the people graded; the standard deviation tells how runs
    vary with their seed.

    Args:
        paths: two prediction files or more; their lines may be in different order.

    Returns:
        `num_files`, `num_samples`, `num_people`, and for each of `HEADS` by figure its `mean`, `standard_deviation`
        (n - 1) and 95 % `interval`; lists of them for the figures that are given by grade.

    Raises:
        PredictionsError: as `compare_files`.
    """
    files = [read_predictions(path) for path in paths]
    for other, path in zip(files[1:], paths[1:], strict=True):
        same_xrays(files[0], other, str(paths[0]), str(path))
    return {
        "num_files": len(files),
        "num_samples": len(files[0].files),
        "num_people": len(set(files[0].people)),
        **{head: _average([_sample(file, head) for file in files], resamples) for head in HEADS},
    }


def describe_average(average: dict) -> str:
    """The averages as a Markdown table, a row for each figure, a column for each head."""
    lines = [
        f"{average['num_files']} files, {average['num_samples']} X-rays of {average['num_people']} people; mean ± "
        "standard deviation over files (95 % interval over people)",
        "",
        f"| figure | {' | '.join(HEADS)} |",
        "|---|" + "---|" * len(HEADS),
    ]
    for name, figure in average[HEADS[0]].items():
        by_grade = isinstance(figure["mean"], list)
        for grade in range(len(figure["mean"])) if by_grade else (None,):
            cells = (_cell(average[head][name], grade) for head in HEADS)
            lines.append(f"| {name}{f' KL{grade}' if by_grade else ''} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _sample(file, head: str) -> GradedSample:
    return GradedSample(
        references=file.predictions.labels.tolist(), people=file.people, **grading(file.predictions, head)
    )


def _average(samples: list[GradedSample], resamples: int) -> dict[str, dict]:
    figures = [sample.unweighted_figures() for sample in samples]
    # The same seed draws the same people for every file, whatever the order of its lines.
    spreads = [sample.bootstrap(resamples, seed=0) for sample in samples]
    averages = {}
    for name in figures[0]:
        values = np.stack([one[name] for one in figures])
        mean = values.mean(axis=0)
        averages[name] = {
            "mean": plain(mean),
            "standard_deviation": plain(values.std(axis=0, ddof=1)),
            "interval": interval(np.mean([spread[name] for spread in spreads], axis=0), mean),
        }
    return averages


def _cell(figure: dict, grade: int | None) -> str:
    mean, deviation, bounds = (part if grade is None else part[grade] for part in figure.values())
    if mean is None:
        return "none"
    return f"{mean:.3f} ± {deviation:.3f}" + (f" ({bounds[0]:.3f} to {bounds[1]:.3f})" if bounds else "")
