"""Ends a process that is stuck, so that what started it can start it again."""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

__all__ = ["STATUS", "Watchdog"]

MEDIANS = 20  # a step may take as many times the median of the latest
STATUS = 75  # of exit: EX_TEMPFAIL, try again
LOOK = 1.0  # seconds between two looks of the thread, at most


class Watchdog:
    """Ends the process where no step finishes for long, with the stacks of its threads.

    It is armed by the second beat: the first step compiles. A process that was itself
    stopped (Ctrl-Z, a suspended job or machine) is not stuck: only time counts in which
    the thread that watches ran too.

    Args:
      seconds: without a beat that are too long, if 20 times the median is not more;
        0 never ends anything.
      path: file for the stacks, which standard error gets too.
      clock: returns seconds.
    """

    def __init__(
        self, seconds: float, path: Path, *, clock: Callable[[], float] = time.monotonic
    ):
        self._least, self._path, self._clock = seconds, path, clock
        self._period = min(LOOK, seconds / 4)
        self._times: deque[float] = deque(maxlen=50)
        self._last: float | None = None  # beat or end of a pause
        self._looked, self._since, self._waited = clock(), None, 0.0
        self._paused, self._closed = 0, threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """A step has finished."""
        now = self._clock()
        if self._last is not None:
            self._times.append(now - self._last)
        self._last = now

    @contextmanager
    def paused(self) -> Iterator[None]:
        """For what may take long: compiling, saving, evaluating."""
        self._paused += 1
        try:
            yield
        finally:
            if self._last is not None:
                self._last = self._clock()  # before the thread may look again
            self._paused -= 1

    def close(self) -> None:
        self._closed.set()

    def _watch(self):
        while not self._closed.wait(self._period):
            waited = self._look()
            if waited:
                self._end(waited)

    def _look(self):
        """Returns the seconds without a beat if they are too many, else 0."""
        now, last = self._clock(), self._last
        # Whoever was stopped looks late; of that time little counts.
        ran, self._looked = min(now - self._looked, 2 * self._period), now
        if last != self._since or self._paused or not self._times:
            self._since, self._waited = last, 0.0
            return 0.0
        self._waited += ran
        limit = max(self._least, MEDIANS * statistics.median(self._times))
        return self._waited if self._waited > limit else 0.0

    def _end(self, waited):
        # Whatever else is stuck, such as the file system.
        threading.Timer(30, os._exit, [STATUS]).start()
        faulthandler.dump_traceback(sys.stderr, all_threads=True)
        with suppress(OSError), self._path.open("w") as file:
            faulthandler.dump_traceback(file, all_threads=True)
        print(
            f"vicreg_jax: no step has finished for {waited:.0f} s; the stacks of all"
            f" threads are in {self._path}; start again, the run continues at its last"
            " checkpoint",
            file=sys.stderr,
            flush=True,
        )
        os._exit(STATUS)  # threads of a stuck process do not join
