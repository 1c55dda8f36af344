"""How far a run is, on standard error: a bar in a terminal, lines elsewhere.

It writes no file.
"""

import math
import os
import sys
import time
from collections.abc import Mapping

from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from vicreg_jax.devices.launchers import NOTEBOOKS
from vicreg_jax.refusals import printable

__all__ = ["Bar"]

SECONDS = 10  # between two lines where there is no terminal


class Bar:
    """Shows progress in two lines of a terminal; elsewhere prints one now and then.

    Args:
      total, done: steps.
      silent: says nothing, as processes do that are not the first.
    """

    def __init__(self, *, total: int, done: int, silent: bool = False):
        self._total, self._spoke, self._terms = total, -math.inf, ""
        self._silent = silent
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate="")
        self._live = None
        if _is_terminal() and not silent:
            console = Console(stderr=True, force_terminal=True)
            self._live = Live(get_renderable=self._picture, console=console)
            self._live.start()

    def _picture(self):
        return Group(self._progress, Text(self._terms, no_wrap=True))

    def say(self, text: str) -> None:
        """Shows what is going on: "compiling"."""
        self._progress.update(self._task, description=text)
        if not self._live:
            self._print(text)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        text = printable(text)
        if self._live:
            self._live.console.print(
                text, highlight=False, markup=False, soft_wrap=True
            )
        else:
            self._print(text)

    def step(self, step: int) -> None:
        """Moves on to `step`."""
        self._progress.update(self._task, description="training", completed=step)

    def show(self, step: int, metrics: Mapping[str, float], text: str) -> None:
        """Shows a text on the metrics of a step, until the next one."""
        self._terms, rate = text, ""
        if "images_per_second" in metrics:
            rate = f"{metrics['images_per_second']:.0f} images/s"
        self._progress.update(self._task, rate=rate)
        now = time.monotonic()
        if not self._live and (now - self._spoke > SECONDS or step == self._total):
            self._spoke = now
            self._print(f"step {step}/{self._total}  {rate}  {self._terms}")

    def close(self) -> None:
        if self._live:
            self._live.stop()

    def _print(self, text):
        if not self._silent:
            print(text, file=sys.stderr, flush=True)


def _is_terminal():
    """Tells whether lines can be overwritten: in no notebook, which keeps them all.

    A notebook gives its commands a terminal, and FORCE_COLOR makes rich see one in it.
    """
    in_notebook = any(name in os.environ for name in NOTEBOOKS)
    in_notebook = in_notebook or "inline" in os.environ.get("MPLBACKEND", "")
    return sys.stderr.isatty() and not in_notebook
