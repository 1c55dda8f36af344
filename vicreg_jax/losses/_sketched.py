"""Losses that look at embeddings along random directions: SIGReg and VISReg."""

from statistics import NormalDist

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax.losses._directions import unit
from vicreg_jax.losses._global_batch import (
    AxisName,
    centred,
    checked,
    count,
    device_count,
    dot,
    gathered,
    global_ones,
    mean_of,
    over_devices,
    split_rows,
)

__all__ = ["SigregTerms", "VisregTerms", "sigreg", "visreg"]

# Half of the 17 knots on [-5, 5]: what is integrated is even.
KNOTS = np.linspace(0, 5, 9)


@flax.struct.dataclass
class SigregTerms:
    """The two terms of LeJEPA, unweighted: scalars of float32 (float64 stays)."""

    prediction: jax.Array
    sigreg: jax.Array


@flax.struct.dataclass
class VisregTerms:
    """The four terms of VISReg, unweighted: scalars of float32 (float64 stays)."""

    prediction: jax.Array
    scale: jax.Array
    shape: jax.Array
    center: jax.Array


def sigreg(
    *views: jax.Array,
    key: jax.Array,
    slices: int = 1024,
    axis_name: AxisName | None = None,
    global_views: int | None = None,
) -> SigregTerms:
    """Returns the terms of LeJEPA for one or more batches of embeddings.

    The published loss is `0.95 * prediction + 0.05 * sigreg`. The first is the squared
    distance of the views from the mean of the global ones (0 for one view); the second
    asks that the embeddings be N(0, 1) along every direction: the integral over t of
    |f(t) - g(t)|^2 g(t), times n, where f is the characteristic function of what the
    batch is along a direction and g(t) = exp(-t^2 / 2) that of N(0, 1), averaged over
    random directions.

    Args:
      *views: arrays [n, d] of any float dtype; half precision is computed in float32.
        Row i of each is a view of example i.
      key: of the directions, a new one for each step. All views share them.
      slices: how many directions.
      axis_name, global_views: see `vicreg`.

    Raises:
      ValueError: shapes that differ or are not [n >= 2, d], or integers.

    Source: arXiv:2511.08544, algorithms 1 and 2, with the 1024 directions and the
    weights that its section 6.1 recommends: 17 knots on [-5, 5], the distance averaged
    over d, which its eq. 5 adds up.

    >>> z = jnp.array([[1.0], [-1.0]])  # f = cos in both directions
    >>> terms = sigreg(z, z, key=jax.random.key(0))
    >>> print(f"{terms.prediction:.2f} {terms.sigreg:.3f}")
    0.00 0.219
    """
    views, _ = checked(views, None, axis_name)
    a = _directions(key, slices, views[0])
    statistics = [_epps_pulley(z, a, axis_name) for z in views]
    return SigregTerms(_prediction(views, global_views, axis_name), mean_of(statistics))


def visreg(
    *views: jax.Array,
    key: jax.Array,
    slices: int = 4096,
    eps: float = 1e-6,
    axis_name: AxisName | None = None,
    global_views: int | None = None,
) -> VisregTerms:
    """Returns the terms of VISReg for one or more batches of embeddings.

    The published loss is `0.1 * prediction + 0.9 * (scale + shape + center)`. The first
    is that of `sigreg`; "scale" is (1 - std)^2 averaged over dimensions, "center" the
    mean squared. "shape" compares the batch along random directions with N(0, 1): the
    squared distance of what is sorted from the quantiles i / (n + 1), after each
    dimension was divided by its standard deviation, which gets no gradient from it.

    On a mesh each device sorts its share of the directions, of the gathered batch;
    inside shard_map every device sorts them all.

    Args:
      *views, key, slices, axis_name, global_views: see `sigreg`.
      eps: the least standard deviation, in units of the embedding. (The paper has one
        and gives no value.)

    Raises:
      ValueError: see `sigreg`.

    Source: arXiv:2606.02572, eq. 1 to 9 as its algorithm 1 scales them: biased standard
    deviations, and means over n and d where eq. 5 and 6 have sums; the directions and
    weights are those of its runs on ImageNet-1k. For small data it recommends 0.4 and
    0.6.

    >>> z = jnp.array([[3.0], [-1.0]])  # mean 1, std 2; quantiles -0.431 and 0.431
    >>> terms = visreg(z, z, key=jax.random.key(0))
    >>> print(f"{terms.scale:.2f} {terms.shape:.3f} {terms.center:.2f}")
    1.00 0.324 1.00
    """
    views, _ = checked(views, None, axis_name)
    a = _directions(key, slices, views[0])
    center, scale, shape = [], [], []
    for z in views:
        spread, n = centred(z, None, axis_name)
        mean = over_devices(jnp.sum(z, axis=0), axis_name) / n
        var = over_devices(jnp.sum(spread**2, axis=0, keepdims=True), axis_name) / n
        std = jnp.sqrt(jnp.maximum(var, eps**2))
        center.append(jnp.mean(mean**2))
        scale.append(jnp.mean((1 - std) ** 2))
        shape.append(_wasserstein(spread / jax.lax.stop_gradient(std), a, axis_name))
    terms = map(mean_of, (scale, shape, center))
    return VisregTerms(_prediction(views, global_views, axis_name), *terms)


def _directions(key, slices, z):
    """Returns [slices, d] of length 1, the same whatever the dtype and the devices."""
    a = jax.random.normal(key, (slices, z.shape[1]), jnp.float32)
    return unit(a.astype(z.dtype))


def _prediction(views, global_views, axis_name):
    n, mean = (
        count(views[0], None, axis_name),
        mean_of(global_ones(views, global_views)),
    )
    squares = mean_of([jnp.sum((z - mean) ** 2) for z in views])
    return over_devices(squares, axis_name) / (n * mean.shape[1])


def _epps_pulley(z, a, axis_name):
    n, knots = count(z, None, axis_name), jnp.asarray(KNOTS, z.dtype)
    p = split_rows(dot(z, a.T))  # [n, slices]

    @jax.checkpoint  # nothing of knots x n x slices is kept, nor made at once
    def wave(t):
        return jnp.sum(jnp.cos(t * p), axis=0), jnp.sum(jnp.sin(t * p), axis=0)

    sums = jax.lax.map(wave, knots)  # [knots, slices] each
    cos, sin = (over_devices(x, axis_name) / n for x in sums)
    normal = jnp.exp(-(knots[:, None] ** 2) / 2)
    error = ((cos - normal) ** 2 + sin**2) * normal
    return 2 * n * jnp.mean(jnp.trapezoid(error, dx=KNOTS[1], axis=0))


def _wasserstein(z, a, axis_name):
    # The leading axis is that of the directions: it is what the devices share.
    p = split_rows(dot(a, gathered(z, axis_name).T))  # [slices, rows]
    rows = p.shape[1]
    quantiles = [NormalDist().inv_cdf(i / (rows + 1)) for i in range(1, rows + 1)]
    squares = (jnp.sort(p, axis=1) - jnp.asarray([quantiles], p.dtype)) ** 2
    return over_devices(jnp.mean(squares), axis_name) / device_count(axis_name)
