"""Self-supervised losses: pure functions of embeddings, no models, no optimizers."""

import itertools
import operator
from functools import partial, reduce

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

AxisName = str | tuple[str, ...]


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

    Raises:
      ValueError: fewer than two views, shapes that differ or are not [n >= 2, d],
        integers, or a `where` that is not bool [n].

    Source: arXiv:2105.04906, eq. 1 to 5, with the scaling of the authors' code, which
    the text of the paper does not state: the invariance is averaged over d as well as
    over n, and the variance is averaged over the two views where eq. 6 adds them,
    while the covariance is added as in the paper. A recipe of a library that adds the
    variances (solo-learn, the paper's Algorithm 1) needs twice its weight here: its
    25 is our 50. With more than two views the invariance is the mean over pairs, the
    variance the mean over views and the covariance twice the mean over views, so that
    two views give the published numbers.
    """
    if len(views) < 2:
        raise ValueError(f"VICReg compares two or more views; got {len(views)}")
    views, where = _checked(views, where, axis_name)
    options = dict(where=where, axis_name=axis_name)
    spread = [variance(z, gamma=gamma, eps=eps, **options) for z in views]
    overlap = [covariance(z, **options) for z in views]
    return VicregTerms(
        invariance=invariance(*views, **options),
        variance=_mean(spread),
        covariance=2 * _mean(overlap),
    )


def invariance(
    *views: jax.Array,
    where: jax.Array | None = None,
    axis_name: AxisName | None = None,
) -> jax.Array:
    """Returns the squared distance of the views, averaged over pairs, rows and d.

    Args, Raises, Source: see `vicreg` (eq. 5, divided by d).
    """
    if len(views) < 2:
        raise ValueError(f"invariance compares two or more views; got {len(views)}")
    views, where = _checked(views, where, axis_name)
    n, d = _count(views[0], where, axis_name), views[0].shape[1]
    distances = []
    for a, b in itertools.combinations(views, 2):
        squares = jnp.square(_valid(a - b, where))
        distances.append(_over_devices(jnp.sum(squares), axis_name) / (n * d))
    return _mean(distances)


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
    """
    (z,), where = _checked((z,), where, axis_name)
    z, n = _centred(z, where, axis_name)
    var = _over_devices(jnp.sum(z**2, axis=0), axis_name) / _degrees(n)
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
    """
    (z,), where = _checked((z,), where, axis_name)
    return _over_devices(_covariance(z, where, axis_name), axis_name)


@partial(jax.custom_vjp, nondiff_argnums=(2,))
def _covariance(z, where, axis_name):
    """Returns this device's share of the covariance term; the shares add up to it.

    The gradient is that of the whole term, though: it belongs to a sum over devices,
    whose transpose hands every share the same cotangent.
    """
    return _covariance_forward(z, where, axis_name)[0]


def _covariance_forward(z, where, axis_name):
    z, n = _centred(z, where, axis_name)
    rows, d = z.shape[0] * _devices(axis_name), z.shape[1]
    scale = 1 / (_degrees(n) ** 2 * d)
    if rows <= d:
        everyone = _gathered(z, axis_name)  # [rows, d]
        gram = _split_rows(_dot(z, everyone.T))  # [n, rows]
        own = jnp.sum(z**2, axis=0, keepdims=True)  # [1, d]
        squares = _over_devices(own, axis_name)
        share = scale * (jnp.sum(gram**2) - jnp.sum(squares * own))
        return share, (scale, z, gram, everyone, squares)
    own = _dot(z.T, z, spec=PartitionSpec())  # [d, d]
    diagonal = jnp.eye(d, dtype=bool)
    cross = jnp.where(diagonal, 0, _over_devices(own, axis_name))
    return scale * jnp.sum(cross * own), (scale, z, cross, None, None)


def _covariance_backward(axis_name, residuals, cotangent):
    # The mean over rows of the result is zero, so it is the gradient with respect to
    # the embeddings before centring, too.
    scale, z, products, everyone, squares = residuals
    if everyone is None:
        gradient = _dot(z, products, spec=jax.typeof(z).sharding.spec)
    else:
        gradient = _dot(products, everyone) - z * squares
    return _split_rows(4 * scale * cotangent * gradient), None


_covariance.defvjp(_covariance_forward, _covariance_backward)


def _checked(views, where, axis_name):
    """Returns the views as [n, d] of one float dtype, at least float32, and `where`."""
    views = [jnp.asarray(z) for z in views]
    shape = views[0].shape
    if any(z.shape != shape for z in views) or len(shape) != 2:
        found = " and ".join(str(z.shape) for z in views)
        raise ValueError(f"expected embeddings [n, d] of one shape; got {found}")
    if not all(jnp.issubdtype(z.dtype, jnp.floating) for z in views):
        found = " and ".join(str(z.dtype) for z in views)
        raise ValueError(f"expected embeddings of a float dtype; got {found}")
    if shape[0] * _devices(axis_name) < 2 or shape[1] < 1:
        raise ValueError(
            f"statistics over the batch need [n >= 2, d >= 1]; got {shape}"
        )
    if where is not None:
        where = jnp.asarray(where)
        if where.shape != shape[:1] or where.dtype != jnp.bool_:
            raise ValueError(
                f"expected where of bool [{shape[0]}]; got {where.dtype} {where.shape}"
            )
    double = any(z.dtype == jnp.float64 for z in views)
    dtype = jnp.float64 if double else jnp.float32
    return [z.astype(dtype) for z in views], where


def _mean(terms):
    return reduce(operator.add, terms) / len(terms)


def _valid(z, where):
    return z if where is None else jnp.where(where[:, None], z, 0)


def _devices(axis_name):
    return 1 if axis_name is None else jax.lax.psum(1, axis_name)


def _over_devices(x, axis_name):
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def _count(z, where, axis_name):
    """Returns the number of rows of the global batch that count."""
    if where is None:
        return z.shape[0] * _devices(axis_name)
    n = _over_devices(jnp.sum(where, dtype=z.dtype), axis_name)
    return jnp.maximum(n, 1)


def _degrees(n):
    """Returns n - 1, at least one, so that a fully masked batch stays finite."""
    return n - 1 if isinstance(n, int) else jnp.maximum(n - 1, 1)


def _centred(z, where, axis_name):
    """Returns z minus the mean of the rows that count (others 0), and their number."""
    n = _count(z, where, axis_name)
    total = jnp.sum(_valid(z, where), axis=0, keepdims=True)
    mean = _over_devices(total, axis_name) / n
    return _valid(z - mean, where), n


def _dot(a, b, *, spec=None):
    """Returns a @ b in full precision; the default is TF32 on GPUs, bf16 on TPUs."""
    mesh = jax.typeof(a).sharding.mesh
    out = None if spec is None or not _explicit(mesh) else NamedSharding(mesh, spec)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST, out_sharding=out)


def _explicit(mesh):
    return AxisType.Explicit in mesh.axis_types


def _gathered(z, axis_name):
    """Returns the rows of the global batch, on every device.

    Under jit it is the constraint that makes XLA gather once and keep the result for
    the backward pass, instead of gathering again there.
    """
    if axis_name is not None:
        return jax.lax.all_gather(z, axis_name, tiled=True)
    mesh = jax.typeof(z).sharding.mesh
    if _explicit(mesh):
        return jax.sharding.reshard(z, NamedSharding(mesh, PartitionSpec()))
    if AxisType.Auto in mesh.axis_types:
        return jax.lax.with_sharding_constraint(z, NamedSharding(mesh, PartitionSpec()))
    return z


def _split_rows(x):
    """Asks jit to split the rows of x over the mesh of its arguments, if it has one.

    Without it a batch that is whole on every device is worked on whole by every device.
    The axis has no name here: all automatic axes share the rows, whatever the user's
    mesh calls them.
    """
    mesh = jax.typeof(x).sharding.mesh
    kinds = zip(mesh.axis_names, mesh.axis_types, strict=True)
    axes = tuple(name for name, kind in kinds if kind == AxisType.Auto)
    parts = reduce(operator.mul, (mesh.shape[name] for name in axes), 1)
    if parts == 1 or x.shape[0] % parts or _explicit(mesh):
        return x
    rows = NamedSharding(mesh, PartitionSpec(axes))
    return jax.lax.with_sharding_constraint(x, rows)
