"""The splitter: nobody crosses, grades keep their shares, and the builder reads what it writes."""

import random
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dataset_script.knee_xray import load_knee_xray
from dataset_script.layouts import find_files
from dataset_script.splitter import main, split_by_person
from dataset_script.synthetic import write_corpus

# People with one to four X-rays each, of any grades.
_people = st.lists(st.lists(st.integers(0, 4), min_size=1, max_size=4), min_size=3, max_size=60)


def _flatten(people) -> tuple[list, list]:
    rows = [(f"p{number}", grade) for number, grades in enumerate(people) for grade in grades]
    return [person for person, _ in rows], [grade for _, grade in rows]


@settings(max_examples=150)
@given(people=_people, seed=st.integers(0, 1000), shares=st.tuples(*[st.floats(0.05, 1)] * 3))
def test_no_person_crosses_and_no_split_is_empty(people, seed, shares):
    person_ids, grades = _flatten(people)
    splits = split_by_person(person_ids, grades, shares, seed)
    assert len(set(zip(person_ids, splits, strict=True))) == len(people)
    assert set(splits) == {0, 1, 2}


@settings(max_examples=50)
@given(people=_people, seed=st.integers(0, 1000), order=st.randoms(use_true_random=False))
def test_the_order_of_the_xrays_makes_no_difference(people, seed, order):
    rows = list(zip(*_flatten(people), strict=True))
    expected = dict(
        zip((person for person, _ in rows), split_by_person(*zip(*rows, strict=True), seed=seed), strict=True)
    )
    order.shuffle(rows)
    shuffled = split_by_person(*zip(*rows, strict=True), seed=seed)
    assert dict(zip((person for person, _ in rows), shuffled, strict=True)) == expected


@pytest.mark.parametrize("seed", range(5))
def test_grades_keep_their_shares(seed):
    """As in the release: two knees a person, mostly of like grade, few of KL4."""
    rng = random.Random(seed)
    people = []
    for _ in range(1000):
        grade = rng.choices(range(5), (39, 18, 26, 13, 4))[0]
        people.append([grade, min(4, max(0, grade + rng.choice((-1, 0, 0, 1))))])
    person_ids, grades = _flatten(people)
    shares = (0.7, 0.1, 0.2)
    counts = Counter(zip(split_by_person(person_ids, grades, shares, seed), grades, strict=True))
    for grade, total in Counter(grades).items():
        for split, share in enumerate(shares):
            assert abs(counts[split, grade] - share * total) <= 2 + 0.02 * total


def test_seeds_differ_and_repeat():
    person_ids, grades = _flatten([[number % 5] * 2 for number in range(50)])
    splits = [split_by_person(person_ids, grades, seed=seed) for seed in (0, 0, 1)]
    assert splits[0] == splits[1] != splits[2]


@pytest.mark.parametrize(
    "arguments, reason",
    [
        ((["a", "b"], [0]), "2 person ids, but 1 grades"),
        ((["a", "b", "c"], [0, 1, 2], (0.5, 0.5, 0)), "each above 0"),
        ((["a", "b", "c"], [0, 1, 2], (1, np.nan)), "each above 0"),
        ((["a", "a", "b"], [0, 1, 2]), "2 people cannot fill 3 splits"),
        ((["a", "", "b", None, " ", float("nan")], [0, 1, 2, 2, 3, 4]), "4 X-rays are of unknown people"),
    ],
)
def test_what_cannot_be_split_is_refused(arguments, reason):
    with pytest.raises(ValueError, match=reason):
        split_by_person(*arguments)


def test_the_builder_reads_the_table(tmp_path, capsys):
    write_corpus(tmp_path / "knees", people=40, seed=1, image_size=40, overlap=0, split="train")
    (tmp_path / "tables").mkdir()
    table = tmp_path / "tables" / "split.csv"
    command = [str(tmp_path / "knees"), "--output", str(table), "--shares", "0.5", "0.25", "0.25"]
    assert main(command) == 0
    assert "train: 40 X-rays of 20 people" in capsys.readouterr().out
    corpus = load_knee_xray(table, cache_dir=str(tmp_path / "cache"))
    assert {split: len(rows) for split, rows in corpus.items()} == {"train": 40, "validation": 20, "test": 20}
    people = [set(rows["person_id"]) for rows in corpus.values()]
    assert not people[0] & people[1] and not people[0] & people[2] and not people[1] & people[2]
    find_files(table)  # nobody in two splits
    assert main(command) == 2 and "is there already" in capsys.readouterr().err
    assert main([str(tmp_path / "nowhere"), "--output", "x.csv"]) == 2
    assert "no such folder" in capsys.readouterr().err
