"""The handwritten digits that come with scikit-learn, in splits drawn once for all."""

import numpy as np

from vicreg_jax.data import plan
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.refusals import require

__all__ = ["load_digits"]


def load_digits(*, validation: bool = False) -> Splits:
    """Returns scikit-learn's handwritten digits: 1,797 grey images, 8 x 8, 10 classes.

    Bundled real data, no download: 1,437 for training and 360 for the test, drawn once
    for all. With `validation`, for choosing hyperparameters: the training split
    without its first 360 images, and those 360 in place of the test split.

    Raises:
      NotInstalled: scikit-learn is not installed.
    """
    datasets = require(
        "sklearn.datasets", "data.name=digits", install="vicreg_jax[demo]"
    )
    data = datasets.load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    order = plan.permutation(0, 0, len(images))
    test, train = order[:360], order[360:]
    if validation:
        test, train = train[:360], train[360:]
    return Splits(
        Arrays(images[train], data.target[train]),
        Arrays(images[test], data.target[test]),
    )
