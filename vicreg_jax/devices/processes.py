"""What several processes decide together; alone it does nothing. It starts none."""

import contextlib
import itertools
from collections.abc import Iterator

import jax
import numpy as np
from jax.experimental import multihost_utils

from vicreg_jax.refusals import one_line

__all__ = ["all_or_none", "devices", "first_line", "preempted"]


LONGEST = 4000  # bytes of a line
_ASKED = itertools.count()


def first_line(line: str) -> str:
    """Returns the first line that is not empty, of those that all processes give."""
    if jax.process_count() == 1:
        return line
    padded = line.encode()[:LONGEST].ljust(LONGEST)
    lines = multihost_utils.process_allgather(np.frombuffer(padded, np.uint8))
    given = (bytes(x).decode(errors="replace").strip() for x in lines)
    return next(filter(None, given), "")


@contextlib.contextmanager
def all_or_none(kind: type[Exception]) -> Iterator[None]:
    """Raises on every process, as one kind of error, what one of them raised.

    What is done in its context must not wait for another process, which may have
    failed; it is also a barrier.
    """
    cause = None
    try:
        yield
    except Exception as error:
        cause = error
    reason = first_line(one_line(cause) if cause else "")
    if reason:
        raise kind(reason) from cause


def preempted() -> bool:
    """Returns whether one of the processes was told to stop, the same on all of them.

    Each must ask equally often. jax answers yes at one count only, which it sets ahead
    of all, so the counts rise in ones for as long as the process lives. False where
    there is no `jax.distributed`, or its service is turned off.
    """
    try:
        return multihost_utils.reached_preemption_sync_point(next(_ASKED))
    except RuntimeError:
        return False


def devices() -> str:
    """Returns how many devices and processes there are, in words."""
    devices, count = jax.device_count(), jax.process_count()
    return (
        f"{devices} device{'s' * (devices > 1)} of {count} process{'es' * (count > 1)}"
    )
