"""Barlow Twins: the cross-correlation of two views against the identity."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vicreg_jax.losses._global_batch import (
    AxisName,
    centred,
    checked,
    device_count,
    dot,
    gathered,
    mean_of,
    over_devices,
    pairs,
    split_rows,
)

__all__ = ["BarlowTwinsTerms", "barlow_twins"]


@flax.struct.dataclass
class BarlowTwinsTerms:
    """The two terms of Barlow Twins, unweighted: scalars of float32 (float64 stays)."""

    on_diagonal: jax.Array
    off_diagonal: jax.Array


def barlow_twins(
    *views: jax.Array,
    eps: float = 1e-5,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    global_views: int | None = None,
) -> BarlowTwinsTerms:
    """Returns the terms of Barlow Twins for two or more batches of embeddings.

    The published loss is `on_diagonal + 0.0051 * off_diagonal`. With the
    cross-correlation C [d, d] of two views over the batch, these are the sums of
    (1 - C_jj)^2 and of the squares of all other C_jk.

    As ||A'B||^2 = <AA', BB'>, for n <= d two n x n Gram matrices give the second sum
    from fewer operations and without a d x d matrix: see `covariance`, whose exactness
    on a mesh this shares.

    Args:
      *views: two or more arrays [n, d] of any float dtype; half precision is computed
        in float32. Row i of each is a view of example i.
      eps: added to the variance of each dimension before the root, in squared units of
        the embedding.
      where, axis_name, global_views: see `vicreg`.

    Raises:
      ValueError: fewer than two views, shapes that differ or are not [n >= 2, d],
        integers, or a `where` that is not bool [n].

    Source: arXiv:2103.03230, eq. 1 and 2, with the conventions of the authors' code: a
    dimension is divided by the root of its biased variance plus 1e-5, as their
    BatchNorm does, where the text has neither. With more than two views both terms are
    means over pairs.

    >>> import jax.numpy as jnp
    >>> z = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> terms = barlow_twins(z, -z)
    >>> print(f"{terms.on_diagonal:.2f} {terms.off_diagonal:.2f}")
    8.00 0.00
    """
    if len(views) < 2:
        raise ValueError(f"Barlow Twins compares two or more views; got {len(views)}")
    views, where = checked(views, where, axis_name)
    scaled = []
    for z in views:
        z, n = centred(z, where, axis_name)
        var = over_devices(jnp.sum(z**2, axis=0, keepdims=True), axis_name) / n
        scaled.append(z / jnp.sqrt(var + eps))
    on, off = [], []
    for a, b in pairs(scaled, global_views):
        diagonal = over_devices(jnp.sum(a * b, axis=0), axis_name) / n
        on.append(jnp.sum((1 - diagonal) ** 2))
        off.append(over_devices(_off_diagonal(a, b, axis_name), axis_name) / n**2)
    return BarlowTwinsTerms(mean_of(on), mean_of(off))


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _off_diagonal(a, b, axis_name):
    """Returns this device's share of the sum of (a'b)_jk^2 over j != k; see `vicreg`.

    As there, the gradient is that of the whole sum.
    """
    return _off_diagonal_forward(a, b, axis_name)[0]


def _off_diagonal_forward(a, b, axis_name):
    rows, d = a.shape[0] * device_count(axis_name), a.shape[1]
    if rows <= d:
        everyone = gathered(a, axis_name), gathered(b, axis_name)  # [rows, d]
        grams = [  # [n, rows]
            split_rows(dot(z, all_z.T))
            for z, all_z in zip((a, b), everyone, strict=True)
        ]
        own = jnp.sum(a * b, axis=0, keepdims=True)  # [1, d]
        diagonal = over_devices(own, axis_name)
        share = jnp.sum(grams[0] * grams[1]) - jnp.sum(diagonal * own)
        return share, (a, b, grams, everyone, diagonal)
    own = dot(a.T, b, spec=PartitionSpec())  # [d, d]
    cross = jnp.where(jnp.eye(d, dtype=bool), 0, over_devices(own, axis_name))
    return jnp.sum(cross * own), (a, b, cross, None, None)


def _off_diagonal_backward(axis_name, residuals, cotangent):
    a, b, products, everyone, diagonal = residuals
    if everyone is None:
        spec = jax.typeof(a).sharding.spec
        towards_a = dot(b, products.T, spec=spec)
        towards_b = dot(a, products, spec=spec)
    else:
        towards_a = dot(products[1], everyone[0]) - b * diagonal
        towards_b = dot(products[0], everyone[1]) - a * diagonal
    return tuple(split_rows(2 * cotangent * g) for g in (towards_a, towards_b))


_off_diagonal.defvjp(_off_diagonal_forward, _off_diagonal_backward)
