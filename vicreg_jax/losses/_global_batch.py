"""Rows of all devices: what every loss needs to be that of the global batch.

Nothing here knows a loss.
"""

import itertools
import operator
from functools import reduce

import jax
import jax.numpy as jnp
from jax.sharding import AxisType, NamedSharding, PartitionSpec

__all__ = [
    "AxisName",
    "centred",
    "checked",
    "count",
    "degrees",
    "device_count",
    "dot",
    "gathered",
    "global_ones",
    "mean_of",
    "over_devices",
    "pairs",
    "split_rows",
    "valid",
]

AxisName = str | tuple[str, ...]


def checked(views, where, axis_name):
    """Returns the views as [n, d] of one float dtype, at least float32, and `where`."""
    views = [jnp.asarray(z) for z in views]
    shape = views[0].shape
    if any(z.shape != shape for z in views) or len(shape) != 2:
        found = " and ".join(str(z.shape) for z in views)
        raise ValueError(f"expected embeddings [n, d] of one shape; got {found}")
    if not all(jnp.issubdtype(z.dtype, jnp.floating) for z in views):
        found = " and ".join(str(z.dtype) for z in views)
        raise ValueError(f"expected embeddings of a float dtype; got {found}")
    if shape[0] * device_count(axis_name) < 2 or shape[1] < 1:
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


def global_ones(views, global_views):
    """Returns the views but the local ones, which follow them."""
    if global_views is not None and not 1 <= global_views <= len(views):
        raise ValueError(
            f"of {len(views)} views one or more are global; got global_views"
            f" {global_views}"
        )
    return views[:global_views]


def pairs(views, global_views):
    """Returns the unordered pairs of views, but those of two local ones."""
    first = len(global_ones(views, global_views))
    found = itertools.combinations(range(len(views)), 2)
    return [(views[i], views[j]) for i, j in found if i < first]


def mean_of(terms):
    return reduce(operator.add, terms) / len(terms)


def valid(z, where):
    return z if where is None else jnp.where(where[:, None], z, 0)


def device_count(axis_name):
    return 1 if axis_name is None else jax.lax.psum(1, axis_name)


def over_devices(x, axis_name):
    return x if axis_name is None else jax.lax.psum(x, axis_name)


def count(z, where, axis_name):
    """Returns the number of rows of the global batch that count, a float.

    An integer of Python's would be one of 32 bits, which its square may not fit.
    """
    if where is None:
        return float(z.shape[0] * device_count(axis_name))
    n = over_devices(jnp.sum(where, dtype=z.dtype), axis_name)
    return jnp.maximum(n, 1)


def degrees(n):
    """Returns n - 1, at least one, so that a fully masked batch stays finite."""
    return n - 1 if isinstance(n, float) else jnp.maximum(n - 1, 1)


def centred(z, where, axis_name):
    """Returns z minus the mean of the rows that count (others 0), and their number."""
    n = count(z, where, axis_name)
    total = jnp.sum(valid(z, where), axis=0, keepdims=True)
    mean = over_devices(total, axis_name) / n
    return valid(z - mean, where), n


def dot(a, b, *, spec=None):
    """Returns a @ b in full precision; the default is TF32 on GPUs, bf16 on TPUs."""
    mesh = jax.typeof(a).sharding.mesh
    out = None if spec is None or not _explicit(mesh) else NamedSharding(mesh, spec)
    return jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST, out_sharding=out)


def _explicit(mesh):
    return AxisType.Explicit in mesh.axis_types


def gathered(z, axis_name):
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


def split_rows(x):
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
