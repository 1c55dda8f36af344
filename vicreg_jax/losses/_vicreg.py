"""Variance, invariance and covariance of embeddings, and their published sum."""

from functools import partial

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from vicreg_jax.losses._global_batch import (
    AxisName,
    centred,
    checked,
    count,
    degrees,
    device_count,
    dot,
    gathered,
    mean_of,
    over_devices,
    pairs,
    split_rows,
    valid,
)

__all__ = ["VicregTerms", "covariance", "invariance", "variance", "vicreg"]


@flax.struct.dataclass
class VicregTerms:
    """The three terms of VICReg, unweighted: scalars of float32 (float64 stays).

    All are >= 0, but for the rounding of the covariance of exactly white embeddings.
    """

    invariance: jax.Array
    variance: jax.Array
    covariance: jax.Array


def vicreg(
    *views: jax.Array,
    gamma: float = 1.0,
    eps: float = 1e-4,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    global_views: int | None = None,
) -> VicregTerms:
    """Returns the terms of VICReg for two or more batches of embeddings.

    The published loss is `25 * invariance + 25 * variance + 1 * covariance`.

    Call it anywhere: eagerly, under jit on one device, under jit on a batch that is
    sharded over a mesh, or inside shard_map or pmap with `axis_name`. The statistics
    are always those of the global batch. Gradients are reverse mode only. (jit sees
    the mesh of arguments that are placed on it; `in_shardings` alone does not tell.)

    Args:
      *views: two or more arrays [n, d] of any float dtype; half precision is computed
        in float32. Row i of each is a view of example i.
      gamma: standard deviation asked of every dimension, in units of the embedding.
      eps: added to the variance before the root, in squared units of the embedding.
      where: bool [n], true for the rows that count. The others may hold anything.
        With fewer than two such rows the statistics are taken to be zero.
      axis_name: inside shard_map or pmap, the mapped axis or axes that the rows are
        split over. With `check_vma=False` or pmap, average the gradients of
        parameters over the devices, as data-parallel training does.
      global_views: how many of the views, the first ones, show most of their images;
        by default all. No two of the others, local ones, are compared.

    Raises:
      ValueError: fewer than two views, shapes that differ or are not [n >= 2, d],
        integers, a `where` that is not bool [n], or no global view.

    Source: arXiv:2105.04906, eq. 1 to 5, with the scaling of the authors' code, which
    the text of the paper does not state: the invariance is averaged over d as well as
    over n, and the variance is averaged over the two views where eq. 6 adds them,
    while the covariance is added as in the paper. A recipe of a library that adds the
    variances (solo-learn, the paper's Algorithm 1) needs twice its weight here: its
    25 is our 50. With more than two views the invariance is the mean over pairs, the
    variance the mean over views and the covariance twice the mean over views, so that
    two views give the published numbers. With local views the pairs are those of a
    global view and any other (arXiv:2104.14294, eq. 3; here each pair counts once, as
    the distance is the same in both orders); the other two terms are of all views.

    >>> z = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> terms = vicreg(z, -z)
    >>> print(f"{terms.invariance:.4f} {terms.variance:.4f} {terms.covariance:.4f}")
    2.0000 0.1834 0.0000
    """
    if len(views) < 2:
        raise ValueError(f"VICReg compares two or more views; got {len(views)}")
    views, where = checked(views, where, axis_name)
    options = dict(where=where, axis_name=axis_name)
    spread = [variance(z, gamma=gamma, eps=eps, **options) for z in views]
    overlap = [covariance(z, **options) for z in views]
    return VicregTerms(
        invariance=invariance(*views, global_views=global_views, **options),
        variance=mean_of(spread),
        covariance=2 * mean_of(overlap),
    )


def invariance(
    *views: jax.Array,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
    global_views: int | None = None,
) -> jax.Array:
    """Returns the squared distance of the views, averaged over pairs, rows and d.

    Args, Raises, Source: see `vicreg` (eq. 5, divided by d).

    >>> a, b = jnp.array([[1.0, 0.0], [0.0, 1.0]]), jnp.zeros((2, 2))
    >>> print(f"{invariance(a, b):.2f} {invariance(a, b, b):.2f}")
    0.50 0.33
    """
    if len(views) < 2:
        raise ValueError(f"invariance compares two or more views; got {len(views)}")
    views, where = checked(views, where, axis_name)
    n, d = count(views[0], where, axis_name), views[0].shape[1]
    distances = []
    for a, b in pairs(views, global_views):
        squares = jnp.square(valid(a - b, where))
        distances.append(over_devices(jnp.sum(squares), axis_name) / (n * d))
    return mean_of(distances)


def variance(
    z: jax.Array,
    *,
    gamma: float = 1.0,
    eps: float = 1e-4,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Returns how far the standard deviations fall short of gamma, averaged over d.

    Args, Raises: see `vicreg`. Source: eq. 1 and 2 for one batch [n, d]; the variance
    is the unbiased one, and the hinge max(0, gamma - sqrt(var + eps)).

    >>> z = jnp.array([[0.3, 2.0], [-0.3, -2.0], [0.3, 2.0], [-0.3, -2.0]])
    >>> print(f"{variance(z):.4f}")  # (1 - 0.3 * sqrt(4 / 3)) / 2: column 1 is wide
    0.3267
    """
    (z,), where = checked((z,), where, axis_name)
    z, n = centred(z, where, axis_name)
    var = over_devices(jnp.sum(z**2, axis=0), axis_name) / degrees(n)
    return jnp.mean(jax.nn.relu(gamma - jnp.sqrt(var + eps)))


def covariance(
    z: jax.Array,
    *,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Returns the sum of the squared off-diagonal covariances, divided by d.

    Args, Raises: see `vicreg`. Source: eq. 3 and 4 for one batch [n, d]. Uncorrelated
    Gaussian embeddings of unit variance give (d - 1) / (n - 1), not zero.

    With centred Z [n, d], ||Z'Z|| = ||ZZ'|| (arXiv:2206.02574 and 2310.02903 use it):
    for n <= d the n x n Gram matrix gives the same number from fewer operations and
    without a d x d matrix. With the gradient, 4 n d min(n, d) FLOPs and min(n, d)^2
    numbers are needed in either case. On a mesh every device computes the Gram rows of
    its own examples against the gathered batch, and the backward pass needs no
    communication.

    >>> z = jnp.array([[1.0, 0.0], [-1.0, 0.0], [0.0, 1.0], [0.0, -1.0]])
    >>> print(f"{covariance(z):.4f} {covariance(z.at[:, 1].set(z[:, 0])):.4f}")
    0.0000 0.4444
    """
    (z,), where = checked((z,), where, axis_name)
    return over_devices(_covariance(z, where, axis_name), axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _covariance(z, where, axis_name):
    """Returns this device's share of the covariance term; the shares add up to it.

    The gradient is that of the whole term, though: it belongs to a sum over devices,
    whose transpose hands every share the same cotangent.
    """
    return _covariance_forward(z, where, axis_name)[0]


def _covariance_forward(z, where, axis_name):
    z, n = centred(z, where, axis_name)
    rows, d = z.shape[0] * device_count(axis_name), z.shape[1]
    scale = 1 / (degrees(n) ** 2 * d)
    if rows <= d:
        everyone = gathered(z, axis_name)  # [rows, d]
        gram = split_rows(dot(z, everyone.T))  # [n, rows]
        own = jnp.sum(z**2, axis=0, keepdims=True)  # [1, d]
        squares = over_devices(own, axis_name)
        share = scale * (jnp.sum(gram**2) - jnp.sum(squares * own))
        return share, (scale, z, gram, everyone, squares)
    own = dot(z.T, z, spec=PartitionSpec())  # [d, d]
    diagonal = jnp.eye(d, dtype=bool)
    cross = jnp.where(diagonal, 0, over_devices(own, axis_name))
    return scale * jnp.sum(cross * own), (scale, z, cross, None, None)


def _covariance_backward(axis_name, residuals, cotangent):
    # The mean over rows of the result is zero, so it is the gradient with respect to
    # the embeddings before centring, too.
    scale, z, products, everyone, squares = residuals
    if everyone is None:
        gradient = dot(z, products, spec=jax.typeof(z).sharding.spec)
    else:
        gradient = dot(products, everyone) - z * squares
    return split_rows(4 * scale * cotangent * gradient), None


_covariance.defvjp(_covariance_forward, _covariance_backward)
