"""Which examples and which random numbers a step uses; it never touches an image.

The plan of a step is a pure function of (seed, step), in NumPy from counter-based
Philox streams, so a run resumes at any step by starting there, and any number of hosts
can compute the same global batch. The streams are a file format: they never change.
"""

from typing import NamedTuple

import numpy as np

from vicreg_jax.refusals import Refusal

__all__ = [
    "PURPOSES",
    "InOrder",
    "Plan",
    "Planner",
    "permutation",
    "shuffled",
    "stream",
    "uniforms",
]

# Each random stream has a purpose, the last word of its counter; its key is (seed,
# number), where the number is 0 unless the comment says what it is.
PURPOSES = {
    "order": 0,  # of the examples of an epoch; number: the epoch
    # What is done to the images of a step; number: the step; part: 1 of local views.
    "views": 1,
    "few_labels": 2,  # a draw of labels; number: the draw; part: labels of a class
    "balanced": 3,  # a fraction of each class to train on
    "held_out": 4,  # of the training images, to choose hyperparameters by
    "knn_queries": 5,  # training images whose neighbours are asked for
    "knn_bank": 6,  # training images that are neighbours
    "gallery": 7,  # images of the report
    "held_out_of_run": 8,  # training images that a run never sees
}


class Plan(NamedTuple):
    """One step of the global batch."""

    indices: np.ndarray  # int64 [b], examples of the data set, none of them twice
    uniforms: np.ndarray  # float32 [b, v, k] in [0, 1), for each view


def stream(
    purpose: str, *, seed: int, number: int = 0, part: int = 0
) -> np.random.Philox:
    """Returns the raw random numbers of a purpose, see `PURPOSES`.

    Args:
      seed: of the run or the evaluation, >= 0.
      part: a second number, where one is not enough.
    """
    key = np.array([seed, number], np.uint64)
    counter = np.array([0, 0, part, PURPOSES[purpose]], np.uint64)
    return np.random.Philox(key=key, counter=counter)


def shuffled(
    purpose: str, count: int, *, seed: int, number: int = 0, part: int = 0
) -> np.ndarray:
    """Returns 0 to `count` - 1 in random order, int64 [count]; see `stream`."""
    raw = stream(purpose, seed=seed, number=number, part=part).random_raw(count)
    return np.argsort(raw, kind="stable")


def permutation(seed: int, epoch: int, examples: int) -> np.ndarray:
    """Returns the order of an epoch: a random permutation, int64 [examples].

    >>> permutation(seed=0, epoch=0, examples=8)
    array([0, 2, 1, 5, 4, 3, 6, 7])
    """
    return shuffled("order", examples, seed=seed, number=epoch)


def uniforms(
    seed: int, step: int, shape: tuple[int, int, int], *, local_views: int = 0
) -> np.ndarray:
    """Returns the random numbers of a step, float32 [b, v, k] in [0, 1).

    Number k of the last axis is the same however many follow it. Local views follow the
    v of the shape, which are the same with them and without.

    >>> uniforms(seed=0, step=0, shape=(1, 2, 2)).shape
    (1, 2, 2)
    >>> one, two = (uniforms(seed=0, step=7, shape=(4, 2, k)) for k in (1, 2))
    >>> np.array_equal(one, two[..., :1])
    True
    """
    batch, views, numbers = shape
    found = []
    for part, count in enumerate((views, local_views)):
        raw = stream("views", seed=seed, number=step, part=part)
        raw = raw.random_raw(numbers * count * batch) >> np.uint64(40)
        values = raw.astype(np.float32) * np.float32(2**-24)
        found.append(values.reshape(numbers, count, batch).transpose(2, 1, 0))
    return np.concatenate(found, axis=1)


class Planner:
    """Plans every step of a run; holds nothing but the order of the latest epoch.

    Several threads may ask it.

    Args:
      seed: of the run, >= 0.
      examples: size of the data set.
      batch_size: of the global batch. What an epoch has left over is dropped.
      views: of each example.
      numbers: uniforms per view.
      local_views: see `uniforms`.

    Raises:
      Refusal: the data set is smaller than a batch.
    """

    def __init__(
        self,
        *,
        seed: int,
        examples: int,
        batch_size: int,
        views: int,
        numbers: int,
        local_views: int = 0,
    ):
        self.steps_per_epoch = _steps(examples, batch_size)
        self._seed, self._examples = seed, examples
        self._shape, self._local = (batch_size, views, numbers), local_views
        self._latest = -1, np.empty(0, np.int64)  # epoch and order, always a pair

    def __call__(self, step: int) -> Plan:
        epoch, position = divmod(step, self.steps_per_epoch)
        known, order = self._latest
        if epoch != known:
            order = permutation(self._seed, epoch, self._examples)
            self._latest = epoch, order
        batch = self._shape[0]
        return self._plan(order[position * batch : (position + 1) * batch], step)

    def _plan(self, indices, step):
        numbers = uniforms(self._seed, step, self._shape, local_views=self._local)
        return Plan(indices, numbers)


class InOrder(Planner):
    """Plans steps over what comes one after the other: see `Planner`.

    An epoch is a number of steps; the indices are positions from its first step on.
    """

    def __call__(self, step: int) -> Plan:
        batch = self._shape[0]
        return self._plan(np.arange(step * batch, (step + 1) * batch), step)


def _steps(examples, batch_size):
    if examples < batch_size:
        raise Refusal(
            f"the data set has {examples} examples, fewer than one batch of"
            f" {batch_size}; lower data.batch_size"
        )
    return examples // batch_size
