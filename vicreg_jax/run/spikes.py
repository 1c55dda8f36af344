"""A loss that leaves its range and stays there, though it is a number."""

import math
from collections import deque
from collections.abc import Collection

__all__ = ["KNOWN", "LASTS", "Spikes", "spread_of"]

KNOWN = 200  # steps that tell its range
LASTS = 10  # steps


class Spikes:
    """Tells whether the loss has been out of its range for `LASTS` steps.

    The range is known from the latest `KNOWN` steps that were in it: their mean, and
    the mean of their distances from it.

    Args:
      limit: distance above the mean, in mean distances, that is out of the range; 0
        for none.
    """

    def __init__(self, limit: float):
        self._limit = limit
        self._known: deque[float] = deque(maxlen=KNOWN)
        self._row: list[int] = []

    def look(self, step: int, loss: float) -> int:
        """Takes the loss of the next step.

        One that is not finite is passed over: see `guard.skipped_steps`.

        Returns:
          the first step of the row, if this one completes it, else 0.
        """
        if not self._limit or not math.isfinite(loss):
            return 0
        if len(self._known) == KNOWN and loss > self.bound():
            self._row.append(step)
            return self._row[0] if len(self._row) == LASTS else 0
        self._known.append(loss)
        self._row = []
        return 0

    def forget_row(self) -> None:
        """What comes next does not follow the latest step."""
        self._row = []

    def bound(self) -> float:
        """Returns up to where the loss is in its range."""
        mean, spread = spread_of(self._known)
        return mean + self._limit * spread


def spread_of(losses: Collection[float]) -> tuple[float, float]:
    """Returns the mean, and the mean distance from it."""
    mean = sum(losses) / len(losses)
    return mean, sum(abs(x - mean) for x in losses) / len(losses)
