"""Augmentation: gentle, and the same for an X-ray whatever batch it comes in."""

import numpy as np
import pytest
import torch
from scipy.ndimage import gaussian_filter

from clip_koa.data.augmentation import DEFAULT_BOUNDS, Augmentation, AugmentationBounds, _sharpen
from dataset_script.synthetic import draw_knee

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@pytest.fixture(scope="module")
def xrays():
    gray = torch.stack([torch.tensor(np.asarray(draw_knee(seed % 5, "L", seed, 96))) for seed in range(8)]) / 255
    return (gray.unsqueeze(1) - torch.tensor(MEAN).view(1, 3, 1, 1)) / torch.tensor(STD).view(1, 3, 1, 1)


def test_an_xray_is_augmented_alike_in_any_batch(xrays):
    augment = Augmentation(1.0, MEAN, STD, seed=3)
    together = augment(xrays, torch.arange(8), epoch=2)
    order = torch.tensor([5, 0, 7])
    torch.testing.assert_close(augment(xrays[order], order, epoch=2), together[order])


def test_epochs_seeds_and_xrays_differ(xrays):
    augment = Augmentation(1.0, MEAN, STD, seed=3)
    index = torch.zeros(1, dtype=torch.long)
    first = augment(xrays[:1], index, epoch=0)
    assert not torch.allclose(first, augment(xrays[:1], index, epoch=1))
    assert not torch.allclose(first, augment(xrays[:1], index + 1, epoch=0))
    assert not torch.allclose(first, Augmentation(1.0, MEAN, STD, seed=4)(xrays[:1], index, epoch=0))


def test_strength_zero_changes_nothing(xrays):
    assert Augmentation(0.0, MEAN, STD, seed=0)(xrays, torch.arange(8), epoch=0) is xrays


@pytest.mark.parametrize("changed", AugmentationBounds._fields)
def test_each_bound_is_of_its_own_change(xrays, changed):
    """With all bounds 0 an X-ray stays as it is; each alone changes it, and is as drawn with the others."""
    nothing = AugmentationBounds(*[0.0] * len(AugmentationBounds._fields))
    indices = torch.arange(8)
    kept = Augmentation(1.0, MEAN, STD, seed=0, bounds=nothing)(xrays, indices, epoch=0)
    torch.testing.assert_close(kept, xrays, atol=1e-4, rtol=0)
    alone = Augmentation(
        1.0, MEAN, STD, seed=0, bounds=nothing._replace(**{changed: getattr(DEFAULT_BOUNDS, changed)})
    )
    assert (alone(xrays, indices, epoch=0) - xrays).abs().mean() > 0.01
    drawn = alone._draw(indices, 0)
    together = Augmentation(1.0, MEAN, STD, seed=0)._draw(indices, 0)
    assert torch.equal(drawn[drawn != 0], together[drawn != 0]) and (drawn != 0).any()


def test_it_is_gentle_and_stays_an_xray(xrays):
    augmented = Augmentation(1.0, MEAN, STD, seed=0)(xrays, torch.arange(8), epoch=0)
    assert augmented.shape == xrays.shape
    gray = augmented * torch.tensor(STD).view(1, 3, 1, 1) + torch.tensor(MEAN).view(1, 3, 1, 1)
    assert gray.min() > -1e-4 and gray.max() < 1 + 1e-4
    torch.testing.assert_close(gray[:, 0], gray[:, 2], atol=1e-4, rtol=0)  # three equal channels
    weak = Augmentation(0.2, MEAN, STD, seed=0)(xrays, torch.arange(8), epoch=0)
    assert (weak - xrays).abs().mean() < (augmented - xrays).abs().mean()


def test_xrays_stay_as_sharp_as_they_are_but_for_random_blur_and_sharpening():
    """A model trained on softened X-rays grades too low those that it meets as they are."""
    noise = torch.rand(32, 1, 224, 224, generator=torch.Generator().manual_seed(0)).mul(0.2).add(0.4)
    augmented = Augmentation(0.6, (0.0,), (1.0,), seed=0)(noise, torch.arange(32), epoch=0)
    inner = (slice(None), 0, slice(8, -8), slice(8, -8))
    change = augmented[inner].std(dim=(1, 2)) / noise[inner].std(dim=(1, 2))
    assert change.median() > 0.8  # bilinear sampling alone leaves two thirds
    assert change.min() < 0.5 and change.max() > 1.05


def test_sharpness_goes_from_blur_over_nothing_to_sharpening():
    gray = (
        torch.stack([torch.tensor(np.asarray(draw_knee(2, "L", seed, 224))) for seed in range(3)]).unsqueeze(1) / 255
    )
    blurred, same, sharpened = _sharpen(gray, torch.tensor([-1.0, 0.0, 1.0]))
    expected = gaussian_filter(gray[0, 0].numpy(), sigma=0.008 * 224, mode="nearest", truncate=4)
    torch.testing.assert_close(blurred[0], torch.tensor(expected), atol=5e-3, rtol=0)
    torch.testing.assert_close(same, gray[1])
    assert sharpened.diff(dim=-1).abs().mean() > 1.1 * gray[2].diff(dim=-1).abs().mean()


def test_it_does_not_mirror(xrays):
    """The forward pass makes the mirror image; labels of the side must stay true."""
    augmented = Augmentation(1.0, MEAN, STD, seed=0)(xrays, torch.arange(8), epoch=0)

    def similarity(one, other):
        return torch.nn.functional.cosine_similarity(one.flatten(1), other.flatten(1)).mean()

    assert similarity(augmented, xrays) > similarity(augmented, xrays.flip(-1))


def test_random_flips_mirror_the_share_asked_for_and_leave_the_other_draws_alone(xrays):
    indices = torch.arange(8)
    mirrored = Augmentation(0.0, MEAN, STD, seed=0, flip=0.5)(xrays, indices, epoch=0)
    flipped = torch.tensor([torch.equal(one, other.flip(-1)) for one, other in zip(mirrored, xrays, strict=True)])
    assert 0 < flipped.sum() < 8
    assert torch.equal(mirrored[~flipped], xrays[~flipped])
    many = Augmentation(0.0, MEAN, STD, seed=0, flip=0.25)._draw_flips(torch.arange(2000), 0)
    assert many.float().mean() == pytest.approx(0.25, abs=0.03)
    always, never = (Augmentation(1.0, MEAN, STD, seed=0, flip=chance) for chance in (1.0, 0.0))
    torch.testing.assert_close(always(xrays, indices, 0), never(xrays.flip(-1), indices, 0))
