"""Stopping where what was done so far is kept."""

from collections.abc import Iterator
from contextlib import contextmanager

from dataset_script.exit_status import STOPPED
from dataset_script.pixels import CLIPKOAError


class Interrupted(CLIPKOAError):
    """The command was asked to stop, and goes on where it was when it is started again."""

    exit_status = STOPPED


@contextmanager
def work_is_kept(how: str) -> Iterator[None]:
    """Within it Ctrl+C, SIGTERM and SIGHUP lose nothing.

    Args:
        how: to go on, as a sentence.

    Raises:
        Interrupted: in place of KeyboardInterrupt.
    """
    try:
        yield
    except KeyboardInterrupt as stop:
        raise Interrupted(f"{str(stop) or 'stopped.'} {how}") from stop
