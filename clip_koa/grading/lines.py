"""Grades as lines for a person to read."""

from itertools import chain

from clip_koa.files import as_text
from clip_koa.grading.attachments import Attachments
from clip_koa.grading.grader import GradedXray, Grader

_KNEES = {"R": "right knee", "L": "left knee"}


def print_grades(grader: Grader, files: list[str], level: float, attachments: Attachments) -> int:
    """Prints a line for each X-ray and one for its mirror image; returns how many were not graded."""
    width = max(len(name) for name in (*map(as_text, files), *_KNEES.values()))
    print(
        f"{'file':{width}}  {'grade':12}  {f'set {level:.0%}':8}  {'view':6}  "
        + "  ".join(f"{label:>12}" for label in grader.labels)
    )
    unread = 0
    for xray in chain.from_iterable(attachments.passing(grader.grade_each(files))):
        if xray.reason:
            unread += 1
            print(f"{as_text(xray.file):{width}}  not graded: {as_text(xray.reason)}")
        else:
            _print_views(xray, width)
            if xray.grade.combined:
                alone = xray.grade.single_probabilities
                name = grader.labels[alone.index(max(alone))]
                print(f"{'':{width}}  Read with the person's other knee; by itself it would be {name}.")
            for warning in xray.warnings:
                print(f"{'':{width}}  {warning}")
    return unread


def _print_views(xray: GradedXray, width: int) -> None:
    grade = xray.grade
    for view, probabilities in (("image", grade.image_probabilities), ("mirror", grade.mirror_probabilities)):
        first = (_KNEES.get(grade.side, ""), "", "")
        if view == "image":
            first = as_text(xray.file), grade.name, _range(grade.confidence_set)
        print(
            f"{first[0]:{width}}  {first[1]:12}  {first[2]:8}  {view:6}  "
            + "  ".join(f"{probability:12.3f}" for probability in probabilities)
        )


def _range(grades: tuple[int, ...]) -> str:
    """Neighbouring grades in words: `2`, `2 to 3`, nothing for none."""
    return " to ".join(dict.fromkeys((str(grades[0]), str(grades[-1])))) if grades else ""
