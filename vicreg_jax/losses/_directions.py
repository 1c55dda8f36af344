"""Losses that see only the directions of embeddings: agreement, and the NT-Xent."""

import flax.struct
import jax
import jax.numpy as jnp

from vicreg_jax.losses._global_batch import (
    AxisName,
    checked,
    device_count,
    dot,
    gathered,
    mean_of,
    over_devices,
    pairs,
    split_rows,
)

__all__ = ["SimclrTerms", "agreement", "simclr", "unit"]


@flax.struct.dataclass
class SimclrTerms:
    """The one term of SimCLR: a scalar of float32 (float64 stays)."""

    contrast: jax.Array


def unit(z: jax.Array) -> jax.Array:
    """Returns the rows of z [n, d] divided by their norms, or by 1e-6 below that."""
    squares = jnp.sum(z**2, axis=-1, keepdims=True)
    return z * jax.lax.rsqrt(jnp.maximum(squares, 1e-12))


def agreement(
    a: jax.Array, b: jax.Array, *, axis_name: AxisName | None = None
) -> jax.Array:
    """Returns the cosine of row i of a and row i of b, averaged over the batch.

    It is what SimSiam (arXiv:2011.10566, eq. 1) and BYOL (arXiv:2006.07733, eq. 2)
    maximize; which of the two gets a gradient is the caller's to say.

    Args:
      a, b: [n, d] of any float dtype; half precision is computed in float32.
      axis_name: see `vicreg`.

    Raises:
      ValueError: shapes that differ or are not [n >= 2, d], or integers.

    >>> a = jnp.array([[1.0, 0.0], [0.0, 2.0]])
    >>> print(f"{agreement(a, a):.2f} {agreement(a, jnp.ones((2, 2))):.2f}")
    1.00 0.71
    """
    (a, b), _ = checked((a, b), None, axis_name)
    n = a.shape[0] * device_count(axis_name)
    return over_devices(jnp.sum(unit(a) * unit(b)), axis_name) / n


def simclr(
    *views: jax.Array,
    temperature: float = 0.1,
    axis_name: AxisName | None = None,
    global_views: int | None = None,
) -> SimclrTerms:
    """Returns the NT-Xent of two or more batches of embeddings.

    With two views, each of the 2n embeddings has to be told from the other 2n - 1 which
    is the other view of its example: the cross-entropy of the cosines divided by the
    temperature, averaged over the 2n. The others are those of the global batch.

    Args:
      *views: two or more arrays [n, d] of any float dtype; half precision is computed
        in float32. Row i of each is a view of example i.
      temperature: of the softmax.
      axis_name, global_views: see `vicreg`.

    Raises:
      ValueError: fewer than two views, shapes that differ or are not [n >= 2, d], or
        integers.

    Source: arXiv:2002.05709, eq. 1, with the temperature of its runs on ImageNet. With
    more than two views it is the mean over pairs.

    >>> z = jnp.eye(2)
    >>> print(f"{simclr(z, z, temperature=1.0).contrast:.4f}")  # log(1 + 2 / e)
    0.5514
    """
    if len(views) < 2:
        raise ValueError(f"SimCLR compares two or more views; got {len(views)}")
    views, _ = checked(views, None, axis_name)
    found = pairs([unit(z) for z in views], global_views)
    return SimclrTerms(mean_of([_contrast(*p, temperature, axis_name) for p in found]))


def _contrast(a, b, temperature, axis_name):
    everyone = [gathered(z, axis_name) for z in (a, b)]
    n, rows = a.shape[0], everyone[0].shape[0]
    first = 0 if axis_name is None else n * jax.lax.axis_index(axis_name)
    own = first + jnp.arange(n)[:, None] == jnp.arange(rows)[None]
    positive = jnp.sum(a * b, axis=1) / temperature
    total = jnp.zeros([], a.dtype)
    for z, same, other in ((a, *everyone), (b, *everyone[::-1])):
        others = split_rows(dot(z, same.T)) / temperature  # [n, rows]
        others = jnp.where(own, -jnp.inf, others)
        aims = split_rows(dot(z, other.T)) / temperature
        both = jnp.logaddexp(
            jax.nn.logsumexp(others, axis=1), jax.nn.logsumexp(aims, axis=1)
        )
        total += jnp.sum(both - positive)
    return over_devices(total, axis_name) / (2 * rows)
