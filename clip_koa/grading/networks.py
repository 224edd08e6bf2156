"""What other runtimes than PyTorch compute of a model: modules of pixel values alone, ready to be traced."""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from modeling_clip_koa import CLIPKOAForImageClassification


class GradingNetwork(torch.nn.Module):
    """Pixel values (N, 3, H, W) to what `grade_pixels` gives: text logits of both views (N, K), features (N, D)."""

    def __init__(self, model: CLIPKOAForImageClassification):
        super().__init__()
        self.model, self.block = model, model.features_block
        self.register_buffer("grade_embeds", model.kept_grade_embeds())
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return self.model.grade_both_views(pixel_values, self.block, self.grade_embeds)


class FindingNetwork(torch.nn.Module):
    """Windows (V, 3, W, W) to the tokens, (V, T, D), that a locator reads.

    Args:
        blocks: that the locator passes.
    """

    def __init__(self, model: CLIPKOAForImageClassification, blocks: int):
        super().__init__()
        self.model, self.blocks = model, blocks
        self.eval()

    def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
        return self.model.tokens_after(pixel_values, self.blocks, any_size=True)


@contextmanager
def quiet() -> Iterator[None]:
    """The libraries that trace and write networks tell of each of their steps, in ways that no user can act on."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
