"""Signals to stop: what is running saves first, then leaves."""

import os
import signal
import threading
from collections.abc import Mapping

__all__ = ["SIGNALS", "Stop", "status"]

# SLURM sends SIGUSR1 ahead of the end where it is told to (--signal=USR1@120).
SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)


def status(environ: Mapping[str, str] = os.environ) -> int:
    """Returns the exit status of a process that has saved because it was told to stop.

    0: what was asked for has been done. But 143 for those who would take 0 for the end
    of the run and not start it again: Kubernetes, whose pods may be moved elsewhere,
    and SkyPilot.
    """
    return 143 if {"KUBERNETES_SERVICE_HOST", "SKYPILOT_TASK_ID"} & set(environ) else 0


class Stop:
    """Remembers SIGINT, SIGTERM or SIGUSR1 in `signal`; a second one acts at once.

    At the end of its context, when all is saved, it raises KeyboardInterrupt after
    SIGINT, and else SystemExit with `status`.

    Args:
      together: of several processes. The runtime of `jax.distributed` has the SIGTERM
        of any of them and makes all stop at the same step (`processes.preempted`);
        the other signals are passed on as that one.
    """

    def __init__(self, *, together: bool = False):
        self.signal = 0
        self._together, self._old = together, {}

    def __enter__(self):
        # Python hands signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in SIGNALS:
                if not (self._together and number == signal.SIGTERM):
                    self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, error, *_):
        for number, old in self._old.items():
            signal.signal(number, old or signal.SIG_DFL)  # None: set by C code
        if error is None:
            self.leave(self.signal)

    def leave(self, number: int) -> None:
        """Raises what ends the process after a signal: see the class. 0 is none."""
        if number == signal.SIGINT:
            raise KeyboardInterrupt
        if number:
            raise SystemExit(status())

    def _remember(self, number, frame):
        self.signal = number
        signal.signal(number, self._old[number] or signal.SIG_DFL)
        if self._together:
            os.kill(os.getpid(), signal.SIGTERM)
        os.write(2, b"\nstopping after this step; once more to stop at once\n")
