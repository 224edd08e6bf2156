"""Which X-rays an epoch sees."""

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clip_koa.data.sampling import EpochSampler


def _epoch(sampler, epoch):
    sampler.set_epoch(epoch)
    return list(sampler)


@given(
    labels=st.lists(st.integers(0, 4), min_size=1, max_size=60),
    balance=st.floats(0, 1),
    seed=st.integers(0, 9),
    epoch=st.integers(0, 30),
)
def test_an_epoch_is_whole_and_repeatable(labels, balance, seed, epoch):
    size = max(1, len(labels) * 2 // 3)
    drawn = _epoch(EpochSampler(labels, size, balance, seed), epoch)
    assert len(drawn) == size and set(drawn) <= set(range(len(labels)))
    assert drawn == _epoch(EpochSampler(labels, size, balance, seed), epoch)


def test_without_balance_every_xray_comes_once_in_another_order():
    sampler = EpochSampler([0, 1, 2] * 20, 60, 0.0, seed=1)
    first, second = _epoch(sampler, 0), _epoch(sampler, 1)
    assert sorted(first) == sorted(second) == list(range(60)) and first != second


def test_full_balance_draws_every_grade_alike():
    labels = [0] * 40 + [1] * 20 + [2] * 25 + [3] * 12 + [4] * 3
    grades = Counter(labels[index] for index in _epoch(EpochSampler(labels, 100, 1.0, seed=0), 0))
    assert grades == dict.fromkeys(range(5), 20)


def test_half_balance_lies_between():
    labels = [0] * 81 + [4] * 9
    sampler = EpochSampler(labels, 80, 0.5, seed=0)
    assert dict(sampler.draws_per_grade()) == {0: 60, 4: 20}  # shares of square roots, 9 to 3


def test_xrays_of_a_grade_take_turns():
    """Over epochs no X-ray is seen more than once more often than another of its grade."""
    labels = [0] * 37 + [3] * 5
    sampler = EpochSampler(labels, 40, 1.0, seed=2)
    seen = Counter(index for epoch in range(13) for index in _epoch(sampler, epoch))
    for grade in (0, 3):
        counts = [seen[index] for index, label in enumerate(labels) if label == grade]
        assert max(counts) - min(counts) <= 1


def test_an_epoch_above_the_split_is_refused():
    with pytest.raises(ValueError, match="epoch_size=4"):
        EpochSampler([0, 1, 2], 4, 0.0, seed=0)
