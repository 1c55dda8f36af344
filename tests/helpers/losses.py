"""Embeddings, meshes and comparisons for tests of losses."""

from functools import partial

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh
from jax.sharding import PartitionSpec as P

from vicreg_jax import losses

AUTO, EXPLICIT = AxisType.Auto, AxisType.Explicit
BOTH_FORMS = pytest.mark.parametrize("n, d", [(16, 24), (24, 16)])  # Gram, direct


def embeddings(n, d, *, views=2, seed=0):
    z = np.random.default_rng(seed).normal(scale=0.5, size=(views, n, d))
    return tuple(jnp.asarray(z))


def total(*views, **options):
    terms = losses.vicreg(*views, **options)
    return 25 * terms.invariance + 25 * terms.variance + terms.covariance, terms


def published(*views, **options):
    """Returns the terms and the gradients of the published loss."""
    loss = jax.grad(partial(total, **options), tuple(range(len(views))), has_aux=True)
    gradients, terms = loss(*views)
    return terms, gradients


def assert_close(got, want, tolerance):
    """Compares every leaf by its L2 distance, relative to the norm of the wanted."""
    chex.assert_trees_all_equal_shapes_and_dtypes(got, want)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        a, b = np.asarray(a, np.float64), np.asarray(b, np.float64)
        distance = np.linalg.norm(a - b)
        assert distance <= tolerance * np.linalg.norm(b), (distance, np.linalg.norm(b))


def make_mesh(sizes=(8,), kind=AUTO):
    axes = ("data", "model")[: len(sizes)]
    if kind == EXPLICIT:
        return jax.make_mesh(sizes, axes)  # explicit is what JAX makes if not asked
    return Mesh(np.reshape(jax.devices(), sizes), axes, axis_types=(kind,) * len(axes))


def per_device(function, mesh, axis, *, check_vma):
    rows = P(axis)
    return jax.jit(
        jax.shard_map(
            partial(function, axis_name=axis),
            mesh=mesh,
            in_specs=rows,
            out_specs=(P(), rows),
            check_vma=check_vma,
        )
    )
