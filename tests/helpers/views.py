"""Views for a step, some of which are no numbers, and a small method."""

import jax
import jax.numpy as jnp

from vicreg_jax import methods, models

METHOD = methods.Vicreg(models.create("digits"), models.Expander((16, 16)))


def batches(n, *, bad=()):
    """n times pairs of views; some steps have a pixel that is no number."""
    views = jax.random.normal(jax.random.key(1), (n, 16, 2, 8, 8, 1))
    for i in bad:
        views = views.at[i, 5, 1, 0, 0].set(jnp.nan)
    return list(views)
