"""One worker for the model, which serves visitors in turn: nobody's forty X-rays hold up another's three."""

import threading
from collections import OrderedDict, deque
from collections.abc import Callable, Hashable
from concurrent.futures import Future


class Turns:
    """Runs jobs one at a time, in a thread of its own: of each visitor who waits one, then the next visitor's.

    With n visitors waiting, each gets every n-th turn, however many jobs the others have.
    """

    def __init__(self):
        self._waiting: OrderedDict[Hashable, deque] = OrderedDict()  # of each visitor (Future, job), in order of turns
        self._changed = threading.Condition()
        self._closed = False
        threading.Thread(target=self._work, name="model", daemon=True).start()

    def submit(self, visitor: Hashable, job: Callable, *, urgent: bool = False) -> Future:
        """Puts a job in the visitor's line.

        Args:
            urgent: before the visitor's other jobs, not before anybody else's.

        Returns:
            Its result to be; cancelled where the visitor's line is dropped or the worker closed.
        """
        future = Future()
        with self._changed:
            if self._closed:
                future.cancel()
                return future
            line = self._waiting.setdefault(visitor, deque())
            (line.appendleft if urgent else line.append)((future, job))
            self._changed.notify()
        return future

    def drop(self, visitor: Hashable) -> None:
        """Cancels what a visitor waits for."""
        with self._changed:
            dropped = self._waiting.pop(visitor, ())
        for future, _ in dropped:
            future.cancel()

    def close(self) -> None:
        """Cancels what waits, and ends the thread after the job it is at."""
        with self._changed:
            self._closed = True
            visitors = list(self._waiting)
            self._changed.notify()
        for visitor in visitors:
            self.drop(visitor)

    def _work(self) -> None:
        while (turn := self._next()) is not None:
            future, job = turn
            if future.set_running_or_notify_cancel():
                try:
                    future.set_result(job())
                except BaseException as error:  # whoever waits for the result gets it
                    future.set_exception(error)
            del turn, future, job  # an idle worker holds nobody's X-ray

    def _next(self) -> tuple[Future, Callable] | None:
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closed)
            if self._closed:
                return None
            visitor, line = next(iter(self._waiting.items()))
            turn = line.popleft()
            if line:
                self._waiting.move_to_end(visitor)
            else:
                del self._waiting[visitor]
            return turn
