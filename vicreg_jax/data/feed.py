"""Batches for the train step, prepared ahead of it; no randomness of its own."""

import collections
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax

# What to do where a stage of the input is the slowest.
ADVICE = {
    "read": "put the images on a faster disk, or into fewer files (data.name=tfds)",
    "decode": "give the process more cores, or store the images smaller",
    "resize": "give the process more cores, prepare smaller images, or let an"
    " accelerator do it (data.resize=device)",
    "prepare": "make indexing the source faster, or pass a smaller array, which the"
    " device then holds",
    "transfer": "send less: data.resize=host where it is device, or smaller views",
}


class Feed:
    """Iterates over the batches of the steps from `start` to `stop`.

    A thread prepares up to `ahead` batches while the device computes. `waited` is the
    time in seconds that the consumer has spent waiting for them.

    Args:
      make: step -> this process's rows of the batch, a tree of host arrays [b, ...]; a
        pure function.
      sharding: where the global batches go.
      seconds: those that the stages of `make` have taken so far, by name; it is read,
        never changed.
    """

    def __init__(
        self,
        make: Callable[[int], object],
        *,
        start: int,
        stop: int,
        sharding: jax.sharding.Sharding,
        seconds: Mapping[str, float] | None = None,
        ahead: int = 2,
    ):
        self.waited = 0.0
        self._inner = seconds or {}
        self._outer = {"prepare": 0.0, "transfer": 0.0}
        self._make, self._sharding, self._ahead = make, sharding, ahead
        self._steps = iter(range(start, stop))

    def __iter__(self) -> Iterator:
        thread = ThreadPoolExecutor(1, thread_name_prefix="feed")
        ready = collections.deque()
        try:
            for step in self._steps:
                ready.append(thread.submit(self._prepare, step))
                if len(ready) > self._ahead:
                    yield self._next(ready)
            while ready:
                yield self._next(ready)
        finally:
            # Whoever leaves early does not wait for batches that nobody wants.
            thread.shutdown(wait=False, cancel_futures=True)

    def _prepare(self, step):
        place = partial(jax.make_array_from_process_local_data, self._sharding)
        begin = time.perf_counter()
        batch = self._make(step)
        made = time.perf_counter()
        batch = jax.block_until_ready(jax.tree.map(place, batch))
        self._outer["prepare"] += made - begin
        self._outer["transfer"] += time.perf_counter() - made
        return batch

    def bottleneck(self) -> str:
        """Returns which stage of the input takes most of its time, and what to do."""
        stages = self._outer | dict(self._inner)
        if self._inner:
            stages["prepare"] -= sum(self._inner.values())
        total = sum(stages.values())
        slowest = max(stages, key=stages.get)
        shares = sorted(stages.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{n} {s / total:.0%}" for n, s in shares if s > total / 100)
        return f"{slowest} is the slowest stage ({listed}); {ADVICE[slowest]}"

    def _next(self, ready):
        begin = time.perf_counter()
        batch = ready.popleft().result()
        self.waited += time.perf_counter() - begin
        return batch
