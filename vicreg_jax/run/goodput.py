"""What the time of a run went into, over all of its starts; it measures no device.

The file starts.jsonl has a line for each start, which is written anew with each line of
metrics, in a bucket not each time: so of a killed start the time after its last line
is not known.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from vicreg_jax.run import json_lines

__all__ = ["NAME", "Goodput", "read", "shares", "slowest", "words"]

NAME = "starts.jsonl"
# Beside the rest, which is "steps", and what was done again after a kill, "repeated".
PARTS = ("starting", "compiling", "waiting for data", "saving", "judging")


class Goodput:
    """The time of this start of a run, by what it was spent on.

    Args:
      workdir: of the run.
      start: the step that it begins at.
      clock: returns seconds.
    """

    def __init__(
        self, workdir: Path, start: int, *, clock: Callable[[], float] = time.monotonic
    ):
        self._clock, self._begin = clock, clock()
        self._own = {
            "began": time.strftime("%Y-%m-%d %H:%M:%S"),
            "first": start,
            "last": start,
        }
        self._lines = json_lines.Lines(workdir / NAME, [*read(workdir), self._own])
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self.blocked = 0.0  # seconds of waiting for the device and other processes

    def add(self, part: str, seconds: float) -> None:
        self._seconds[part] += seconds

    @contextmanager
    def spent(self, part: str) -> Iterator[None]:
        """Counts the time in its context."""
        begin = self._clock()
        try:
            yield
        finally:
            self.add(part, self._clock() - begin)

    @contextmanager
    def blocking(self) -> Iterator[None]:
        """Counts the time in its context as waiting for others; a part of the steps."""
        begin = self._clock()
        try:
            yield
        finally:
            self.blocked += self._clock() - begin

    def timed(self, part: str, items: Iterable) -> Iterator:
        """Yields the items, counting the time that each takes to come."""
        iterator, end = iter(items), object()
        while True:
            with self.spent(part):
                item = next(iterator, end)
            if item is end:
                return
            yield item

    def in_steps(self) -> float:
        """Returns the seconds that are left for steps."""
        return max(0.0, self._clock() - self._begin - sum(self._seconds.values()))

    def write(self, step: int, *, last: bool = False) -> None:
        """Writes the line of this start, which has reached this step.

        Args:
          last: whether no other follows.

        Raises:
          Unusable: the disk is full, or the file cannot be written.
        """
        seconds = {"steps": self.in_steps(), **self._seconds}
        self._own["last"] = max(step, self._own["last"])
        self._own["seconds"] = {name: round(x, 3) for name, x in seconds.items()}
        self._lines.rewrite()
        if last:
            self._lines.flush()

    def lines(self) -> list[dict[str, Any]]:
        """Returns the lines of all starts, this one last."""
        return self._lines.lines


def read(workdir: Path) -> list[dict[str, Any]]:
    """Returns the usable lines of all starts. Raises: as `json_lines.read`."""
    return json_lines.read(workdir / NAME, _is_start)[0]


def shares(lines: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Returns the share of the time that each part took, "repeated" among them."""
    spent, highest = dict.fromkeys(("steps", *PARTS, "repeated"), 0.0), 0
    for line in lines:
        first, last = line["first"], line["last"]
        for name, seconds in line["seconds"].items():
            spent[name] += seconds
        again = max(0, min(last, highest) - first)
        if again:
            lost = line["seconds"]["steps"] * again / (last - first)
            spent["steps"] -= lost
            spent["repeated"] += lost
        highest = max(highest, last)
    total = sum(spent.values()) or 1.0
    return {name: seconds / total for name, seconds in spent.items()}


def words(lines: Sequence[Mapping[str, Any]]) -> str:
    """Returns the shares in words."""
    found = shares(lines)
    said = [f"{found.pop('steps'):.0%} steps"]
    said += [f"{x:.0%} {name}" for name, x in found.items() if x >= 0.005]
    return f"time: {', '.join(said)} ({len(lines)} start{'s' * (len(lines) > 1)})"


def slowest(own: Sequence[float], step: float) -> str:
    """Returns a line where one of several processes holds the others up, else "".

    Args:
      own: seconds a step that each spends on its own, not waiting for others.
      step: seconds a step of all.
    """
    most, usual = int(np.argmax(own)), float(np.median(own))
    if own[most] - usual < step / 10:
        return ""
    return (
        f"process {most} is the slowest: {own[most]:.3g} s a step of its own, from"
        f" {min(own):.3g} to {max(own):.3g} s, median {usual:.3g} s"
    )


def _is_start(line):
    numbers = [line.get("first"), line.get("last")]
    seconds = line.get("seconds")
    if not isinstance(seconds, dict) or seconds.keys() != {"steps", *PARTS}:
        return False
    if not all(type(x) is int for x in numbers) or not 0 <= numbers[0] <= numbers[1]:
        return False
    return all(type(x) in (int, float) and 0 <= x < 1e12 for x in seconds.values())
