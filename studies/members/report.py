"""What members say alone and together: out of fold, where each X-ray counts only members that never saw it, and on
validation."""

from collections.abc import Iterable

import numpy as np

from metrics.kl_grading.kl_grading import kl_grading_metrics
from metrics.kl_grading.paired import compare_kl_gradings
from studies.members.member_files import Member
from studies.members.networks import StudyError
from studies.members.xrays import load_splits, read_keys

PARTS = {"train": "Out of fold, on train", "validation": "Validation"}
FIGURES = {
    "accuracy": "accuracy",
    "quadratic_weighted_kappa": "QWK",
    "mae": "MAE",
    "macro_f1": "macro-F1",
    "recall_per_grade": "KL1 recall",
    "log_loss": "log loss",
}
_SHOWN_GRADE = 1  # of the figures by grade


def group_members(members: list[Member]) -> dict[str, list[Member]]:
    """What the report has a row for: each member, each family of two members or more, and all of more families."""
    groups = {member.name: [member] for member in members}
    families = {}
    for member in members:
        families.setdefault(member.family, []).append(member)
    groups |= {f"mean of {family}": inside for family, inside in families.items() if len(inside) > 1}
    return groups | ({"mean of all": members} if len(families) > 1 else {})


def average_members(members: list[Member], split: str) -> dict[str, tuple[int, np.ndarray, int]]:
    """The mean of the members' probabilities, each member's over both views, for each X-ray that any has.

    Returns:
        By key of the X-ray: its grade, the probabilities (5,), and how many members they are the mean of.

    Raises:
        StudyError: members that give an X-ray different grades.
    """
    grades, rows = {}, {}
    for member in members:
        for key, grade, probabilities in member.rows_of(split):
            if grades.setdefault(key, grade) != grade:
                raise StudyError(f"{member.name} has X-ray {key} as grade {grade}, another member as {grades[key]}.")
            rows.setdefault(key, []).append(probabilities)
    return {key: (grades[key], np.mean(values, axis=0), len(values)) for key, values in sorted(rows.items())}


def find_people(data_dir: str, members: list[Member]) -> dict[str, str]:
    """Whose X-ray each key of the member files is, out of the corpus.

    Raises:
        CorpusError: as `load_splits`.
        StudyError: a corpus that lacks an X-ray of a member.
    """
    people = {}
    for split in load_splits(data_dir).values():
        people |= read_keys(split)
    for member in members:
        missing = sum(key not in people for key in member.keys)
        if missing:
            raise StudyError(
                f"{data_dir} lacks {missing} of the {len(member.keys)} X-rays of {member.name}: "
                "give the corpus, with the very pixels, that it was trained on."
            )
    return people


def describe_members(members: list[Member], people: dict[str, str] | None, against: str) -> str:
    """The report, as Markdown: a table for each part, and with `people` the differences to one member.

    Args:
        people: by key, whose X-ray it is; gives the figures their intervals.
        against: name of the member that all others are compared with, on the X-rays that both have.
    """
    groups = group_members(members)
    if against not in groups:
        raise StudyError(f"against={against!r} is none of {', '.join(groups)}.")
    lines = []
    for split, title in PARTS.items():
        averages = {name: average_members(inside, split) for name, inside in groups.items()}
        lines += [f"## {title}", "", _heading("members", "X-rays", "members for an X-ray")]
        lines += [_figures_row(name, average, people) for name, average in averages.items()]
        if people and len(groups) > 1:
            lines += ["", f"Less {against}, on the X-rays that both have:", "", _heading("members", "X-rays")]
            for name, average in averages.items():
                if name != against and (shared := sorted(set(average) & set(averages[against]))):
                    lines.append(_difference_row(name, average, averages[against], shared, people))
        lines.append("")
    return "\n".join(lines)


def _heading(*first: str) -> str:
    columns = [*first, *FIGURES.values()]
    return f"| {' | '.join(columns)} |\n|{'---|' * len(columns)}"


def _figures_row(name: str, average: dict, people: dict[str, str] | None) -> str:
    grades, probabilities = _columns(average, average)
    results = kl_grading_metrics(
        **_grading(probabilities), references=grades, people=[people[key] for key in average] if people else None
    )
    counts = sorted({count for _, _, count in average.values()})
    span = str(counts[0]) if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    cells = [_cell(results, results.get("intervals"), figure, "") for figure in FIGURES]
    return f"| {' | '.join([name, str(len(average)), span, *cells])} |"


def _difference_row(name: str, average: dict, base: dict, shared: list[str], people: dict[str, str]) -> str:
    grades, probabilities = _columns(average, shared)
    _, base_probabilities = _columns(base, shared)
    results = compare_kl_gradings(
        _grading(base_probabilities), _grading(probabilities), grades, [people[key] for key in shared]
    )
    cells = [_cell(results["difference"], results["intervals"], figure, "+") for figure in FIGURES]
    return f"| {' | '.join([name, str(len(shared)), *cells])} |"


def _columns(average: dict, keys: Iterable[str]) -> tuple[list[int], np.ndarray]:
    return [average[key][0] for key in keys], np.stack([average[key][1] for key in keys])


def _grading(probabilities: np.ndarray) -> dict:
    return {"predictions": probabilities.argmax(1).tolist(), "probabilities": probabilities.tolist()}


def _cell(values: dict, intervals: dict | None, figure: str, sign: str) -> str:
    value, bounds = values[figure], (intervals or {}).get(figure)
    if isinstance(value, list):
        value, bounds = value[_SHOWN_GRADE], bounds and bounds[_SHOWN_GRADE]
    if value is None:
        return "none"
    return f"{value:{sign}.3f}" + (f" ({bounds[0]:{sign}.3f} to {bounds[1]:{sign}.3f})" if bounds else "")
