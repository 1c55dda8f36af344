"""Batches for the train step, prepared ahead of it; no randomness of its own."""

import collections
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import jax


class Feed:
    """Iterates over the batches of the steps from `start` to `stop`.

    A thread prepares up to `ahead` batches while the device computes. `waited` is the
    time in seconds that the consumer has spent waiting for them.

    Args:
      make: step -> batch, a tree of host arrays with leading axis [b]; a pure function.
      sharding: where the batches go.
    """

    def __init__(
        self,
        make: Callable[[int], object],
        *,
        start: int,
        stop: int,
        sharding: jax.sharding.Sharding,
        ahead: int = 2,
    ):
        self.waited = 0.0
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
        return jax.device_put(self._make(step), self._sharding)

    def _next(self, ready):
        begin = time.perf_counter()
        batch = ready.popleft().result()
        self.waited += time.perf_counter() - begin
        return batch
