"""A training step: which views its losses see is told to it, and is no change of the model."""

import copy

import pytest
import torch


@pytest.mark.parametrize("both_views", [False, True])
def test_the_losses_see_the_views_that_they_are_told_to(make_model, pixel_values, labels, both_views):
    """As a model learns that is configured without any loss on mirror images."""
    model = make_model(symmetry=True, consistency="kl", consistency_weight=8.0).train()
    alone = make_model(symmetry=both_views, consistency="kl", consistency_weight=8.0 * both_views).train()
    before = copy.deepcopy(model.config.to_dict())
    gradients = []
    for each, options in ((model, {"both_views": both_views}), (alone, {})):
        output = each(pixel_values, labels=labels, **options)
        output.loss.backward()
        gradients.append([parameter.grad for parameter in each.parameters() if parameter.grad is not None])
        assert (output.flipped_logits is not None) == both_views
        assert bool(output.consistency_loss) == both_views
    assert len(gradients[0]) == len(gradients[1]) > 0
    assert all(torch.equal(one, other) for one, other in zip(*gradients, strict=True))
    assert model.config.to_dict() == before


def test_flip_averaging_does_not_bring_mirror_images_into_the_losses(make_model, pixel_values, labels):
    model = make_model(symmetry=True, consistency_weight=8.0).eval()
    with torch.no_grad():
        averaged = model(pixel_values, labels=labels, both_views=False)
        alone = model(pixel_values, labels=labels, both_views=False, flip_average=False)
    assert averaged.flipped_logits is not None and averaged.consistency_loss == 0
    torch.testing.assert_close(averaged.loss, alone.loss)
