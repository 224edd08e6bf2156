"""Paired comparison of two gradings of the same X-rays."""

from scipy.stats import binomtest

from .kl_grading import RESAMPLES, GradedSample, interval, plain


def compare_kl_gradings(
    first: dict, second: dict, references: list[int], people: list, *, resamples: int = RESAMPLES, seed: int = 0
) -> dict:
    """Differences of all figures, second less first, with intervals over people, and McNemar's exact test.

    Each resample draws the same people for both gradings, so that what makes a person's X-rays easy or hard cancels
    out. McNemar's test (McNemar 1947, exact binomial form, two-sided) asks whether the X-rays that only one grading
    gets right fall to both alike. It takes X-rays for independent, which the two knees of a person are not quite:
    where it and the interval of the accuracy disagree, trust the interval, which is over people.

    Args:
        first, second: what `kl_grading_metrics` takes of one grading: `predictions`, and optionally
            `flipped_predictions`, `probabilities`, `flipped_probabilities`; figures that only one can give are left
            out.
        references: true grades, N.
        people: N names; X-rays of equal name are one person's, and each unknown one a person of its own.
        resamples, seed: of the bootstrap.

    Returns:
        `num_samples`, `num_people`; `first`, `second`, `difference` and its `intervals`, each by figure; `both_right`,
        `only_first_right`, `only_second_right`, `both_wrong` (X-rays), and `mcnemar_p`.

    Raises:
        ValueError: as `kl_grading_metrics`.
    """
    samples = [
        GradedSample(
            side["predictions"],
            references,
            side.get("flipped_predictions"),
            probabilities=side.get("probabilities"),
            flipped_probabilities=side.get("flipped_probabilities"),
            people=people,
        )
        for side in (first, second)
    ]
    figures = [sample.unweighted_figures() for sample in samples]
    # The same seed draws the same people for both.
    spreads = [sample.bootstrap(resamples, seed) for sample in samples]
    shared = [name for name in figures[0] if name in figures[1]]
    differences = {name: figures[1][name] - figures[0][name] for name in shared}
    right = [sample.predicted == sample.true for sample in samples]
    only_first, only_second = int((right[0] & ~right[1]).sum()), int((right[1] & ~right[0]).sum())
    discordant = only_first + only_second
    return {
        "num_samples": samples[0].size,
        "num_people": samples[0].num_people,
        "first": {name: plain(figures[0][name]) for name in shared},
        "second": {name: plain(figures[1][name]) for name in shared},
        "difference": {name: plain(value) for name, value in differences.items()},
        "intervals": {
            name: interval(spreads[1][name] - spreads[0][name], value) for name, value in differences.items()
        },
        "both_right": int((right[0] & right[1]).sum()),
        "only_first_right": only_first,
        "only_second_right": only_second,
        "both_wrong": int((~right[0] & ~right[1]).sum()),
        "mcnemar_p": float(binomtest(only_first, discordant).pvalue) if discordant else 1.0,
    }
