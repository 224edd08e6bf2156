"""The metric: by hand, against scikit-learn, on degenerate input, and loaded by `evaluate` offline."""

import doctest
import json
import re
import time

import evaluate
import numpy as np
import pandas
import pytest
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.distance import jensenshannon
from sklearn import metrics as sklearn_metrics

from metrics.kl_grading import kl_grading
from metrics.kl_grading.kl_grading import GradedSample, kl_grading_metrics, person_numbers
from metrics.kl_grading.paired import compare_kl_gradings

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
    f1 = sklearn_metrics.f1_score(references, predictions, labels=sorted(set(references + predictions)), average=None)
    assert [f for f in results["f1_per_grade"] if f is not None] == pytest.approx(list(f1))
    assert results["adjacent_accuracy"] == pytest.approx(sum(abs(p - r) <= 1 for p, r in grades) / len(grades))
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
        (([1, float("nan")], [1, 2]), r"predictions\[1\] is nan"),
        (([1, 2], [1, None]), r"references\[1\] is None"),
        (([1], [1], [None]), r"flipped_predictions\[0\] is None"),
        (([1, 2], pandas.Series([1, pandas.NA])), r"references\[1\] is <NA>"),
        (([True], [1]), r"predictions\[0\] is True"),
        (([[1], [2, 3]], [1, 2]), "flat list"),
        (([float("inf")], [1]), "predictions hold the grade inf"),
        (([None], [1]), "whole numbers"),
        ((["2"], [1]), "whole numbers"),
    ],
)
def test_wrong_input_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        kl_grading_metrics(*arguments)


SURE = [0.0, 1.0, 0.0, 0.0, 0.0]


@pytest.mark.parametrize(
    "settings, reason",
    [
        ({"probabilities": [[0.5, 0.4, 0, 0, 0]]}, r"probabilities\[0\] .* add up to 0.9"),
        ({"probabilities": [[1.5, -0.5, 0, 0, 0]]}, "non-negative"),
        ({"probabilities": [[float("nan"), 1, 0, 0, 0]]}, "add up to nan"),
        ({"probabilities": [[0.5, 0.5]]}, "5 numbers for each X-ray"),
        ({"probabilities": [["a", 0, 0, 0, 0]]}, "5 numbers for each X-ray"),
        ({"probabilities": [SURE, SURE]}, "2 probabilities for 1 references"),
        ({"flipped_probabilities": [SURE]}, "without probabilities"),
        ({"probabilities": [SURE], "flipped_probabilities": [[2.0, 0, 0, 0, 0]]}, "flipped_probabilities.* up to 2"),
        ({"people": ["a", "b"]}, "2 people for 1 references"),
        ({"people": "a"}, "people is a str"),
        ({"people": {"a"}}, "people is a set"),
        ({"people": ["a"], "resamples": 0}, "resamples=0"),
    ],
)
def test_wrong_probabilities_and_people_are_refused(settings, reason):
    with pytest.raises(ValueError, match=reason):
        kl_grading_metrics([1], [1], **settings)


def _grading(size, people, seed=0):
    """Random grades with probabilities of both views, as `kl_grading_metrics` takes them."""
    generator = np.random.default_rng(seed)
    true = generator.integers(0, 5, size)
    # Rounded, so that scores tie; the true grade is likelier than the others.
    logits = np.round(generator.normal(size=(2, size, 5)) + 1.5 * np.eye(5)[true], 1)
    probabilities = np.exp(logits) / np.exp(logits).sum(-1, keepdims=True)
    grades = probabilities.argmax(-1)
    return {
        "predictions": grades[0],
        "references": true,
        "flipped_predictions": grades[1],
        "probabilities": probabilities[0],
        "flipped_probabilities": probabilities[1],
        "people": generator.integers(0, people, size),
    }


@pytest.mark.parametrize("seed", range(5))
def test_probabilities_against_scikit_learn(seed):
    given_ = _grading(80, 30, seed)
    true, rows, flipped = given_["references"], given_["probabilities"], given_["flipped_probabilities"]
    results = kl_grading_metrics(**given_)
    score = rows[:, 2:].sum(1)
    assert results["auroc_osteoarthritis"] == pytest.approx(sklearn_metrics.roc_auc_score(true >= 2, score))
    assert results["log_loss"] == pytest.approx(sklearn_metrics.log_loss(true, rows, labels=range(5)))
    brier = sklearn_metrics.brier_score_loss(true, rows, labels=range(5), scale_by_half=False)
    assert results["brier_score"] == pytest.approx(brier)
    divergence = jensenshannon(rows, flipped, axis=1) ** 2  # scipy gives the distance, its root
    assert results["flip_divergence"] == pytest.approx(divergence.mean())
    error = 0.0
    for low in range(15):
        inside = (rows.max(1) > low / 15) & (rows.max(1) <= (low + 1) / 15)
        if inside.any():
            error += inside.mean() * abs((rows.argmax(1) == true)[inside].mean() - rows.max(1)[inside].mean())
    assert results["expected_calibration_error"] == pytest.approx(error)


def test_probabilities_by_hand():
    rows = [[0.8, 0.2, 0, 0, 0], [0.1, 0.9, 0, 0, 0], [0.3, 0.3, 0.4, 0, 0]]
    results = kl_grading_metrics([0, 1, 2], [0, 2, 2], probabilities=rows, flipped_probabilities=rows)
    assert results["auroc_osteoarthritis"] == 0.75  # of two pairs, one is ordered rightly and one a tie
    assert results["brier_score"] == pytest.approx((0.08 + (0.01 + 0.81 + 1) + (0.09 + 0.09 + 0.36)) / 3)
    assert results["expected_calibration_error"] == pytest.approx((0.2 + 0.9 + 0.6) / 3)
    assert results["flip_divergence"] == 0.0
    certain = kl_grading_metrics([1], [0], probabilities=[SURE])
    assert certain["log_loss"] == pytest.approx(-np.log(np.finfo(float).eps))  # finite, as in scikit-learn


def test_without_probabilities_nothing_is_made_up():
    results = kl_grading_metrics([0, 1], [0, 1])
    assert not {"auroc_osteoarthritis", "brier_score", "log_loss", "flip_divergence", "intervals"} & set(results)


def test_degenerate_input_is_exact_and_json():
    one = kl_grading_metrics([1], [1], [1], probabilities=[SURE], flipped_probabilities=[SURE], people=["a"])
    assert one["accuracy"] == one["quadratic_weighted_kappa"] == one["macro_f1"] == one["balanced_accuracy"] == 1.0
    assert one["auroc_osteoarthritis"] is None  # nobody has osteoarthritis
    assert one["recall_per_grade"] == one["f1_per_grade"] == [None, 1.0, None, None, None]
    assert one["intervals"]["accuracy"] is None and one["intervals"]["recall_per_grade"] == [None] * 5
    absent = kl_grading_metrics([0, 4, 0], [0, 0, 0], people=[1, 2, 3])
    assert absent["recall_per_grade"] == [pytest.approx(2 / 3), None, None, None, None]
    assert absent["f1_per_grade"] == [pytest.approx(0.8), None, None, None, 0.0]
    assert absent["intervals"]["recall_per_grade"][1:] == [None] * 4
    json.dumps([one, absent], allow_nan=False)


@given(st.integers(0, 10_000))
def test_a_weight_counts_as_so_many_copies(seed):
    """What the bootstrap computes by weights is what the metric gives for the X-rays drawn."""
    given_ = _grading(12, 5, seed)
    weights = np.random.default_rng(seed).multinomial(12, [1 / 12] * 12)
    sample = GradedSample(**given_)
    weighted = sample.figures(weights[None].astype(float))
    copies = {name: np.repeat(values, weights, axis=0) for name, values in given_.items() if name != "people"}
    expected = kl_grading_metrics(**copies)
    for name, values in weighted.items():
        plain = np.array(expected[name], dtype=float)  # None becomes NaN
        assert values[0] == pytest.approx(plain, nan_ok=True, abs=1e-12), name


def test_the_bootstrap_draws_people():
    """Two people, one always right and one never: their draws have accuracy 0, 1/2 and 1."""
    predictions, references = [1] * 50 + [0] * 50, [1] * 100
    people = ["right"] * 50 + ["wrong"] * 50
    assert kl_grading_metrics(predictions, references, people=people)["intervals"]["accuracy"] == [0.0, 1.0]
    alone = kl_grading_metrics(predictions, references, people=range(100))["intervals"]["accuracy"]
    # By image the interval is that of a proportion, 0.5 +- 1.96 * 0.05.
    assert alone == pytest.approx([0.402, 0.598], abs=0.02)


NOBODY = [None, float("nan"), np.float32("nan"), np.nan, pandas.NA, pandas.NaT, "", "  ", "\t\n", b"", "nan", "<NA>"]
IN_EVERY_FORM = {
    "list": list,
    "array of objects": lambda people: np.array(people, dtype=object),
    "pandas": lambda people: pandas.Series(people, index=range(100, 100 + len(people)), dtype=object),
    "array of text": lambda people: np.array([p.decode() if isinstance(p, bytes) else str(p) for p in people]),
}


@pytest.mark.parametrize("form", IN_EVERY_FORM)
@pytest.mark.parametrize("nobody", NOBODY, ids=repr)
def test_an_unknown_person_is_a_person_of_their_own(nobody, form):
    """Figures and intervals are those of names that all differ; no name, however odd, meets another."""
    predictions, references = [1, 0, 2, 2, 4, 1, 0, 3], [1, 1, 2, 3, 4, 1, 2, 3]
    people = IN_EVERY_FORM[form](["X-ray 1", nobody, "a", "a", nobody, nobody, "person a", nobody])
    results = kl_grading_metrics(predictions, references, people=people)
    assert results["num_people"] == 7
    named = ["X-ray 1", "", "a", "a", "", "", "person a", ""]
    assert results == kl_grading_metrics(predictions, references, people=named)
    side = {"predictions": predictions}
    compared = compare_kl_gradings(side, {"predictions": references}, references, people)
    assert compared["num_people"] == 7 and compared["intervals"]["accuracy"][0] < 0.625


@pytest.mark.parametrize("nobody", NOBODY, ids=repr)
def test_unknown_people_alone_give_the_interval_over_xrays(nobody):
    given_ = _grading(60, 60)
    unknown = kl_grading_metrics(**{**given_, "people": [nobody] * 60})
    assert unknown["num_people"] == 60
    # Drawn in the order of the keys, which is that of these names.
    assert unknown == kl_grading_metrics(**{**given_, "people": [f"{place}" for place in range(60)]})


def test_a_name_is_the_same_with_and_without_blanks():
    assert person_numbers(["a ", "a", " b", b"b", np.str_("b"), 7, "7"]).tolist() == [1, 1, 2, 2, 2, 0, 0]


def test_intervals_hold_the_truth_as_often_as_they_say():
    """Both knees of a person right or both wrong: intervals over people hold the truth, over images not."""
    generator = np.random.default_rng(0)
    people, held = np.repeat(np.arange(60), 2), {"people": 0, "images": 0}
    for draw in range(200):
        predictions = np.repeat(generator.random(60) < 0.6, 2).astype(int)
        for kind, names in (("people", people), ("images", np.arange(120))):
            results = kl_grading_metrics(predictions, np.ones(120, int), people=names, resamples=300, seed=draw)
            low, high = results["intervals"]["accuracy"]
            held[kind] += low <= 0.6 <= high
    assert held["people"] / 200 > 0.90 and held["images"] / 200 < 0.88, held


def test_intervals_are_repeatable_and_hold_the_figure():
    given_ = _grading(300, 150)
    first, second = kl_grading_metrics(**given_), kl_grading_metrics(**given_)
    assert first == second and first["num_people"] == len(set(given_["people"].tolist()))
    assert kl_grading_metrics(**given_, seed=1)["intervals"] != first["intervals"]
    for name in ("accuracy", "quadratic_weighted_kappa", "auroc_osteoarthritis", "log_loss", "flip_agreement"):
        low, high = first["intervals"][name]
        assert low < first[name] < high, name
    assert set(first["intervals"]) | {"num_samples", "num_people", "intervals", "confusion_matrix"} == set(first)


def test_the_order_of_the_xrays_changes_no_figure():
    given_ = _grading(60, 20)
    order = np.random.default_rng(3).permutation(60)
    shuffled = kl_grading_metrics(**{name: values[order] for name, values in given_.items()})
    for name, value in kl_grading_metrics(**given_).items():
        if name != "intervals":
            assert np.array(shuffled[name]) == pytest.approx(np.array(value)), name


def test_the_size_of_the_real_split_takes_seconds():
    started = time.process_time()
    kl_grading_metrics(**_grading(826, 413), resamples=1000)
    assert time.process_time() - started < 5


def _sides(first, second):
    references = first["references"]
    kept = ("predictions", "flipped_predictions", "probabilities", "flipped_probabilities")
    return [{name: side[name] for name in kept} for side in (first, second)] + [references, first["people"]]


def test_paired_comparison_by_hand():
    references = [0] * 10
    first = {"predictions": [0] * 3 + [1] * 7}
    second = {"predictions": [0] * 2 + [1] + [0] * 6 + [2]}
    results = compare_kl_gradings(first, second, references, list(range(10)))
    assert (results["both_right"], results["only_first_right"]) == (2, 1)
    assert (results["only_second_right"], results["both_wrong"]) == (6, 1)
    assert results["mcnemar_p"] == pytest.approx(2 * (1 + 7) / 2**7)  # binomial, 1 or fewer of 7, both sides
    assert results["difference"]["accuracy"] == pytest.approx(0.5)
    low, high = results["intervals"]["accuracy"]
    assert 0 < low < 0.5 < high <= 1
    assert "flip_agreement" not in results["difference"]
    json.dumps(results, allow_nan=False)


def test_a_grading_differs_from_itself_by_nothing():
    given_ = _grading(40, 15)
    results = compare_kl_gradings(*_sides(given_, given_))
    assert results["mcnemar_p"] == 1.0 and results["only_first_right"] == results["only_second_right"] == 0
    for name, difference in results["difference"].items():
        assert not np.nan_to_num(np.array(difference, dtype=float)).any(), name
        assert results["intervals"][name] in ([0.0, 0.0], [[0.0, 0.0]] * 5), name


def test_pairing_narrows_the_interval():
    """Two gradings that differ on few X-rays: the paired interval is far narrower than either's own."""
    first = _grading(300, 150)
    second = {**first, "predictions": first["predictions"].copy()}
    second["predictions"][:6] = first["references"][:6]
    low, high = compare_kl_gradings(*_sides(first, second))["intervals"]["accuracy"]
    own = kl_grading_metrics(**first)["intervals"]["accuracy"]
    assert high - low < (own[1] - own[0]) / 3


def test_loads_with_evaluate_offline():
    metric = evaluate.load(str(ROOT / "metrics" / "kl_grading"))
    metric.add_batch(predictions=[0, 1], references=[0, 2])
    metric.add_batch(predictions=[2, 4], references=[2, 4])
    settings = {"flipped_predictions": [0, 1, 2, 3], "probabilities": [SURE] * 4, "people": [1, 1, 2, 3]}
    results = metric.compute(**settings)
    assert results == kl_grading_metrics([0, 1, 2, 4], [0, 2, 2, 4], **settings)


@pytest.mark.parametrize("wrong", [2.7, None, float("nan"), "2"], ids=repr)
def test_evaluate_takes_no_grade_for_another(wrong):
    metric = evaluate.load(str(ROOT / "metrics" / "kl_grading"))
    for name, other in (("predictions", "references"), ("references", "predictions")):
        with pytest.raises(ValueError, match=rf"^{name} must be .* whole numbers; {name}\[1\] is {wrong!r}\.$"):
            metric.compute(**{name: [1, wrong], other: [2, 1]})


def test_evaluate_takes_columns_of_a_table():
    metric = evaluate.load(str(ROOT / "metrics" / "kl_grading"))
    table = pandas.DataFrame({"named": [0, 1, 2], "true": [0, 2, 2], "who": ["anna", None, None]}, index=[5, 6, 7])
    results = metric.compute(predictions=table["named"], references=table["true"], people=table["who"])
    assert results == kl_grading_metrics([0, 1, 2], [0, 2, 2], people=["anna", "", ""]) and results["num_people"] == 3


def test_example_in_the_description():
    example = doctest.DocTestParser().get_doctest(
        kl_grading._KWARGS_DESCRIPTION, {"kl_grading_metrics": kl_grading_metrics}, "kl_grading", None, 0
    )
    assert example.examples
    assert doctest.DocTestRunner().run(example).failed == 0


def test_the_card_names_every_figure_and_its_examples_run():
    card = (ROOT / "metrics/kl_grading/README.md").read_text()
    results = kl_grading_metrics(**_grading(20, 9))
    assert not [name for name in results if f"`{name}`" not in card]
    example = re.search(r"```python\n(.*?)```", card, flags=re.S)[1]
    exec(example.replace("./metrics", str(ROOT / "metrics")), {})
