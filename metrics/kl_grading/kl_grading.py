"""Metrics of Kellgren-Lawrence grading, as an `evaluate` module: `evaluate.load("./metrics/kl_grading")`."""

import datasets
import evaluate
import numpy as np
from sklearn.metrics import cohen_kappa_score, confusion_matrix, f1_score

_DESCRIPTION = "Metrics of knee X-ray grading on the Kellgren-Lawrence scale, 0 to 4."

_CITATION = """@article{kellgren1957,
  title={Radiological assessment of osteo-arthrosis},
  author={Kellgren, J. H. and Lawrence, J. S.},
  journal={Annals of the Rheumatic Diseases},
  volume={16}, pages={494--502}, year={1957}
}"""

_KWARGS_DESCRIPTION = """
Args:
    predictions (list of int): predicted grades, 0 to num_grades - 1.
    references (list of int): true grades.
    flipped_predictions (list of int, optional): grades predicted for the mirror images.
    num_grades (int): defaults to 5.
Returns:
    num_samples, accuracy, balanced_accuracy, macro_f1, quadratic_weighted_kappa, mae, recall_per_grade (None for a
    grade without references), confusion_matrix (rows: references), and flip_agreement with flipped_predictions.
Examples:
    >>> results = kl_grading_metrics(predictions=[0, 1, 2, 4], references=[0, 2, 2, 4])
    >>> results["accuracy"], results["mae"]
    (0.75, 0.25)
"""


def kl_grading_metrics(
    predictions: list[int],
    references: list[int],
    flipped_predictions: list[int] | None = None,
    num_grades: int = 5,
) -> dict:
    """Metrics of predicted against true grades.

    Balanced accuracy and macro-F1 are means over the grades that occur in the references (balanced accuracy) or in
    either list (macro-F1), as scikit-learn defines them. The quadratic weighted kappa (Cohen 1968) is 1 where
    predictions and references are one and the same grade throughout, for which its formula has no value.

    Args:
        predictions, references: grades, N each.
        flipped_predictions: grades of the mirror images, N.
        num_grades: grades are 0 to this less one.

    Returns:
        See the module's description.

    Raises:
        ValueError: empty or unequal lists, or a grade out of range.
    """
    predicted, true = _grades(predictions, "predictions", num_grades), _grades(references, "references", num_grades)
    if len(predicted) != len(true):
        raise ValueError(f"{len(predicted)} predictions for {len(true)} references: give one for each X-ray.")
    if len(true) == 0:
        raise ValueError("No predictions were given.")
    grades = list(range(num_grades))
    confusion = confusion_matrix(true, predicted, labels=grades)
    counts = confusion.sum(axis=1)
    recalls = [float(confusion[grade, grade] / counts[grade]) if counts[grade] else None for grade in grades]
    same_grade = len(np.union1d(true, predicted)) == 1
    kappa = 1.0 if same_grade else cohen_kappa_score(true, predicted, labels=grades, weights="quadratic")
    results = {
        "num_samples": len(true),
        "accuracy": float((predicted == true).mean()),
        "balanced_accuracy": float(np.mean([recall for recall in recalls if recall is not None])),
        "macro_f1": float(f1_score(true, predicted, average="macro")),
        "quadratic_weighted_kappa": float(kappa),
        "mae": float(np.abs(predicted - true).mean()),
        "recall_per_grade": recalls,
        "confusion_matrix": confusion.tolist(),
    }
    if flipped_predictions is not None:
        flipped = _grades(flipped_predictions, "flipped_predictions", num_grades)
        if len(flipped) != len(true):
            raise ValueError(f"{len(flipped)} flipped_predictions for {len(true)} references: give one each.")
        results["flip_agreement"] = float((flipped == predicted).mean())
    return results


def _grades(values, name: str, num_grades: int) -> np.ndarray:
    grades = np.asarray(values)
    # Letters "iuf" are the numeric kinds of numpy; NaN equals nothing, so it fails the comparison.
    if grades.ndim != 1 or grades.dtype.kind not in "iuf" or not (grades == np.floor(grades)).all():
        raise ValueError(f"{name} must be a flat list of whole numbers, 0 to {num_grades - 1}.")
    wrong = grades[(grades < 0) | (grades >= num_grades)]
    if wrong.size:
        raise ValueError(f"{name} hold the grade {wrong[0]:g}: grades are 0 to {num_grades - 1}.")
    return grades.astype(int)


@evaluate.utils.file_utils.add_start_docstrings(_DESCRIPTION, _KWARGS_DESCRIPTION)
class KLGrading(evaluate.Metric):
    """`evaluate` metric around `kl_grading_metrics`."""

    def _info(self):
        return evaluate.MetricInfo(
            description=_DESCRIPTION,
            citation=_CITATION,
            inputs_description=_KWARGS_DESCRIPTION,
            # Floats, since an integer column would round 2.7 down without a word; `_grades` refuses it.
            features=datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("float64"))),
        )

    def _compute(self, predictions, references, flipped_predictions=None, num_grades=5):
        return kl_grading_metrics(predictions, references, flipped_predictions, num_grades)
