"""The Kellgren-Lawrence grades as data: their names, what they mean, and the prompts that describe them.

The wording is that of Schiphof et al., Ann Rheum Dis 2008;67:1034 (table 1), with the variants of grades 1 and 2 that
other published versions of the scale use. Radiographic osteoarthritis usually means grade >= 2.
"""

GRADE_NAMES = ("none", "doubtful", "mild", "moderate", "severe")

GRADE_LABELS = tuple(f"KL{grade} {name}" for grade, name in enumerate(GRADE_NAMES))

GRADE_MEANINGS = (
    "no features of osteoarthritis",
    "doubtful joint-space narrowing, possible osteophytic lipping",
    "definite osteophytes, possible joint-space narrowing",
    "multiple osteophytes, definite joint-space narrowing, some sclerosis, possible deformity of bone ends",
    "large osteophytes, marked joint-space narrowing, severe sclerosis, definite deformity of bone ends",
)

# Other published wordings of the same grades, one tuple a grade.
_VARIANTS = (
    ("normal joint space, no osteophytes", "healthy joint without narrowing or osteophytes"),
    ("possible osteophytes only", "minute osteophyte of doubtful significance, normal joint space"),
    ("definite osteophytes with unimpaired joint space", "small definite osteophytes, possible narrowing"),
    ("moderate osteophytes, definite narrowing of the joint space", "moderate narrowing and some sclerosis"),
    ("joint space greatly impaired, sclerosis of subchondral bone", "bone on bone, large osteophytes and deformity"),
)


def _prompt(grade: int, meaning: str) -> str:
    return f"knee x-ray, {GRADE_NAMES[grade]} osteoarthritis: {meaning}"


# The paper's figure shows the first of these; its wording of the other grades is not known, and is that of the scale.
_CASES = ("Normal", "Doubtful", "Mild", "Moderate", "Severe")

# Named sets of prompts; each is, for every grade, the list of its descriptions.
# "standard" has one prompt a grade, so that stock zero-shot classification with these five equals our text head;
# "ensemble" averages the published variants; "case" is the sentence of the paper's figure (Jeong & Lee 2025).
PROMPT_SETS = {
    "standard": [[_prompt(grade, meaning)] for grade, meaning in enumerate(GRADE_MEANINGS)],
    "ensemble": [
        [_prompt(grade, text) for text in (meaning, *_VARIANTS[grade])] for grade, meaning in enumerate(GRADE_MEANINGS)
    ],
    "case": [[f"This is a {case} case of knee osteoarthritis."] for case in _CASES],
}
