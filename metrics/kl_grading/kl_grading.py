"""Metrics of Kellgren-Lawrence grading, as an `evaluate` module: `evaluate.load("./metrics/kl_grading")`."""

import datasets
import evaluate
import numpy as np

NUM_GRADES = 5
OSTEOARTHRITIS_GRADE = 2  # radiographic osteoarthritis: this grade or a higher one
CALIBRATION_BINS = 15
CONFIDENCE = 0.95
RESAMPLES = 1000
_SUM_TOLERANCE = 1e-3  # how far probabilities may be from adding up to 1
_CHUNK = 4_000_000  # weights held at once, X-rays times resamples
_UNKNOWN = ("", "None", "nan", "NaN", "NaT", "<NA>")  # names of nobody

_DESCRIPTION = "Metrics of knee X-ray grading on the Kellgren-Lawrence scale, 0 to 4, with intervals over people."

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
    probabilities (list of list of float, optional): of each grade, for each X-ray; each row adds up to 1.
    flipped_probabilities (list of list of float, optional): those of the mirror images.
    people (list of str or int, optional): whose X-ray it is; asks for the intervals. None, NaN and empty names are
        unknown people, each of them a person of their own.
    resamples (int): of the bootstrap, defaults to 1000.
    seed (int): of the bootstrap, defaults to 0.
Returns:
    num_samples, accuracy, balanced_accuracy, macro_f1, quadratic_weighted_kappa, mae, adjacent_accuracy,
    recall_per_grade and f1_per_grade (None where a grade has none), confusion_matrix (rows: references);
    with flipped_predictions flip_agreement; with probabilities auroc_osteoarthritis, expected_calibration_error,
    brier_score and log_loss; with flipped_probabilities too flip_divergence; with people num_people and intervals,
    for each of these figures its 95 % interval [low, high].
Examples:
    >>> results = kl_grading_metrics(predictions=[0, 1, 2, 4], references=[0, 2, 2, 4])
    >>> results["accuracy"], results["mae"], results["adjacent_accuracy"]
    (0.75, 0.25, 1.0)
    >>> results = kl_grading_metrics([0, 1, 2, 4], [0, 2, 2, 4], people=["anna", "anna", "bea", "carl"])
    >>> results["num_people"], results["intervals"]["accuracy"]
    (3, [0.5, 1.0])
"""


def kl_grading_metrics(
    predictions: list[int],
    references: list[int],
    flipped_predictions: list[int] | None = None,
    num_grades: int = NUM_GRADES,
    *,
    probabilities: list[list[float]] | None = None,
    flipped_probabilities: list[list[float]] | None = None,
    people: list | None = None,
    resamples: int = RESAMPLES,
    seed: int = 0,
) -> dict:
    """Metrics of predicted against true grades, with intervals where `people` tells whose X-rays they are.

    Balanced accuracy and macro-F1 are means over the grades that occur in the references (balanced accuracy) or in
    either list (macro-F1), as scikit-learn defines them. The quadratic weighted kappa (Cohen 1968) is 1 where
    predictions and references are one and the same grade throughout, for which its formula has no value. Adjacent
    accuracy is the share of grades off by at most one. AUROC is of the probability of grade 2 and above. The expected
    calibration error (Guo et al. 2017) has 15 bins of equal width. The Brier score is the squared error summed over
    the grades, 0 to 2; log loss and flip divergence (Jensen-Shannon, at most ln 2) are in nats.

    An interval holds the middle 95 % of the figure's values over `resamples` draws of as many people as there are,
    with replacement, each with all of their X-rays (cluster bootstrap, Davison & Hinkley 1997, 3.8): the two knees of
    a person are alike. Draws in which a figure has no value (a grade without X-rays) are left out of its interval.

    Args:
        predictions, references: grades, N each.
        flipped_predictions: grades of the mirror images, N.
        num_grades: K; grades are 0 to this less one.
        probabilities, flipped_probabilities: of the X-rays and of their mirror images, (N, K).
        people: N names, as `person_numbers` takes them; X-rays of equal name are one person's.
        resamples, seed: of the bootstrap.

    Returns:
        See the module's description. A figure that the data does not determine is None, and so is its interval; every
        interval is None where there is only one person.

    Raises:
        ValueError: empty or unequal lists, a grade out of range, probabilities that are none or do not add up to 1,
            flipped probabilities without probabilities, or fewer than one resample.
    """
    sample = GradedSample(
        predictions, references, flipped_predictions, num_grades, probabilities, flipped_probabilities, people
    )
    figures = sample.unweighted_figures()
    results = {"num_samples": sample.size, **{name: plain(value) for name, value in figures.items()}}
    results["confusion_matrix"] = sample.confusion(np.ones((1, sample.size)))[0].astype(int).tolist()
    if people is not None:
        results["num_people"] = sample.num_people
        spread = sample.bootstrap(resamples, seed)
        results["intervals"] = {name: interval(spread[name], value) for name, value in figures.items()}
    return results


def known_person(person) -> str | None:
    """A person's name as text, without the blanks around it; None for whoever is not known.

    Unknown is what stands for nothing in Python, numpy, pandas or a file: None, NaN, NaT, pandas' NA, empty or blank
    text. So is what `str` makes of them, as numpy does in a list of texts that holds a NaN.
    """
    if isinstance(person, bytes):
        person = person.decode("utf-8", "backslashreplace")
    # Only text is compared with text: pandas' NA answers no comparison.
    text = str(person).strip()
    return None if text in _UNKNOWN else text


def person_numbers(people) -> np.ndarray:
    """Numbers of N people, (N,), from 0 on and each in use; X-rays of equal name have the same.

    Args:
        people: N names, as text or numbers, in a list, array or column. Each X-ray whose name is unknown, as
            `known_person` tells, is a person of its own: nothing says that two of them are one person's.

    Raises:
        ValueError: one text, or a set or dictionary, in place of a list of names.
    """
    if isinstance(people, str | bytes | set | frozenset | dict):
        raise ValueError(f"people is a {type(people).__name__}: give a list with a name for each X-ray.")
    names = [known_person(person) for person in people]
    keys = [f"X-ray {place}" if name is None else f"person {name}" for place, name in enumerate(names)]
    return np.unique(np.asarray(keys), return_inverse=True)[1]


def interval(spread: np.ndarray, figure: np.ndarray) -> list | None:
    """The middle 95 % of a figure's values over the resamples.

    Args:
        spread: (R,) or (R, K), NaN where a resample leaves the figure open.
        figure: the figure itself, scalar or (K,).

    Returns:
        [low, high], for (R, K) a list of K of them; None in place of what is undefined in the data or everywhere.
    """
    if spread.ndim == 2:
        return [interval(column, value) for column, value in zip(spread.T, figure, strict=True)]
    defined = spread[~np.isnan(spread)]
    if np.isnan(figure) or not defined.size:
        return None
    tail = (1 - CONFIDENCE) / 2
    return np.quantile(defined, [tail, 1 - tail]).tolist()


class GradedSample:
    """Checked predictions, and every figure as a function of the X-rays' weights, for many weightings at once.

    Args and errors: those of `kl_grading_metrics`.
    """

    def __init__(
        self,
        predictions,
        references,
        flipped_predictions=None,
        num_grades=NUM_GRADES,
        probabilities=None,
        flipped_probabilities=None,
        people=None,
    ):
        self.num_grades = num_grades
        self.predicted = _grades(predictions, "predictions", num_grades)
        self.true = _grades(references, "references", num_grades)
        self.size = len(self.true)
        if len(self.predicted) != self.size:
            raise ValueError(f"{len(self.predicted)} predictions for {self.size} references: give one for each X-ray.")
        if not self.size:
            raise ValueError("No predictions were given.")
        self.probabilities = None
        self.means = {"mae": np.abs(self.predicted - self.true).astype(float)}
        self.means["adjacent_accuracy"] = (self.means["mae"] <= 1).astype(float)
        if flipped_predictions is not None:
            flipped = _grades(flipped_predictions, "flipped_predictions", num_grades)
            self._check_length(flipped, "flipped_predictions")
            self.means["flip_agreement"] = (flipped == self.predicted).astype(float)
        if probabilities is not None:
            self._add_probabilities(self._distributions(probabilities, "probabilities"))
        if flipped_probabilities is not None:
            if self.probabilities is None:
                raise ValueError("flipped_probabilities were given without probabilities: give both.")
            flipped = self._distributions(flipped_probabilities, "flipped_probabilities")
            self.means["flip_divergence"] = _jensen_shannon(self.probabilities, flipped)
        if people is not None:
            self._check_length(people, "people")
            self.person = person_numbers(people)
            self.num_people = int(self.person.max()) + 1

    def _check_length(self, values, name: str) -> None:
        if len(values) != self.size:
            raise ValueError(f"{len(values)} {name} for {self.size} references: give one each.")

    def _distributions(self, values, name: str) -> np.ndarray:
        self._check_length(values, name)
        try:
            rows = np.asarray(values, dtype=np.float64)
        except (TypeError, ValueError):
            rows = np.empty(0)
        if rows.shape != (self.size, self.num_grades):
            raise ValueError(f"{name} must hold {self.num_grades} numbers for each X-ray.")
        sums = rows.sum(axis=1)
        # Written so that NaN is refused too.
        wrong = ~((rows >= 0).all(axis=1) & (np.abs(sums - 1) <= _SUM_TOLERANCE))
        if wrong.any():
            place = int(wrong.argmax())
            raise ValueError(
                f"{name}[{place}] = {rows[place].tolist()} add up to {sums[place]:g}: "
                "each row must be non-negative and add up to 1."
            )
        return rows

    def _add_probabilities(self, rows: np.ndarray) -> None:
        self.probabilities = rows
        truth = np.eye(self.num_grades)[self.true]
        self.means["brier_score"] = np.square(rows - truth).sum(axis=1)
        # Clipped as scikit-learn does, so that one impossible grade does not make the mean infinite.
        tiny = np.finfo(rows.dtype).eps
        self.means["log_loss"] = -np.log(np.clip(rows[np.arange(self.size), self.true], tiny, 1 - tiny))

        confidence = rows.max(axis=1)
        bins = np.clip(np.ceil(confidence * CALIBRATION_BINS).astype(int) - 1, 0, CALIBRATION_BINS - 1)
        gap = (rows.argmax(axis=1) == self.true) - confidence
        self.bin_gaps = np.eye(CALIBRATION_BINS)[bins] * gap[:, None]  # (N, bins)

        # Sorted by score, X-rays of equal score next to each other.
        score = rows[:, OSTEOARTHRITIS_GRADE:].sum(axis=1)
        self.by_score = score.argsort(kind="stable")
        self.ties = np.flatnonzero(np.diff(score[self.by_score], prepend=-1.0))
        self.diseased = (self.true >= OSTEOARTHRITIS_GRADE)[self.by_score]

    def bootstrap(self, resamples: int, seed: int) -> dict[str, np.ndarray]:
        """Each figure's values over the resamples, (R,) or (R, K); all NaN where there is only one person."""
        if resamples < 1:
            raise ValueError(f"resamples={resamples}: the bootstrap needs at least 1.")
        generator = np.random.default_rng(seed)
        parts = []
        step = max(1, _CHUNK // self.size)
        for start in range(0, resamples, step):
            rows = min(step, resamples - start)
            drawn = generator.multinomial(self.num_people, [1 / self.num_people] * self.num_people, size=rows)
            parts.append(self.figures(drawn[:, self.person].astype(float)))
        spread = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
        if self.num_people == 1:  # one person tells nothing of how people differ
            spread = {name: np.full_like(values, np.nan) for name, values in spread.items()}
        return spread

    def confusion(self, weights: np.ndarray) -> np.ndarray:
        """Weighted confusion matrices (R, K, K), rows the true grades, for weights (R, N)."""
        cells = np.eye(self.num_grades**2)[self.true * self.num_grades + self.predicted]  # (N, K * K)
        return (weights @ cells).reshape(-1, self.num_grades, self.num_grades)

    def figures(self, weights: np.ndarray) -> dict[str, np.ndarray]:
        """Every figure for each weighting of the X-rays (R, N): (R,), per grade (R, K); NaN where it has no value."""
        total = weights.sum(axis=1)
        figures = _confusion_figures(self.confusion(weights))
        means = {name: weights @ values / total for name, values in self.means.items()}
        figures["mae"], figures["adjacent_accuracy"] = means.pop("mae"), means.pop("adjacent_accuracy")
        for name in ("recall_per_grade", "f1_per_grade"):  # in the end, as a reader looks at them
            figures[name] = figures.pop(name)
        if self.probabilities is not None:
            figures["auroc_osteoarthritis"] = self._auroc(weights)
            figures["expected_calibration_error"] = np.abs(weights @ self.bin_gaps).sum(axis=1) / total
        return {**figures, **means}

    def unweighted_figures(self) -> dict[str, np.ndarray]:
        """Every figure of the X-rays as they are: a number, or (K,) per grade; NaN where it has no value."""
        return {name: values[0] for name, values in self.figures(np.ones((1, self.size))).items()}

    def _auroc(self, weights: np.ndarray) -> np.ndarray:
        """Weighted share of pairs (grade >= 2, below it) that the score orders rightly; a tie counts half (R,)."""
        ordered = weights[:, self.by_score]
        positive = np.add.reduceat(ordered * self.diseased, self.ties, axis=1)
        negative = np.add.reduceat(ordered * ~self.diseased, self.ties, axis=1)
        below = negative.cumsum(axis=1) - negative / 2
        return _divide((positive * below).sum(axis=1), positive.sum(axis=1) * negative.sum(axis=1))


def _confusion_figures(confusion: np.ndarray) -> dict[str, np.ndarray]:
    """The figures that follow from confusion matrices (R, K, K) alone."""
    count = confusion.sum(axis=(1, 2))
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)  # (R, K)
    right = np.diagonal(confusion, axis1=1, axis2=2)
    recall, f1 = _divide(right, true), _divide(2 * right, true + predicted)
    grades = np.arange(confusion.shape[-1])
    distance = np.square(grades[:, None] - grades)
    observed = (confusion * distance).sum(axis=(1, 2))
    chance = np.einsum("rt,tp,rp->r", true, distance, predicted) / count
    return {
        "accuracy": right.sum(axis=1) / count,
        "balanced_accuracy": _mean_of_defined(recall),
        "macro_f1": _mean_of_defined(f1),
        # Without any disagreement by chance, all grades are one and the same.
        "quadratic_weighted_kappa": np.where(chance > 0, 1 - _divide(observed, chance), 1.0),
        "recall_per_grade": recall,
        "f1_per_grade": f1,
    }


def _divide(numerator: np.ndarray, denominator: np.ndarray) -> np.ndarray:
    """The quotient, NaN where the denominator is 0."""
    return np.divide(numerator, denominator, out=np.full(numerator.shape, np.nan), where=denominator > 0)


def _mean_of_defined(values: np.ndarray) -> np.ndarray:
    """Means over the last axis of what is not NaN; every row has such a value."""
    return np.nansum(values, axis=-1) / (~np.isnan(values)).sum(axis=-1)


def _jensen_shannon(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Jensen-Shannon divergence of each row, in nats, (N,)."""
    middle = (first + second) / 2

    def to_middle(rows):
        ratio = np.divide(rows, middle, out=np.ones_like(rows), where=rows > 0)
        return (rows * np.log(ratio)).sum(axis=1)

    # Rounding may bring equal rows a hair below 0.
    return np.maximum((to_middle(first) + to_middle(second)) / 2, 0.0)


def plain(value: np.ndarray):
    """A figure as JSON holds it: a Python number, or a list of them, with None for NaN."""
    if np.ndim(value):
        return [plain(part) for part in value]
    return None if np.isnan(value) else float(value)


def _whole_numbers(values, name: str) -> np.ndarray:
    """A flat list of whole numbers as an array (N,); else a ValueError that names the first other value."""
    wanted = f"{name} must be a flat list of whole numbers"
    try:
        grades = np.asarray(values)
    except ValueError:  # lists of unequal length
        grades = np.empty((0, 0))
    if grades.ndim != 1:
        raise ValueError(f"{wanted}, one for each X-ray.")
    # Letters "iuf" are the numeric kinds of numpy; NaN equals nothing, so it fails the comparison.
    if grades.dtype.kind in "iuf" and (grades == np.floor(grades)).all():
        return grades
    for place, value in enumerate(values):
        whole = np.asarray(value)
        if whole.ndim or whole.dtype.kind not in "iuf" or not whole == np.floor(whole):
            raise ValueError(f"{wanted}; {name}[{place}] is {value!r:.60}.")
    return grades.astype(float)  # numbers in an array of objects


def _grades(values, name: str, num_grades: int) -> np.ndarray:
    grades = _whole_numbers(values, name)
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

    def add_batch(self, *, predictions=None, references=None, **settings):
        """Takes grades as lists, arrays or columns of a table.

        Raises:
            ValueError: grades that are missing, text or not whole, which `evaluate` would turn into others or fail at.
        """
        grades = {"predictions": predictions, "references": references}
        listed = {name: _whole_numbers(v, name).tolist() for name, v in grades.items() if v is not None}
        super().add_batch(**{**grades, **listed}, **settings)

    def _compute(self, predictions, references, **settings):
        return kl_grading_metrics(predictions, references, **settings)
