"""Which examples and which random numbers a step uses; it never touches an image.

The plan of a step is a pure function of (seed, step), in NumPy from counter-based
Philox streams, so a run resumes at any step by starting there, and any number of hosts
can compute the same global batch. The streams are a file format: they never change.
"""

from typing import NamedTuple

import numpy as np


class Plan(NamedTuple):
    """One step of the global batch."""

    indices: np.ndarray  # int64 [b], examples of the data set, none of them twice
    uniforms: np.ndarray  # float32 [b, v, k] in [0, 1), for each view


def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Returns the order of an epoch: a random permutation, int64 [examples]."""
    return np.argsort(_stream(seed, epoch, 0).random_raw(examples), kind="stable")


def uniforms(seed: int, step: int, shape: tuple[int, int, int]) -> np.ndarray:
    """Returns the random numbers of a step, float32 [b, v, k] in [0, 1).

    Number k of the last axis is the same however many follow it.
    """
    batch, views, numbers = shape
    raw = _stream(seed, step, 1).random_raw(numbers * views * batch)
    values = (raw >> np.uint64(40)).astype(np.float32) * np.float32(2**-24)
    return values.reshape(numbers, views, batch).transpose(2, 1, 0)


class Planner:
    """Plans every step of a run; holds nothing but the order of the latest epoch.

    Args:
      seed: of the run, >= 0.
      examples: size of the data set.
      batch_size: of the global batch. What an epoch has left over is dropped.
      views: of each example.
      numbers: uniforms per view.

    Raises:
      ValueError: the data set is smaller than a batch.
    """

    def __init__(
        self, *, seed: int, examples: int, batch_size: int, views: int, numbers: int
    ):
        if examples < batch_size:
            raise ValueError(
                f"the data set has {examples} examples, fewer than one batch of"
                f" {batch_size}; lower data.batch_size"
            )
        self.steps_per_epoch = examples // batch_size
        self._seed, self._examples = seed, examples
        self._shape = (batch_size, views, numbers)
        self._epoch, self._order = -1, np.empty(0, np.int64)

    def __call__(self, step: int) -> Plan:
        epoch, position = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            self._order = permutation(self._seed, epoch, self._examples)
            self._epoch = epoch
        batch = self._shape[0]
        indices = self._order[position * batch : (position + 1) * batch]
        return Plan(indices, uniforms(self._seed, step, self._shape))


def _stream(seed, number, purpose):
    key = np.array([seed, number], np.uint64)
    counter = np.array([0, 0, 0, purpose], np.uint64)
    return np.random.Philox(key=key, counter=counter)
