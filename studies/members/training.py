"""Trains one member; a run that was stopped goes on to the same result.

What happens in a step depends on the seed and the number of the step alone, so a checkpoint needs no state of random
numbers.
"""

import copy
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import nn

from clip_koa.data.augmentation import Augmentation, AugmentationBounds
from clip_koa.data.sampling import EpochSampler
from clip_koa.files import write_file
from clip_koa.training.checkpoints import restore_previous, written_whole
from clip_koa.training.optimisation import build_schedule
from metrics.kl_grading.kl_grading import NUM_GRADES, kl_grading_metrics
from studies.members.networks import ARCHITECTURES, StudyError
from studies.members.xrays import Xrays

WEIGHT_DECAY, WARMUP, CLIP = 0.05, 0.05, 2.0
NEIGHBOUR_SHARE = 0.05  # of a label, for each neighbouring grade
AVERAGE_DECAY = 0.998
# Brightness, contrast and gray curve as the project's own runs vary them.
BOUNDS = AugmentationBounds(rotation=math.radians(15), shift=0.06, scale=0.10, sharpness=0.0)
CHECKPOINT_STEPS, PROGRESS_STEPS = 200, 20
_WEIGHTS, _STATE = "weights.safetensors", "state.json"


@dataclass(frozen=True)
class MemberSettings:
    """What a member is, together with the X-rays: a run goes on only with the same settings.

    Args:
        model: of `ARCHITECTURES`.
        fold: the one it never sees.
        folds: how many there are.
        seed: of the order, the augmentation and the new head. The folds are the same for every seed.
        epochs: of the training.
        batch_size: X-rays of a step.
    """

    model: str
    fold: int
    folds: int
    seed: int
    epochs: int
    batch_size: int = 32


class MemberTraining:
    """A member while it is trained.

    Args:
        settings: of the run.
        xrays: of the training people that it sees.
        folder: of the run; checkpoints and `metrics.jsonl` lie there.
    """

    def __init__(self, settings: MemberSettings, xrays: Xrays, folder: Path):
        self.settings, self.xrays, self.folder = settings, xrays, folder
        self.architecture = architecture = ARCHITECTURES[settings.model]
        self.steps_per_epoch = len(xrays) // settings.batch_size
        if not self.steps_per_epoch:
            raise StudyError(
                f"{len(xrays)} X-rays to train on: at least one batch of {settings.batch_size} is needed."
            )
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        torch.manual_seed(settings.seed)
        self.network = architecture.build().to(self.device, memory_format=torch.channels_last)
        self.average = copy.deepcopy(self.network).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(_groups(self.network, architecture.rate))
        self.schedule = build_schedule(self.optimizer, self.total_steps, WARMUP)
        self.sampler = EpochSampler(
            xrays.labels.tolist(), self.steps_per_epoch * settings.batch_size, balance=0.0, seed=settings.seed
        )
        mean, std = architecture.image_mean, architecture.image_std
        self.mean, self.std = (torch.tensor(values, device=self.device).view(1, 3, 1, 1) for values in (mean, std))
        self.augment = Augmentation(1.0, mean, std, settings.seed, flip=0.5, bounds=BOUNDS)
        self.step, self.epoch_loss, self.metrics = 0, 0.0, []

    @property
    def total_steps(self) -> int:
        """Of the whole training."""
        return self.settings.epochs * self.steps_per_epoch

    def train(self, validation: Xrays) -> None:
        """Trains from where it is to the end, and writes a checkpoint every `CHECKPOINT_STEPS` and after each epoch.

        Args:
            validation: graded by the averaged weights after each epoch.

        Raises:
            StudyError: the loss is no finite number.
        """
        started, first, recent = time.monotonic(), self.step, []
        while self.step < self.total_steps:
            recent.append(self._train_step())
            if self.step % PROGRESS_STEPS == 0 or self.step == self.total_steps:
                rate = (time.monotonic() - started) / (self.step - first)
                print(
                    f"step {self.step} of {self.total_steps}: loss {sum(recent) / len(recent):.4f}, "
                    f"{rate:.2f} s a step, {rate * (self.total_steps - self.step) / 60:.0f} minutes to go",
                    flush=True,
                )
                recent = []
            ended = self.step % self.steps_per_epoch == 0
            if ended:
                self._end_epoch(validation)
            if ended or self.step % CHECKPOINT_STEPS == 0:
                self.save()

    def _train_step(self) -> float:
        epoch, batch = divmod(self.step, self.steps_per_epoch)
        self.sampler.set_epoch(epoch)
        size = self.settings.batch_size
        indices = torch.tensor(list(self.sampler)[batch * size : (batch + 1) * size])
        torch.manual_seed((self.settings.seed << 32) + self.step)  # of dropout and stochastic depth
        pixel_values = self.augment(self._normalise(self.xrays.gray[indices]), indices, epoch)
        targets = soften(self.xrays.labels[indices]).to(self.device)

        self.network.train()
        precision = self.architecture.autocast
        with torch.autocast(self.device.type, precision, enabled=precision is not None):
            logits = self.network(pixel_values.contiguous(memory_format=torch.channels_last))  # (N, 5)
        loss = F.cross_entropy(logits.float(), targets)
        loss.backward()
        nn.utils.clip_grad_norm_(self.network.parameters(), CLIP)
        self.optimizer.step()
        self.schedule.step()
        self.optimizer.zero_grad()
        update_average(self.average, self.network, self.step)
        value = loss.item()
        if not math.isfinite(value):
            raise StudyError(f"step {self.step}: the loss is {value}. The last checkpoint is whole.")
        self.step += 1
        self.epoch_loss += value
        return value

    def _end_epoch(self, validation: Xrays) -> None:
        probabilities = self.predict(validation.gray).mean(1)
        figures = kl_grading_metrics(
            probabilities.argmax(1).tolist(), validation.labels.tolist(), probabilities=probabilities.tolist()
        )
        line = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            "train_loss": self.epoch_loss / self.steps_per_epoch,
            **{name: figures[name] for name in ("accuracy", "quadratic_weighted_kappa", "log_loss")},
        }
        self.epoch_loss = 0.0
        self.metrics.append(line)
        self._write_metrics()
        print(json.dumps(line), flush=True)

    def _write_metrics(self) -> None:
        write_file(self.folder / "metrics.jsonl", "".join(json.dumps(line) + "\n" for line in self.metrics).encode())

    @torch.no_grad()
    def predict(self, gray: torch.Tensor) -> torch.Tensor:
        """Probabilities by the averaged weights for X-rays (N, H, W) uint8: (N, 2, 5), as they are and mirrored."""
        parts = []
        for batch in gray.split(self.settings.batch_size):
            pixel_values = self._normalise(batch)
            views = [pixel_values, pixel_values.flip(-1)]
            logits = [self.average(view.contiguous(memory_format=torch.channels_last)) for view in views]
            parts.append(torch.stack(logits, dim=1).double().softmax(-1).cpu())
        return torch.cat(parts)

    def _normalise(self, gray: torch.Tensor) -> torch.Tensor:
        """(N, H, W) uint8 -> (N, 3, H, W) fp32 on the device."""
        return (gray.to(self.device).float().div_(255).unsqueeze(1) - self.mean) / self.std

    def save(self) -> None:
        """Writes the checkpoint, whole or not at all."""
        tensors = {f"network.{name}": value for name, value in self.network.state_dict().items()}
        tensors |= {f"average.{name}": value for name, value in self.average.state_dict().items()}
        for index, state in self.optimizer.state_dict()["state"].items():
            tensors |= {f"optimizer.{index}.{name}": value for name, value in state.items()}
        state = {
            "settings": asdict(self.settings),
            "xrays": self.xrays.digest,
            "step": self.step,
            "epoch_loss": self.epoch_loss,
            "schedule": self.schedule.state_dict(),
            "metrics": self.metrics,
        }
        with written_whole(self.folder / "checkpoint") as folder:
            save_file({name: value.contiguous() for name, value in tensors.items()}, folder / _WEIGHTS)
            (folder / _STATE).write_text(json.dumps(state), encoding="utf-8")

    def load(self) -> bool:
        """Goes back to the run's checkpoint; whether there is one.

        Raises:
            StudyError: a checkpoint of other settings or X-rays.
        """
        folder = self.folder / "checkpoint"
        restore_previous(folder)
        if not folder.exists():
            return False
        state = json.loads((folder / _STATE).read_text(encoding="utf-8"))
        for name, value in asdict(self.settings).items():
            if state["settings"][name] != value:
                raise StudyError(f"{folder} is of a run with {name}={state['settings'][name]}, not {value}.")
        if state["xrays"] != self.xrays.digest:
            raise StudyError(f"{folder} is of a run on other X-rays: train on those, or into another folder.")
        tensors = load_file(folder / _WEIGHTS)
        self.network.load_state_dict(_below("network.", tensors))
        self.average.load_state_dict(_below("average.", tensors))
        self._load_optimizer(_below("optimizer.", tensors))
        self.schedule.load_state_dict(state["schedule"])
        for group, rate in zip(self.optimizer.param_groups, self.schedule.get_last_lr(), strict=True):
            group["lr"] = rate
        self.step, self.epoch_loss, self.metrics = state["step"], state["epoch_loss"], state["metrics"]
        self._write_metrics()
        return True

    def _load_optimizer(self, tensors: dict[str, torch.Tensor]) -> None:
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for name, value in tensors.items():
            index, _, field = name.partition(".")
            parameter = parameters[int(index)]
            # In the parameter's own order in memory, as it was before the stop.
            kept = torch.empty_like(parameter).copy_(value) if value.shape == parameter.shape else value
            self.optimizer.state[parameter][field] = kept


def _groups(network: nn.Module, rate: Callable[[str], float]) -> list[dict]:
    """Groups of an optimizer: by learning rate, and matrices, which decay, apart from vectors."""
    groups = {}
    for name, parameter in network.named_parameters():
        if parameter.requires_grad:
            groups.setdefault((rate(name), parameter.ndim >= 2), []).append(parameter)
    return [
        {"params": parameters, "lr": rate, "weight_decay": WEIGHT_DECAY * is_matrix}
        for (rate, is_matrix), parameters in sorted(groups.items(), key=lambda item: item[0], reverse=True)
    ]


def soften(labels: torch.Tensor) -> torch.Tensor:
    """Grades (N,) -> targets (N, 5) fp32: `NEIGHBOUR_SHARE` for each neighbouring grade, the rest for the grade."""
    grades = torch.arange(NUM_GRADES)
    distance = (labels.unsqueeze(1) - grades).abs()
    targets = (distance == 1) * NEIGHBOUR_SHARE
    return targets + (distance == 0) * (1 - targets.sum(1, keepdim=True))


@torch.no_grad()
def update_average(average: nn.Module, network: nn.Module, step: int) -> None:
    """Exponential moving average of all weights and of the statistics of batch norm.

    Its decay rises with the steps done, as (1 + n) / (10 + n) up to `AVERAGE_DECAY`, so that the start is forgotten.
    """
    decay = min(AVERAGE_DECAY, (1 + step) / (10 + step))
    for kept, current in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if kept.is_floating_point():
            kept.lerp_(current, 1 - decay)
        else:
            kept.copy_(current)


def _below(prefix: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
