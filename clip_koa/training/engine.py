"""The training loop: epochs of steps, evaluations between them, checkpoints, and what ends a run early."""

import signal
import time
from contextlib import suppress

import torch
from accelerate import skip_first_batches
from tqdm.auto import tqdm

from clip_koa.evaluation.heads import NotFiniteError
from clip_koa.files import WriteError
from clip_koa.interruption import Interrupted
from clip_koa.training.checkpoints import last_checkpoint, save_checkpoint
from clip_koa.training.preparation import Run
from clip_koa.training.steps import LOSS_PARTS, train_step
from clip_koa.training.validation import describe_best, validate

# Slurm sends SIGTERM before it kills, and SIGUSR1 where `--signal=USR1@120` asks for it.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name))


class Preempted(Interrupted):
    """The run was asked to stop and has saved a checkpoint to go on from."""


class StopRequest:
    """Whether any process was asked to stop, by Ctrl+C, SIGTERM or SIGUSR1; all learn it at the same step."""

    def __init__(self):
        self.received = ""
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        if number == signal.SIGINT and self.received:  # who asks twice does not wait for the checkpoint
            raise KeyboardInterrupt
        self.received = signal.Signals(number).name

    def agreed(self, accelerator) -> bool:
        """Whether to stop now. All processes must call it."""
        if accelerator.num_processes == 1:
            return bool(self.received)
        asked = torch.tensor(float(bool(self.received)), device=accelerator.device)
        return accelerator.reduce(asked, "sum").item() > 0


def train(run: Run) -> None:
    """Trains to the last epoch or step; evaluates, keeps the best and checkpoints after each epoch.

    Raises:
        Preempted: Ctrl+C, SIGTERM or SIGUSR1 came; a checkpoint is saved.
        NotFiniteError: a loss or gradient is not finite; the checkpoints are from before.
        SaveError: a checkpoint could not be written.
    """
    state = run.state
    stop = StopRequest()
    _tell(run, "running")
    try:
        with tqdm(
            total=run.total_steps,
            initial=state.step,
            desc="training",
            unit="step",
            disable=not run.accelerator.is_local_main_process,
        ) as bar:
            while not run.finished:
                _train_epoch(run, bar, stop)
                if state.batches >= len(run.train_loader):
                    state.epoch, state.batches = state.epoch + 1, 0
                if state.epoch % run.config.run.evaluation_epochs == 0 or run.finished:
                    validate(run, bar)
                _save(run)
    except (Preempted, KeyboardInterrupt):
        _tell(run, "interrupted")
        raise
    except Exception as error:
        _tell(run, "failed", reason=str(error) or type(error).__name__, files=getattr(error, "files", []))
        raise


def _train_epoch(run: Run, bar: tqdm, stop: StopRequest) -> None:
    state, checkpoint_steps = run.state, run.config.run.checkpoint_steps
    # A loader that skips must be told the epoch too, or it shuffles anew.
    run.train_loader.set_epoch(state.epoch)
    loader = run.train_loader
    if state.batches:
        loader = skip_first_batches(run.train_loader, state.batches)
        loader.set_epoch(state.epoch)
    run.model.train()
    batches = iter(loader)
    while True:
        started = time.perf_counter()
        one_view = state.step < run.config.losses.one_view_until * run.total_steps
        losses = train_step(run, batches, both_views=not one_view)
        _record_step(run, losses, time.perf_counter() - started, bar)
        if state.step == run.total_steps or state.batches == len(run.train_loader):
            return
        if stop.agreed(run.accelerator):
            _save(run)
            raise Preempted(
                f"stopped at step {state.step} as {stop.received or 'another process'} asked. "
                "Start it again with --resume latest."
            )
        if checkpoint_steps and state.step % checkpoint_steps == 0:
            _save(run)


def _record_step(run: Run, losses: torch.Tensor, seconds: float, bar: tqdm) -> None:
    state = run.state
    losses = dict(zip(LOSS_PARTS, run.accelerator.reduce(losses, "mean").tolist(), strict=True))
    speed = run.config.optimisation.batch_size / seconds
    bar.set_postfix(loss=f"{losses['loss']:.3f}", xrays_per_s=f"{speed:.1f}", best=describe_best(run), refresh=False)
    bar.update()
    run.recorder.record(
        kind="train",
        step=state.step,
        epoch=round(state.epoch + state.batches / len(run.train_loader), 4),
        **losses,
        learning_rate=max(run.schedule.get_last_lr()),
        images_per_second=speed,
    )
    if run.recorder.is_status_old():
        _tell(run, "running")


def _save(run: Run) -> None:
    """Saves a checkpoint, unless the weights are beyond use."""
    folder = run.folder / "checkpoints"
    for value in run.accelerator.unwrap_model(run.model).state_dict().values():
        if not value.isfinite().all():
            raise NotFiniteError(
                f"The weights are not finite after step {run.state.step}. Lower optimisation.learning_rate. "
                f"The last good checkpoint: {last_checkpoint(folder)}."
            )
    save_checkpoint(run.accelerator, folder, run.state)


def _tell(run: Run, state: str, **values) -> None:
    """Writes status.json; a full disk must not hide what the run ends with."""
    with suppress(WriteError):
        run.recorder.status(state, step=run.state.step, total_steps=run.total_steps, **values)
