"""How the process keeps its memory, and what it does not look through while it starts."""

import ctypes
import gc
import sys
from collections.abc import Iterator
from contextlib import contextmanager

# Parameters of mallopt(3), glibc's malloc.h.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_ONE_GIB = 1 << 30


def keep_freed_memory() -> bool:
    """Tells glibc to keep freed memory for the next tensor instead of giving it back to the system.

    By default each tensor above 32 MiB is mapped anew and every page of it faulted in, which costs a quarter of a
    training step of ViT-B/16 on a CPU (`python -m studies.benchmark` with and without `--system_allocator`). Call it
    before the first tensor.

    Returns:
        Whether it took effect; False where the C library is another one.
    """
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None:
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _ONE_GIB)) and bool(mallopt(_M_TRIM_THRESHOLD, 2 * _ONE_GIB - 1))


@contextmanager
def importing() -> Iterator[None]:
    """For a command's imports: what they bring stays, and to look for garbage meanwhile takes a quarter of it."""
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        gc.enable()
