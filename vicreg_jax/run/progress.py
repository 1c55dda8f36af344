"""How far a run is, on standard error: a bar where lines can go again, else lines.

It writes no file.
"""

import math
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from datetime import timedelta

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vicreg_jax.devices.launchers import NOTEBOOKS
from vicreg_jax.refusals import printable

__all__ = ["Bar", "counted"]

SECONDS = 10  # between two lines where none can be overwritten


class Bar:
    """Shows progress in a terminal or a notebook; elsewhere prints a line now and then.

    Args:
      total, done: steps.
      silent: says nothing, as processes do that are not the first.
    """

    def __init__(self, *, total: int, done: int, silent: bool = False):
        self._total, self._spoke, self._terms = total, -math.inf, ""
        self._silent = silent
        self._doing, self._since = "starting", None  # since when, of what is no step
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate="")
        self._live = self._line = None
        if silent:
            return
        if _in_notebook():
            self._line = _Line(self._words)
        elif sys.stderr.isatty():  # FORCE_COLOR makes rich see a terminal anywhere
            console = Console(stderr=True, force_terminal=True)
            self._live = Live(get_renderable=self._picture, console=console)
            self._live.start()

    def _description(self):
        if self._since is None:
            return self._doing
        return f"{self._doing} {_clock(time.monotonic() - self._since)}"

    def _picture(self):
        self._progress.update(self._task, description=self._description())
        return Group(self._progress, Text(self._terms, no_wrap=True))

    def _words(self):
        task = self._progress.tasks[0]
        words = f"{self._description()} {task.completed:.0f}/{self._total}"
        if task.time_remaining is not None:
            words += f"  {_clock(task.time_remaining)} left"
        return "  ".join(filter(None, (words, task.fields["rate"], self._terms)))

    def say(self, text: str) -> None:
        """Shows what is going on until the next step, and for how long: "compiling"."""
        self._doing, self._since = text, time.monotonic()
        if not (self._live or self._line):
            self._print(text)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        text = printable(text)
        if self._live:
            self._live.console.print(
                text, highlight=False, markup=False, soft_wrap=True
            )
        elif self._line:
            self._line.note(text)
        else:
            self._print(text)

    def step(self, step: int) -> None:
        """Moves on to `step`."""
        if self._since is not None:
            seconds, self._since = time.monotonic() - self._since, None
            self.note(f"{self._doing} took {seconds:.0f} s")
        self._doing = "training"
        self._progress.update(self._task, completed=step)

    def show(self, step: int, metrics: Mapping[str, float], text: str) -> None:
        """Shows a text on the metrics of a step, until the next one."""
        self._terms, rate = text, ""
        if "images_per_second" in metrics:
            rate = f"{metrics['images_per_second']:.0f} images/s"
        self._progress.update(self._task, rate=rate)
        if self._live or self._line:
            return
        now = time.monotonic()
        if now - self._spoke > SECONDS or step == self._total:
            self._spoke = now
            left = self._progress.tasks[0].time_remaining
            left = f"{_clock(left)} left" if left else ""
            said = (f"step {step}/{self._total}", rate, left, self._terms)
            self._print("  ".join(filter(None, said)))

    def close(self) -> None:
        if self._live:
            self._live.stop()
        if self._line:
            self._line.close()

    def _print(self, text):
        if not self._silent:
            print(text, file=sys.stderr, flush=True)


@contextmanager
def counted(
    text: str, total: int, *, silent: bool = False
) -> Iterator[Callable[[int], None]]:
    """Shows how much of `total` is done; yields a function that is told so."""
    in_notebook = _in_notebook() and not silent
    columns, console = Progress.get_default_columns(), Console(stderr=True)
    with Progress(*columns, console=console, disable=silent or in_notebook) as bar:
        task = bar.add_task(text, total=total)
        line = None
        if in_notebook:
            line = _Line(lambda: f"{text} {bar.tasks[0].completed:.0f}/{total}")
        try:
            yield lambda done: bar.update(task, completed=done)
        finally:
            if line:
                line.close()


class _Line:
    """The last line of a notebook's output, written anew each second; notes above it.

    A notebook goes back to the start of a line, and knows no other movement.

    Args:
      words: returns the text of the line.
    """

    def __init__(self, words: Callable[[], str]):
        self._words, self._shown = words, ""
        self._lock, self._closed = threading.Lock(), threading.Event()
        self._thread = threading.Thread(target=self._tick, daemon=True)
        self._thread.start()

    def _tick(self):
        while not self._closed.wait(1):
            self._write(self._words())

    def _write(self, text, end=""):
        with self._lock:
            print(f"\r{text:{len(self._shown)}}", end=end, file=sys.stderr, flush=True)
            self._shown = "" if end else text

    def note(self, text):
        self._write(text, "\n")

    def close(self):
        self._closed.set()
        self._thread.join()
        self._write(self._words(), "\n")


def _clock(seconds):
    return str(timedelta(seconds=round(seconds)))


def _in_notebook():
    """Tells whether a notebook shows what this writes: in a cell or by its command.

    A notebook gives its commands a terminal; what goes into a file does not.
    """
    found = any(name in os.environ for name in NOTEBOOKS)
    found = found or "inline" in os.environ.get("MPLBACKEND", "")
    in_cell = type(sys.stderr).__module__.startswith("ipykernel")
    return in_cell or (found and sys.stderr.isatty())
