"""How threads of torch wait for each other on a machine that others use too."""

import os

# Turns of an empty loop, about a microsecond's worth each: libgomp's own 300,000 outlast what a thread may compute
# before the system gives its core to somebody else.
SPINS = 1000
_CHOICES = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")


def let_waiting_threads_sleep() -> None:
    """Has the threads of libgomp, which compute for torch, soon give their core away while they wait for each other.

    By default one that waits turns in a loop for a moment longer. Where other processes use the cores too, it then
    keeps away the very thread that it waits for (`python -m studies.benchmark busy`). Who chose by one of libgomp's
    variables keeps that. Call it before torch is imported, which is when libgomp reads them.
    """
    if not any(os.environ.get(name) for name in _CHOICES):
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
