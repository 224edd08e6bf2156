"""Stopping when the cluster, or who started the run, asks for it."""

import signal

import torch

from clip_koa.interruption import Interrupted

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
