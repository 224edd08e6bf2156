"""Exponential moving average of the weights while they are trained."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


class WeightAverage:
    """Keeps an exponential moving average of a model's trained parameters (Polyak & Juditsky 1992).

    Registered with the accelerator, so that checkpoints carry it. With `decay` 0 it keeps nothing.

    Args:
        model: its parameters that are trained.
        decay: share of the average that a step leaves; it rises from 0.1 as (1 + n) / (10 + n), n steps done.
    """

    def __init__(self, model: torch.nn.Module, decay: float):
        self.model, self.decay, self.steps = model, decay, 0
        self.averages = [parameter.detach().clone() for parameter in self._trained()] if decay else []

    def _trained(self) -> list[torch.nn.Parameter]:
        return [parameter for parameter in self.model.parameters() if parameter.requires_grad]

    @torch.no_grad()
    def update(self) -> None:
        """Takes in the weights after an optimizer step."""
        if self.averages:
            decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
            torch._foreach_lerp_(self.averages, [p.detach() for p in self._trained()], 1 - decay)
        self.steps += 1

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Puts the average in the model's place within the block."""
        self._swap()
        try:
            yield
        finally:
            self._swap()

    @torch.no_grad()
    def _swap(self) -> None:
        if not self.averages:
            return
        for parameter, average in zip(self._trained(), self.averages, strict=True):
            kept = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(kept)
        self.model.forget_grade_embeds()

    def state_dict(self) -> dict:
        """For the accelerator."""
        return {"steps": self.steps, "averages": self.averages}

    def load_state_dict(self, state: dict) -> None:
        """For the accelerator."""
        self.steps = state["steps"]
        for average, loaded in zip(self.averages, state["averages"], strict=True):
            average.copy_(loaded)
