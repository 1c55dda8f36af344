"""What several processes decide together; alone it does nothing. It starts none."""

import contextlib
import itertools
import json
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

from vicreg_jax import files
from vicreg_jax.refusals import Refusal, one_line

__all__ = [
    "agree",
    "all_or_none",
    "described",
    "devices",
    "first_line",
    "of_all",
    "of_first",
    "preempted",
]


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


def of_first(answer: bool) -> bool:
    """Returns the answer of the first process, on all of them."""
    if jax.process_count() == 1:
        return answer
    return bool(multihost_utils.broadcast_one_to_all(np.array(answer)))


def of_all(number: float) -> list[float]:
    """Returns the numbers of all processes."""
    if jax.process_count() == 1:
        return [number]
    return multihost_utils.process_allgather(np.float32(number)).tolist()


@contextlib.contextmanager
def all_or_none(
    kind: type[Exception], *, of: type[Exception] = Exception
) -> Iterator[None]:
    """Raises on every process, as one kind of error, what one of them raised.

    What is done in its context must not wait for another process, which may have
    failed; it is also a barrier.

    Args:
      kind: of what is raised, but where this process raised it and it is of this kind.
      of: what is caught; all else is raised here alone.
    """
    cause = None
    try:
        yield
    except of as error:
        cause = error
    reason = first_line(one_line(cause, LONGEST) if cause else "")
    if isinstance(cause, kind):
        raise cause
    if reason:
        raise kind(reason) from cause


def agree(facts: Mapping[str, Any]) -> None:
    """Raises Refusal on every process where what they are to do is not the same.

    Args:
      facts: JSON by name, and mappings of such; small, for each process gets those of
        all if they differ.
    """
    if jax.process_count() == 1:
        return
    flat = {}
    for name, value in facts.items():
        inner = value if isinstance(value, Mapping) else {"": value}
        flat |= {f"{name}.{key}".rstrip("."): x for key, x in inner.items()}
    text = json.dumps(flat, sort_keys=True).encode()
    digests = multihost_utils.process_allgather(
        np.frombuffer(files.digest(text).encode(), np.uint8)
    )
    if (digests == digests[0]).all():
        return
    lengths = multihost_utils.process_allgather(np.array(len(text)))
    padded = np.frombuffer(text.ljust(int(lengths.max())), np.uint8)
    everyone = [json.loads(bytes(x)) for x in multihost_utils.process_allgather(padded)]
    first, different = everyone[0], {}
    for number, other in enumerate(everyone[1:], 1):
        for name in first | other:
            if first.get(name) != other.get(name):
                values = f"{first.get(name)} of process 0, {other.get(name)} of process"
                different.setdefault(name, f"{name} is {values} {number}")
    shown = "; ".join(list(different.values())[:5])
    more = f"; and {len(different) - 5} more" if len(different) > 5 else ""
    raise Refusal(
        f"the processes are not to do the same: {shown}{more}; start all with the same"
        " command, code and data"
    )


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


def described() -> str:
    """Returns how many devices and processes there are, and of which kind."""
    return f"{devices()} ({jax.devices()[0].device_kind})"


def devices() -> str:
    """Returns how many devices and processes there are, in words."""
    devices, count = jax.device_count(), jax.process_count()
    return (
        f"{devices} device{'s' * (devices > 1)} of {count} process{'es' * (count > 1)}"
    )
