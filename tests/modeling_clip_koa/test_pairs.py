"""Both knees of a person: their grades' bond against a sum written out, and what must hold of any combination."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from modeling_clip_koa.pairs_clip_koa import PairPrior

GRADES = 5


def _rows(count: int, seed: int) -> torch.Tensor:
    values = torch.rand(count, GRADES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.01
    return values / values.sum(-1, keepdim=True)


def _joint(seed: int) -> torch.Tensor:
    values = _rows(GRADES, seed)
    return (values + values.T) / (values + values.T).sum()


@given(seed=st.integers(0, 2**20), weight=st.floats(0, 2))
@settings(max_examples=50, deadline=None)
def test_as_the_sum_written_out(seed, weight):
    joint, one, other = _joint(seed), _rows(1, seed + 1)[0], _rows(1, seed + 2)[0]
    first, second = PairPrior(joint, weight).combine(one, other)
    share, both = joint.sum(0), {}
    for a in range(GRADES):
        for b in range(GRADES):
            both[a, b] = one[a] * other[b] * (joint[a, b] / (share[a] * share[b])) ** weight
    total = sum(both.values())
    for grade in range(GRADES):
        assert first[grade] == pytest.approx(float(sum(both[grade, b] for b in range(GRADES)) / total), abs=1e-12)
        assert second[grade] == pytest.approx(float(sum(both[a, grade] for a in range(GRADES)) / total), abs=1e-12)


def test_which_knee_comes_first_makes_no_difference():
    prior, one, other = PairPrior(_joint(1), 0.7), _rows(8, 2), _rows(8, 3)
    first, second = prior.combine(one, other)
    swapped = prior.combine(other, one)
    assert torch.equal(first, swapped[1]) and torch.equal(second, swapped[0])


def test_without_weight_or_bond_each_knee_stands_alone():
    one, other = _rows(8, 2), _rows(8, 3)
    share = _rows(1, 4)[0]
    for prior in (PairPrior(_joint(1), 0.0), PairPrior(share[:, None] * share, 1.0)):
        for alone, together in zip((one, other), prior.combine(one, other), strict=True):
            torch.testing.assert_close(together, alone)


def test_a_sure_knee_pulls_the_other_to_its_grades():
    joint = torch.full((GRADES, GRADES), 0.01) + 0.15 * torch.eye(GRADES)
    prior = PairPrior(joint / joint.sum(), 1.0)
    sure = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])
    unsure = torch.full((GRADES,), 1 / GRADES)
    together, stays = prior.combine(unsure, sure)
    assert together.argmax() == 3 and stays.argmax() == 3


@pytest.mark.parametrize(
    "joint, weight, told",
    [
        (torch.ones(2, 3) / 6, 1.0, "joint is of shape"),
        (torch.tensor([[1.0, 0.0], [0.0, 0.0]]), 1.0, "each share above 0"),
        (torch.tensor([[0.2, 0.5], [0.1, 0.2]]), 1.0, "symmetric"),
        (torch.ones(2, 2), 1.0, "add up to 1"),
        (torch.ones(2, 2) / 4, -0.1, "weight=-0.1"),
        (torch.ones(2, 2) / 4, float("nan"), "weight=nan"),
    ],
)
def test_what_is_no_prior(joint, weight, told):
    with pytest.raises(ValueError, match=told):
        PairPrior(joint, weight)
