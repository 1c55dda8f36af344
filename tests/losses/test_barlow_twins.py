"""Barlow Twins against plain NumPy, the authors' convention, one device and many."""

import itertools
from functools import partial

import chex
import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.losses import (
    AUTO,
    BOTH_FORMS,
    EXPLICIT,
    assert_close,
    embeddings,
    make_mesh,
)
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from vicreg_jax import losses

# Rounding of float32 sums in another order.
SAME = 2e-6


def total(*views, **options):
    terms = losses.barlow_twins(*views, **options)
    return terms.on_diagonal + 0.0051 * terms.off_diagonal, terms


def published(*views, **options):
    loss = jax.grad(partial(total, **options), tuple(range(len(views))), has_aux=True)
    gradients, terms = loss(*views)
    return terms, gradients


compiled = jax.jit(published)


def in_numpy(a, b, eps):
    """States the published formula without any of our tricks, in float64."""
    n, d = a.shape
    a, b = ((z - z.mean(axis=0)) / np.sqrt(z.var(axis=0) + eps) for z in (a, b))
    c = a.T @ b / n
    on = np.sum((np.diag(c) - 1) ** 2)
    return on, np.sum(c[~np.eye(d, dtype=bool)] ** 2)


@hypothesis.settings(max_examples=30, deadline=None, derandomize=True)
@hypothesis.given(
    shape=st.sampled_from([(2, 1), (2, 9), (3, 40), (8, 8), (9, 8), (40, 3)]),
    views=st.integers(2, 4),
    scale=st.floats(-1, 3).map(lambda x: 10**x),
    seed=st.integers(0, 2**32 - 1),
)
def test_terms_are_the_plain_formulas(shape, views, scale, seed):
    z = np.random.default_rng(seed).normal(3, size=(views, *shape)) * scale
    pairs = [in_numpy(a, b, 1e-5) for a, b in itertools.combinations(z, 2)]
    want = losses.BarlowTwinsTerms(*np.mean(pairs, axis=0))
    with jax.enable_x64(True):
        got = jax.jit(losses.barlow_twins)(*jnp.asarray(z))
    # What is off the diagonal is a difference of sums as large as the diagonal's.
    chex.assert_trees_all_close(got, want, rtol=1e-9, atol=1e-10 * shape[1])


@BOTH_FORMS
def test_the_authors_code_gives_the_same_loss_and_gradient(n, d):
    torch = pytest.importorskip("torch", reason="needs PyTorch")
    a, b = (np.asarray(z, np.float64) for z in embeddings(n, d))
    ours, theirs = (jnp.asarray(z, jnp.float32) for z in (a, b)), []
    for z in (a, b):
        theirs.append(torch.tensor(z, requires_grad=True))
    norm = torch.nn.BatchNorm1d(d, affine=False).double()
    c = norm(theirs[0]).T @ norm(theirs[1]) / n
    on = (torch.diagonal(c) - 1).pow(2).sum()
    off = c.pow(2).sum() - torch.diagonal(c).pow(2).sum()
    (on + 0.0051 * off).backward()
    terms, gradients = compiled(*ours)
    want = losses.BarlowTwinsTerms(jnp.float32(on.item()), jnp.float32(off.item()))
    assert_close(terms, want, SAME)
    wanted = tuple(jnp.asarray(z.grad.numpy(), jnp.float32) for z in theirs)
    # A gradient is orthogonal to its embeddings: it keeps fewer digits.
    assert_close(gradients, wanted, 1e-5)


@pytest.mark.parametrize("n, d", [(3, 5), (5, 3)])
def test_first_and_second_derivatives_are_the_finite_differences(n, d, float64):
    loss = jax.jit(lambda *views: total(*views)[0])
    # Central differences: off by the square of the step, and by 1e-16 over the step.
    check_grads(loss, embeddings(n, d), order=2, modes=["rev"], rtol=1e-5, eps=1e-5)


@pytest.mark.parametrize("n, d", [(16, 24), (24, 20)])
def test_masked_rows_do_not_exist(n, d):
    where = jnp.arange(n) % 3 != 1
    views = [jnp.where(where[:, None], z, jnp.nan) for z in embeddings(n, d)]
    terms, gradients = compiled(*views, where=where)
    want = compiled(*(z[where] for z in views))
    assert_close((terms, tuple(g[where] for g in gradients)), want, 1e-5)
    assert not any(np.any(g[~where]) for g in gradients)


@BOTH_FORMS
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_a_sharded_batch_gives_the_numbers_of_one_device(kind, n, d):
    views = embeddings(n, d)
    split = jax.device_put(views, NamedSharding(make_mesh(kind=kind), P("data")))
    # The gradient is a difference of sums ten times as large.
    assert_close(compiled(*split), compiled(*views), 1e-5)


@BOTH_FORMS
def test_inside_shard_map_it_is_that_of_the_global_batch(n, d):
    views, mesh = embeddings(n, d), make_mesh()
    mapped = jax.shard_map(
        partial(published, axis_name="data"),
        mesh=mesh,
        in_specs=P("data"),
        out_specs=(P(), P("data")),
    )
    assert_close(jax.jit(mapped)(*views), compiled(*views), 1e-5)


def test_no_square_of_the_dimensions_is_made_where_rows_are_fewer():
    views = jnp.zeros((2, 8, 512))
    text = str(jax.make_jaxpr(published)(*views))
    assert "512,512" not in text and "8,8" in text


def test_bad_embeddings_are_refused():
    z = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="compares two or more views; got 1"):
        losses.barlow_twins(z)
    with pytest.raises(ValueError, match=r"one shape; got \(4, 3\) and \(4, 2\)"):
        losses.barlow_twins(z, z[:, :2])


def test_a_batch_whose_square_has_more_than_32_bits():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 50_000, 3))
    found = losses.barlow_twins(
        jnp.asarray(a, jnp.float32), jnp.asarray(b, jnp.float32)
    )
    scaled = [(x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5) for x in (a, b)]
    cross = scaled[0].T @ scaled[1] / 50_000
    off = np.sum(cross**2) - np.sum(np.diag(cross) ** 2)
    assert float(found.off_diagonal) == pytest.approx(off, rel=1e-3)
