"""Stopping when the cluster asks for it."""

import signal

import torch

# Slurm sends SIGTERM before it kills, and SIGUSR1 where `--signal=USR1@120` asks for it.
_SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))

# EX_TEMPFAIL of sysexits.h: the run is whole, start it again with --resume latest.
RESUME_ME = 75


class Preempted(Exception):
    """The run was asked to stop and has saved a checkpoint to go on from."""


class StopRequest:
    """Whether any process was asked to stop, by SIGTERM or SIGUSR1; all processes learn it at the same step."""

    def __init__(self):
        self.received = ""
        for number in _SIGNALS:
            signal.signal(number, self._receive)

    def _receive(self, number: int, frame) -> None:
        self.received = signal.Signals(number).name

    def agreed(self, accelerator) -> bool:
        """Whether to stop now. All processes must call it."""
        if accelerator.num_processes == 1:
            return bool(self.received)
        asked = torch.tensor(float(bool(self.received)), device=accelerator.device)
        return accelerator.reduce(asked, "sum").item() > 0
