"""Labels: which numbers are some, which images have none; lazily read ones too.

An image without a label trains and is never judged.
"""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from vicreg_jax.refusals import Refusal

__all__ = ["NO_LABEL", "Labels", "checked", "exist", "known"]

NO_LABEL = -1  # of an image without one
MOST = 10**6  # classes; memory is asked for by their number


def checked(
    labels: Any,
    count: int,
    classes: Sequence[str] = (),
    *,
    name: Callable[[int], Any] = lambda index: index,
) -> np.ndarray:
    """Returns the labels of so many images as int64 [n].

    Args:
      classes: names of the labels, perhaps none.
      name: index -> what a message calls an image.

    Raises:
      Refusal: they are no integers, not as many as images, or neither the number of a
        class nor NO_LABEL.
    """
    labels = np.asarray(labels)
    if labels.shape != (count,) or not np.issubdtype(labels.dtype, np.integer):
        raise Refusal(
            f"expected labels of int [{count}]; got {labels.dtype} {labels.shape}"
        )
    most = len(classes) or MOST
    wrong = np.flatnonzero((labels < NO_LABEL) | (labels >= most))
    if len(wrong):
        raise Refusal(
            f"image {name(wrong[0])} has the label {labels[wrong[0]]}; expected 0 to"
            f" {most - 1}, or {NO_LABEL} for an image without a label"
        )
    return labels.astype(np.int64)


def known(labels: Any) -> np.ndarray:
    """Returns which images have a label: int [m], perhaps none of them.

    Args:
      labels: int [n], or None.
    """
    if labels is None:
        return np.arange(0)
    return np.flatnonzero(np.asarray(labels) != NO_LABEL)


def exist(labels: Any) -> bool:
    """Tells whether any image has a label; of `Labels` it reads some where it can."""
    if labels is None:
        return False
    some = np.linspace(0, len(labels) - 1, 64).astype(int)
    return bool((labels[some] != NO_LABEL).any()) or len(known(labels)) > 0


class Labels(Sequence):
    """Labels that are read when they are asked for: a record each, image and all.

    Args:
      read: index -> label; called from several threads. A Refusal of it is passed on;
        anything else that it raises is damage: such an image has no label.
      names: of the images; a sequence.
      classes: names of the labels, perhaps none.
      threads: that read at once.
      broken: takes index -> error of what is damaged.
    """

    def __init__(
        self,
        read: Callable[[int], int],
        names: Sequence[str],
        classes: Sequence[str],
        threads: int,
        broken: Callable[[int, Exception], None],
    ):
        self._read, self._names, self._classes = read, names, classes
        self._threads, self._broken, self._all = threads, broken, None

    def __len__(self):
        return len(self._names)

    def __getitem__(self, index):
        if np.ndim(index) == 0:
            if not 0 <= index < len(self):
                raise IndexError(index)
            return int(self[np.array([index])][0])
        index = np.asarray(index)
        if self._all is not None:
            return self._all[index]
        rows = index.tolist()
        with ThreadPoolExecutor(self._threads) as threads:
            found = np.array(list(threads.map(self._one, rows)), np.int64)
        return checked(
            found, len(rows), self._classes, name=lambda i: self._names[rows[i]]
        )

    def __array__(self, dtype=None, copy=None):
        if self._all is None:
            self._all = self[np.arange(len(self))]
        return self._all.astype(dtype or np.int64)

    def _one(self, index):
        try:
            return self._read(index)
        except Refusal:
            raise
        except Exception as error:  # whatever a damaged record makes its reader raise
            self._broken(index, error)
            return NO_LABEL
