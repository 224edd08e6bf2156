"""Averages of weights: a moving one while they are trained, and the mean of several checkpoints."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from transformers.image_processing_utils import BaseImageProcessor

from clip_koa.evaluation.loading import CheckpointError, load_checkpoint
from modeling_clip_koa import CLIPKOAForImageClassification

# What two checkpoints of one model may differ in.
_INCIDENTAL = {"_name_or_path", "transformers_version"}


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


def average_checkpoints(names: list[str]) -> tuple[CLIPKOAForImageClassification, BaseImageProcessor]:
    """The model whose every weight is the mean of those of the named checkpoints, in their precision.

    Its image processor is that of the first.

    Raises:
        CheckpointError: fewer than two, one that cannot be loaded or is calibrated already, or models that differ.
    """
    if len(names) < 2:
        raise CheckpointError("name two checkpoints or more to average.")
    mean = image_processor = config = None
    for count, name in enumerate(names, start=1):
        model, processor = load_checkpoint(name)
        if model.config.calibration:
            raise CheckpointError(
                f"{name} is calibrated already, and the mean's calibration is another: name what train wrote, then "
                "calibrate the mean."
            )
        settings = {key: value for key, value in model.config.to_dict().items() if key not in _INCIDENTAL}
        if mean is None:
            mean, image_processor, config = model, processor, settings
            continue
        for key in config | settings:
            if config.get(key) != settings.get(key):
                raise CheckpointError(
                    f"{name} and {names[0]} differ in {key} of their config.json: name checkpoints of one recipe."
                )
        with torch.no_grad():
            for weight, other in zip(mean.parameters(), model.parameters(), strict=True):
                weight.lerp_(other, 1 / count)
        mean.forget_calibration()
        mean.forget_locator()
    return mean, image_processor
