"""Ends a process that is stuck, so that what started it can start it again."""

import faulthandler
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

MEDIANS = 20  # a step may take as many times the median of the latest
STATUS = 75  # of exit: EX_TEMPFAIL, try again


class Watchdog:
    """Ends the process where no step finishes for long, with the stacks of its threads.

    It is armed by the second beat: the first step compiles.

    Args:
      seconds: without a beat that are too long, if 20 times the median is not more;
        0 never ends anything.
      path: file for the stacks, which standard error gets too.
    """

    def __init__(self, seconds: float, path: Path):
        self._least, self._path = seconds, path
        self._times: deque[float] = deque(maxlen=50)
        self._last: float | None = None
        self._paused, self._closed = 0, threading.Event()
        if seconds:
            threading.Thread(target=self._watch, name="watchdog", daemon=True).start()

    def beat(self) -> None:
        """A step has finished."""
        now = time.monotonic()
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
                self._last = time.monotonic()  # before the thread may look again
            self._paused -= 1

    def close(self) -> None:
        self._closed.set()

    def _watch(self):
        while not self._closed.wait(min(1.0, self._least / 4)):
            if self._paused or not self._times:
                continue
            limit = max(self._least, MEDIANS * statistics.median(self._times))
            waited = time.monotonic() - self._last
            if waited > limit and not self._paused:
                self._end(waited)

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
