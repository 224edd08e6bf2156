"""The losses as pure functions: by hand, at their limits, and as properties over random logits."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st

from modeling_clip_koa import consistency_loss, symmetry_loss
from modeling_clip_koa.configuration_clip_koa import CONSISTENCY_KINDS

logit_rows = st.lists(st.lists(st.floats(-30, 30), min_size=5, max_size=5), min_size=1, max_size=4)


def test_symmetry_loss_is_the_sum_of_both_cross_entropies():
    logits = torch.tensor([[2.0, 0.0, 0.0, 0.0, 0.0]])
    flipped = torch.tensor([[0.0, 0.0, 3.0, 0.0, 0.0]])
    labels = torch.tensor([0])
    by_hand = -math.log(math.exp(2) / (math.exp(2) + 4)) - math.log(1 / (math.exp(3) + 4))
    assert symmetry_loss(logits, flipped, labels).item() == pytest.approx(by_hand, rel=1e-6)


def test_symmetry_loss_without_a_mirror_view_is_cross_entropy():
    logits, labels = torch.randn(7, 5), torch.tensor([0, 1, 2, 3, 4, 0, 1])
    assert torch.equal(symmetry_loss(logits, None, labels), F.cross_entropy(logits, labels))


def test_consistency_by_hand():
    # Distributions (0.75, 0.25) and (0.25, 0.75).
    logits, flipped = torch.tensor([[math.log(3.0), 0.0]]), torch.tensor([[0.0, math.log(3.0)]])
    mixed = 0.75 * math.log(0.75 / 0.5) + 0.25 * math.log(0.25 / 0.5)
    expected = {"mse": 0.5, "kl": 0.5 * math.log(3.0), "js": mixed, "similarity": 2 * math.log(3.0) ** 2}
    for kind, value in expected.items():
        assert consistency_loss(logits, flipped, kind).item() == pytest.approx(value, rel=1e-5), kind


@pytest.mark.parametrize("kind", CONSISTENCY_KINDS)
@given(rows=logit_rows, other=logit_rows)
def test_consistency_is_symmetric_and_zero_only_for_equal_views(kind, rows, other):
    size = min(len(rows), len(other))
    logits, flipped = torch.tensor(rows[:size]), torch.tensor(other[:size])
    forth, back = consistency_loss(logits, flipped, kind), consistency_loss(flipped, logits, kind)
    assert forth >= -1e-6
    torch.testing.assert_close(forth, back, atol=1e-5, rtol=1e-4)
    assert consistency_loss(logits, logits, kind).abs() < 1e-6
    # A constant added to all logits changes no distribution, but it changes similarities.
    shifted = consistency_loss(logits, logits + 3.0, kind)
    assert shifted.abs() < 1e-5 or (
        kind == "similarity" and shifted.item() == pytest.approx(9 * logits.shape[1], 1e-4)
    )


def test_js_is_bounded_by_ln_2():
    logits, flipped = torch.tensor([[80.0, 0.0]]), torch.tensor([[0.0, 80.0]])
    assert consistency_loss(logits, flipped, "js").item() == pytest.approx(math.log(2.0), rel=1e-5)


@pytest.mark.parametrize("kind", CONSISTENCY_KINDS)
def test_gradient_pulls_both_views_together(kind):
    logits = torch.tensor([[2.0, 0.0, 0.0]], requires_grad=True)
    flipped = torch.tensor([[0.0, 1.0, 0.0]], requires_grad=True)
    before = consistency_loss(logits, flipped, kind)
    before.backward()
    after = consistency_loss(logits - 0.1 * logits.grad, flipped - 0.1 * flipped.grad, kind)
    assert logits.grad.abs().sum() > 0 and flipped.grad.abs().sum() > 0
    assert after < before


def test_unknown_kind_is_refused():
    with pytest.raises(ValueError, match="js, kl, mse, similarity"):
        consistency_loss(torch.zeros(1, 5), torch.zeros(1, 5), "cosine")
