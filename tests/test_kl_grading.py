"""The metric: by hand, against scikit-learn, on degenerate input, and loaded by `evaluate` offline."""

import doctest

import evaluate
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from sklearn import metrics as sklearn_metrics

from metrics.kl_grading import kl_grading
from metrics.kl_grading.kl_grading import kl_grading_metrics

pairs = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=40)


def test_by_hand():
    results = kl_grading_metrics([0, 1, 2, 4], [0, 2, 2, 4], flipped_predictions=[0, 1, 2, 3])
    assert results["num_samples"] == 4 and results["accuracy"] == 0.75 and results["mae"] == 0.25
    assert results["balanced_accuracy"] == pytest.approx((1 + 0.5 + 1) / 3)
    assert results["macro_f1"] == pytest.approx((1 + 0 + 2 / 3 + 1) / 4)
    assert results["recall_per_grade"] == [1.0, None, 0.5, None, 1.0]
    assert results["flip_agreement"] == 0.75
    # Observed disagreement 1; by chance, over all pairs of a prediction and a reference, 68 / 4.
    assert results["quadratic_weighted_kappa"] == pytest.approx(1 - 1 / (68 / 4))
    assert results["confusion_matrix"][2] == [0, 1, 1, 0, 0]


@given(pairs)
def test_against_scikit_learn(grades):
    predictions, references = map(list, zip(*grades, strict=True))
    results = kl_grading_metrics(predictions, references)
    assert results["accuracy"] == pytest.approx(sklearn_metrics.accuracy_score(references, predictions))
    assert results["mae"] == pytest.approx(sklearn_metrics.mean_absolute_error(references, predictions))
    macro_f1 = sklearn_metrics.f1_score(references, predictions, average="macro")
    assert results["macro_f1"] == pytest.approx(macro_f1)
    recalls = sklearn_metrics.recall_score(references, predictions, labels=sorted(set(references)), average=None)
    assert [r for r in results["recall_per_grade"] if r is not None] == pytest.approx(list(recalls))
    assert results["balanced_accuracy"] == pytest.approx(recalls.mean())
    if len(set(predictions + references)) > 1:
        # scikit-learn weighs by the place in the list of labels, so it must be told those that do not occur.
        kappa = sklearn_metrics.cohen_kappa_score(references, predictions, labels=range(5), weights="quadratic")
        assert results["quadratic_weighted_kappa"] == pytest.approx(kappa)
        observed = sum((p - r) ** 2 for p, r in grades) / len(grades)
        chance = sum((p - r) ** 2 for p in predictions for r in references) / len(grades) ** 2
        assert kappa == pytest.approx(1 - observed / chance)


def test_one_grade_throughout():
    assert kl_grading_metrics([2, 2], [2, 2])["quadratic_weighted_kappa"] == 1.0
    assert kl_grading_metrics([3], [3])["accuracy"] == 1.0
    assert kl_grading_metrics([1, 1], [2, 2])["quadratic_weighted_kappa"] == 0.0


@pytest.mark.parametrize(
    "arguments, reason",
    [
        (([], []), "No predictions"),
        (([1, 2], [1]), "2 predictions for 1 references"),
        (([1, 5], [1, 2]), "predictions hold the grade 5"),
        (([1, 2], [1, -1]), "references hold the grade -1"),
        (([1], [1], [1, 2]), "2 flipped_predictions"),
        (([1.5], [1]), "whole numbers"),
        (([float("nan")], [1]), "whole numbers"),
        (([float("inf")], [1]), "predictions hold the grade inf"),
        (([None], [1]), "whole numbers"),
        ((["2"], [1]), "whole numbers"),
    ],
)
def test_wrong_input_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        kl_grading_metrics(*arguments)


def test_loads_with_evaluate_offline():
    metric = evaluate.load(str(ROOT / "metrics" / "kl_grading"))
    metric.add_batch(predictions=[0, 1], references=[0, 2])
    metric.add_batch(predictions=[2, 4], references=[2, 4])
    results = metric.compute(flipped_predictions=[0, 1, 2, 3])
    assert results == kl_grading_metrics([0, 1, 2, 4], [0, 2, 2, 4], [0, 1, 2, 3])


def test_evaluate_does_not_round_silently():
    metric = evaluate.load(str(ROOT / "metrics" / "kl_grading"))
    with pytest.raises(ValueError, match="whole numbers"):
        metric.compute(predictions=[2.7, 1], references=[2, 1])


def test_example_in_the_description():
    example = doctest.DocTestParser().get_doctest(
        kl_grading._KWARGS_DESCRIPTION, {"kl_grading_metrics": kl_grading_metrics}, "kl_grading", None, 0
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0
