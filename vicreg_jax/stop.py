"""Ctrl-C and SIGTERM: the run saves first, then leaves."""

import os
import signal
import threading


class Stop:
    """Remembers SIGINT or SIGTERM in `signal`; a second one acts at once, as usual.

    At the end of its context, when all is saved, it raises what the signal would have.
    """

    def __init__(self):
        self.signal = 0
        self._old = {}

    def __enter__(self):
        # Python hands signals to the main thread only.
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._old[number] = signal.signal(number, self._remember)
        return self

    def __exit__(self, error, *_):
        for number, old in self._old.items():
            signal.signal(number, old or signal.SIG_DFL)  # None: set by C code
        if error is None and self.signal == signal.SIGINT:
            raise KeyboardInterrupt
        if error is None and self.signal:
            raise SystemExit(128 + self.signal)

    def _remember(self, number, frame):
        self.signal = number
        signal.signal(number, self._old[number] or signal.SIG_DFL)
        os.write(2, b"\nstopping after this step; once more to stop at once\n")
