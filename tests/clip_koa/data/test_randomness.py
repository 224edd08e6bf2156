"""No two purposes draw the same numbers, and how a training is computed does not change what is drawn."""

import itertools
import re

import pytest
import torch
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st

from clip_koa.data.augmentation import Augmentation
from clip_koa.data.loader import build_loader
from clip_koa.data.randomness import PURPOSES, stream
from clip_koa.data.sampling import EpochSampler
from clip_koa.training.regularisation import DropPath, PatchDropout

WORDS = st.integers(0, 3) | st.integers(0, 2**32 - 1)
KEYS = st.tuples(st.sampled_from(PURPOSES), WORDS, WORDS, WORDS)


def _first(key) -> tuple:
    return tuple(stream(*key).integers(0, 2**63, 2).tolist())


def test_no_stream_is_shared():
    """Small numbers, as trainings have them: zeros and equal numbers in other places are where keys were shared."""
    keys = list(itertools.product(PURPOSES, range(5), range(8), range(12)))
    assert len({_first(key) for key in keys}) == len(keys)


@given(KEYS, KEYS)
def test_other_keys_have_other_streams_and_the_same_key_the_same(one, other):
    assert (_first(one) == _first(other)) == (one == other)
    assert _first(one) == _first(one)


@pytest.mark.parametrize("key", [("weather", 0, 0, 0), ("flip", -1, 0, 0), ("flip", 0, 2**32, 0), ("flip", 0, 0, -1)])
def test_what_has_no_stream_is_refused(key):
    with pytest.raises(ValueError, match=r"purpose='weather': use one of|it must be at least 0 and below 2\*\*32"):
        stream(*key)


def test_every_draw_of_a_training_comes_from_there_and_every_purpose_is_used():
    used = set()
    files = [path for folder in ("data", "training") for path in (ROOT / "clip_koa" / folder).glob("*.py")]
    for path in [*files, ROOT / "clip_koa" / "calibration" / "variations.py"]:
        code = path.read_text()
        used |= set(re.findall(r'stream\("([\w ]+)"', code))
        if path.name != "randomness.py":
            assert not re.search(r"np\.random\.|import random|torch\.rand|torch\.manual_seed|Generator\(", code), path
    assert used == set(PURPOSES)


class _Numbered(torch.utils.data.Dataset):
    def __len__(self):
        return 24

    def __getitem__(self, index):
        return {"index": index}


def _draws(model, indices: torch.Tensor) -> torch.Tensor:
    """Everything that is drawn for X-rays (N,) of epoch 2, (N, D)."""
    augmentation = Augmentation(1.0, (0.5,), (0.5,), seed=7, flip=0.5)
    drop_path = DropPath(model.vision_model.encoder.layers, 0.5, frozen=0, seed=7)
    patch_dropout = PatchDropout(model.vision_model.embeddings, 0.5, seed=7)
    drop_path.draw(indices, 2)
    patch_dropout.draw(indices, 2)
    flips = augmentation._draw_flips(indices, 2)[:, None]
    return torch.cat([augmentation._draw(indices, 2), flips, drop_path.factors.T, patch_dropout.kept], dim=1)


@pytest.mark.parametrize(("workers", "processes"), [(0, 1), (2, 1), (0, 2), (0, 3)])
def test_processes_and_workers_change_no_draw(make_model, workers, processes):
    """Batches shared as Accelerate shares them: each X-ray of an epoch has the same draws at the same step."""
    sampler = EpochSampler([index % 5 for index in range(24)], 24, 0.5, seed=7)
    sampler.set_epoch(2)
    expected = _draws(make_model(), torch.tensor(list(sampler)))
    loader = build_loader(_Numbered(), 6, workers, sampler)
    model, got = make_model(), []
    for batch in loader:
        got += [_draws(model, part) for part in batch["index"].chunk(processes)]
    assert torch.equal(torch.cat(got), expected)
