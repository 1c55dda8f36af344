"""Shapes and numbers of modules."""

from functools import partial
from math import prod

import jax
import jax.numpy as jnp
import numpy as np


def shapes(module, *shape):
    """The variables for an input [1, *shape] without their numbers."""
    init = partial(module.init, train=False)
    return jax.eval_shape(init, jax.random.key(0), jnp.zeros((1, *shape)))


def count(tree):
    return sum(prod(x.shape) for x in jax.tree.leaves(tree))


def assert_close(got, want, tolerance):
    """Compares to the largest number, as entries near zero have no digits to lose."""
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * np.abs(want).max())


def numpy_norm(x, scale, bias):
    """The output and the statistics of a batch, in float64."""
    rows = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    mean, biased = rows.mean(0), rows.var(0)
    y = (x - mean) / np.sqrt(biased + 1e-5) * scale + bias
    return y, mean, rows.var(0, ddof=1)
