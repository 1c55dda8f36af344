"""Batches for the train step, prepared ahead of it; no randomness of its own."""

import collections
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import jax

__all__ = ["ADVICE", "Feed"]

# What to do where a stage of the input is the slowest.
ADVICE = {
    "read": "put the images on a faster disk, or into fewer files (data.name=tfds)",
    "decode": "give the process more cores, or store the images smaller",
    "tf.data": "give the process more cores, store the images smaller (see the task"
    " prepare), or on a faster disk",
    "resize": "give the process more cores, prepare smaller images, or let an"
    " accelerator do it (in pretraining data.resize=device)",
    "colour": "give the process more cores, or let an accelerator do it"
    " (in pretraining augment.colour=device)",
    "prepare": "make indexing the source faster, or pass a smaller array, which the"
    " device then holds",
    "transfer": "send less: data.resize=host where it is device, or smaller views",
}


class Feed:
    """Iterates over (step, batch) of some steps, or of spans of steps, in order.

    While the device computes, a thread makes batches and another sends them, so that
    neither waits for the other. At most `ahead` + 1 are made or being made that the
    consumer does not have yet; with the one it works on and the one that the device may
    not be done with, `ahead` + 3 batches are in memory. `waited` is the time in seconds
    that the consumer has spent waiting for them.

    Args:
      make: step -> this process's rows of the batch, a tree of host arrays [b, ...]; a
        pure function.
      steps: what `make` takes.
      sharding: where the global batches go.
      seconds: those that the stages of `make` have taken so far, by name; it is read,
        never changed.
    """

    def __init__(
        self,
        make: Callable[[Any], object],
        steps: Iterable,
        *,
        sharding: jax.sharding.Sharding,
        seconds: Mapping[str, float] | None = None,
        ahead: int = 2,
    ):
        self.waited = 0.0
        self._inner, self._before = seconds or {}, dict(seconds or {})
        self._outer = {"prepare": 0.0, "transfer": 0.0}
        self._make, self._sharding, self._ahead = make, sharding, ahead
        self._steps = iter(steps)

    def __iter__(self) -> Iterator:
        making, sending = (
            ThreadPoolExecutor(1, thread_name_prefix=f"feed-{name}")
            for name in ("make", "send")
        )
        ready = collections.deque()
        try:
            for step in self._steps:
                made = making.submit(self._timed, "prepare", self._make, step)
                ready.append((step, sending.submit(self._send, made)))
                del made  # or the batch would outlive its transfer
                if len(ready) > self._ahead:
                    yield self._next(ready)
            while ready:
                yield self._next(ready)
        finally:
            # Whoever leaves early does not wait for batches that nobody wants.
            making.shutdown(wait=False, cancel_futures=True)
            sending.shutdown(wait=False, cancel_futures=True)

    def _send(self, made):
        return self._timed("transfer", self._place, made.result())

    def _place(self, batch):
        place = partial(jax.make_array_from_process_local_data, self._sharding)
        return jax.block_until_ready(jax.tree.map(place, batch))

    def _timed(self, stage, function, *args):
        begin = time.perf_counter()
        result = function(*args)
        self._outer[stage] += time.perf_counter() - begin
        return result

    def bottleneck(self) -> str:
        """Returns which stage of the input takes most of its time, and what to do."""
        inner = {name: s - self._before[name] for name, s in self._inner.items()}
        stages = self._outer | inner
        stages["prepare"] = max(0.0, stages["prepare"] - sum(inner.values()))
        total = sum(stages.values())
        shares = sorted(stages.items(), key=lambda item: -item[1])
        slowest = shares[0][0]
        listed = ", ".join(f"{n} {s / total:.0%}" for n, s in shares if s > total / 100)
        return f"{slowest} is the slowest stage ({listed}); {ADVICE[slowest]}"

    def _next(self, ready):
        begin = time.perf_counter()
        step, batch = ready.popleft()
        batch = batch.result()
        self.waited += time.perf_counter() - begin
        return step, batch
