"""What a student is taught: each training X-ray's grade, mixed with what members say that never saw it."""

from pathlib import Path

import numpy as np

from clip_koa.data.soft_labels import soft_label_table
from clip_koa.files import write_file
from metrics.kl_grading.kl_grading import NUM_GRADES
from studies.members.member_files import Member, parquet_bytes
from studies.members.report import average_members


def teach(members: list[Member], share: float, balance: float = 0.0) -> tuple[list[str], np.ndarray]:
    """The soft labels of all training X-rays that a member left out.

    Args:
        share: of the members' mean in the label; the rest is the grade's own.
        balance: the `data.class_balance` of the student. Members meet grades as often as they are. What they say is
            changed to what they would say had they met them as the student does (Saerens et al. 2002): a grade's
            probability is divided by its share of the X-rays to the power of `balance`, and all are scaled to 1.

    Returns:
        The keys of the N X-rays, and their shares of the grades, (N, 5); rows add up to 1.
    """
    averages = average_members(members, "train")
    grades = np.array([grade for grade, _, _ in averages.values()])
    means = np.stack([probabilities for _, probabilities, _ in averages.values()])
    means *= (np.bincount(grades, minlength=NUM_GRADES).clip(1) / len(grades)) ** -balance
    means /= means.sum(1, keepdims=True)
    return list(averages), (1 - share) * np.eye(NUM_GRADES)[grades] + share * means


def write_teacher(path: Path, members: list[Member], share: float, balance: float = 0.0) -> int:
    """Writes the file that a training reads as `data.soft_labels`; returns the number of its X-rays."""
    keys, shares = teach(members, share, balance)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_file(path, parquet_bytes(soft_label_table(keys, shares)))
    return len(keys)
