"""The losses against published numbers, plain NumPy, and one device against many."""

import contextlib
import itertools
import math
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
    per_device,
    published,
    total,
)
from helpers.paths import GOLDEN
from hypothesis import strategies as st
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from vicreg_jax import losses

CASES = [
    *itertools.product(
        ["loss.npz"],
        ["small", "tall", "wide", "square", "offset", "tiny_variance", "two_rows"],
    ),
    ("loss_large.npz", "large"),
]

# Rounding of float32 sums in another order: the worst leaf of this file has 5e-7.
SAME = 1e-6


compiled = jax.jit(published)  # one device's numbers, without minutes of eager calls


def check_golden(file, case, dtype, tolerance):
    with np.load(GOLDEN / file) as numbers:
        names = [k.split("/")[1] for k in numbers if k.split("/")[0] == case]
        want = {k: jnp.asarray(numbers[f"{case}/{k}"], dtype) for k in names}
    views = want.pop("x"), want.pop("y")
    terms, gradients = compiled(*views)
    got = {"loss": 25 * terms.invariance + 25 * terms.variance + terms.covariance}
    got |= vars(terms)
    for name, gradient in zip("xy", gradients, strict=True):
        got[f"grad_{name}"] = gradient
        got[f"grad_{name}_rows"] = gradient[:4]
        got[f"grad_{name}_norm"] = jnp.linalg.norm(gradient)
    assert_close({k: got[k] for k in want}, want, tolerance)


@pytest.mark.parametrize("file, case", CASES)
def test_official_numbers_in_float64(file, case, float64):
    check_golden(file, case, jnp.float64, 1e-10)  # 1e-15 measured: rounding alone


@pytest.mark.parametrize("file, case", CASES)
def test_official_numbers_in_float32(file, case):
    # "offset", its mean many standard deviations, keeps fewest digits: 1.4e-6 measured.
    check_golden(file, case, jnp.float32, 1e-5)


def in_numpy(*views, gamma, eps):
    """States the published formulas without any of our tricks."""
    n, d = views[0].shape
    pairs = list(itertools.combinations(views, 2))
    c = [np.cov(z, rowvar=False).reshape(d, d) for z in views]
    spread = [np.maximum(0, gamma - np.sqrt(np.diag(m) + eps)) for m in c]
    overlap = [np.sum(m[~np.eye(d, dtype=bool)] ** 2) / d for m in c]
    return losses.VicregTerms(
        invariance=sum(np.sum((a - b) ** 2) / (n * d) for a, b in pairs) / len(pairs),
        variance=np.mean(spread),
        covariance=2 * np.mean(overlap),
    )


@hypothesis.settings(max_examples=40, deadline=None, derandomize=True)
@hypothesis.given(
    shape=st.sampled_from([(2, 1), (2, 9), (3, 40), (7, 8), (8, 8), (9, 8), (40, 3)]),
    views=st.integers(2, 4),
    scale=st.floats(-4, 4).map(lambda x: 10**x),
    offset=st.sampled_from([0, 100]),
    gamma=st.floats(0.1, 10),
    eps=st.floats(-8, 0).map(lambda x: 10**x),
    seed=st.integers(0, 2**32 - 1),
)
def test_terms_are_the_plain_formulas(shape, views, scale, offset, gamma, eps, seed):
    z = np.random.default_rng(seed).normal(offset, size=(views, *shape)) * scale
    want = in_numpy(*z, gamma=gamma, eps=eps)
    with jax.enable_x64(True):
        got = jax.jit(losses.vicreg)(*jnp.asarray(z), gamma=gamma, eps=eps)
    # An offset of 100 standard deviations costs 1e4 times the 1e-16 of a rounding; the
    # hinge is a difference from gamma.
    chex.assert_trees_all_close(got.invariance, want.invariance, rtol=1e-9)
    chex.assert_trees_all_close(got.covariance, want.covariance, rtol=1e-9)
    chex.assert_trees_all_close(got.variance, want.variance, atol=1e-10 * gamma)


@pytest.mark.parametrize("n, d", [(3, 5), (5, 3)])
def test_first_and_second_derivatives_are_the_finite_differences(n, d, float64):
    loss = jax.jit(lambda *views: total(*views)[0])
    # Central differences: off by the square of the step, and by 1e-16 over the step.
    check_grads(loss, embeddings(n, d), order=2, modes=["rev"], rtol=1e-6, eps=1e-5)


@BOTH_FORMS
def test_many_views_give_the_mean_over_pairs_of_the_published_numbers(n, d):
    views = embeddings(n, d, views=4)
    for v in (views[:3], views):
        pairs = [compiled(*pair)[0] for pair in itertools.combinations(v, 2)]
        want = jax.tree.map(lambda *terms: sum(terms) / len(terms), *pairs)
        assert_close(compiled(*v)[0], want, SAME)


def test_two_views_average_the_variances_and_add_the_covariances():
    a, b = embeddings(16, 24)
    terms = losses.vicreg(a, b)
    variances, covariances = losses.variance(a), losses.covariance(a)
    variances += losses.variance(b)
    covariances += losses.covariance(b)
    assert_close(terms.variance, variances / 2, SAME)
    assert_close(terms.covariance, covariances, SAME)
    assert_close(terms.invariance, losses.invariance(a, b), SAME)


def test_every_option_reaches_the_variance():
    a, b = embeddings(16, 24)
    got = losses.vicreg(a, b, gamma=2.0, eps=0.5).variance
    want = (jnp.sqrt(jnp.var(z, axis=0, ddof=1) + 0.5) for z in (a, b))
    assert_close(got, jnp.mean(2 - jnp.stack(list(want))), SAME)


def test_vmap_over_groups_of_rows_gives_the_terms_of_each_group():
    a, b = (z.reshape(3, 8, 12) for z in embeddings(24, 12))
    want = [compiled(*pair) for pair in zip(a, b, strict=True)]
    want = jax.tree.map(lambda *leaves: jnp.stack(leaves), *want)
    assert_close(jax.jit(jax.vmap(published))(a, b), want, SAME)


# Rows that do not count.


@pytest.mark.parametrize("garbage", [7.0, np.nan, np.inf])
@pytest.mark.parametrize("n, d", [(16, 24), (24, 20), (24, 8)])  # 24 rows, 16 count
def test_masked_rows_do_not_exist(n, d, garbage):
    where = jnp.arange(n) % 3 != 1
    views = [jnp.where(where[:, None], z, garbage) for z in embeddings(n, d)]
    terms, gradients = compiled(*views, where=where)
    want = compiled(*(z[where] for z in views))
    assert_close((terms, tuple(g[where] for g in gradients)), want, SAME)
    for gradient in gradients:
        assert not np.any(gradient[~where])


@BOTH_FORMS
@pytest.mark.parametrize("rows", [0, 1])
def test_with_fewer_than_two_rows_the_statistics_are_zero(n, d, rows):
    where = jnp.arange(n) < rows
    a, b = (jnp.where(where[:, None], z, jnp.nan) for z in embeddings(n, d))
    terms, gradients = compiled(a, b, where=where)
    distance = jnp.mean((a[0] - b[0]) ** 2) if rows else jnp.float32(0)
    want = losses.VicregTerms(distance, jnp.float32(1 - 1e-4**0.5), jnp.float32(0))
    assert_close(terms, want, SAME)
    chex.assert_tree_all_finite(gradients)


# Number formats.


@BOTH_FORMS
@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_half_precision_is_computed_in_float32(n, d, dtype):
    views = [z.astype(dtype) for z in embeddings(n, d)]
    terms, gradients = compiled(*views)
    want, slopes = compiled(*(z.astype(jnp.float32) for z in views))
    assert_close(terms, want, SAME)
    # The gradient is rounded once, to the format of the embeddings.
    slopes = tuple(g.astype(dtype) for g in slopes)
    assert_close(gradients, slopes, float(jnp.finfo(dtype).eps))


def test_views_of_two_dtypes_are_computed_in_the_wider_one():
    a, b = embeddings(16, 24)
    half = a.astype(jnp.bfloat16)
    terms, (da, db) = compiled(half, b)
    assert_close(terms, compiled(half.astype(b.dtype), b)[0], SAME)
    chex.assert_type([da, db, *jax.tree.leaves(terms)], [half.dtype] + 4 * [b.dtype])


def test_float64_stays_float64(float64):
    a, b = embeddings(16, 24)
    for views in ((a, b), (a, b.astype(jnp.float32))):
        terms, gradients = compiled(*views)
        chex.assert_type(jax.tree.leaves(terms), jnp.float64)
        chex.assert_type(gradients, [z.dtype for z in views])


# Closed forms.


@BOTH_FORMS
def test_collapsed_embeddings_pay_only_for_variance(n, d):
    z = jnp.ones((n, d))
    terms, gradients = compiled(z, z)
    want = losses.VicregTerms(invariance=0.0, variance=1 - 1e-4**0.5, covariance=0.0)
    chex.assert_trees_all_close(terms, want, rtol=1e-6)  # one rounding of float32
    chex.assert_trees_all_equal(gradients, (0 * z, 0 * z))


@pytest.mark.parametrize("n, d", [(64, 16), (16, 64)])
def test_white_embeddings_have_no_covariance(n, d):
    # Orthonormal and centred; of more dimensions than rows only n - 1 can be white.
    q, _ = np.linalg.qr(np.c_[np.ones(n), embeddings(n, min(d, n - 1))[0]])
    z = np.zeros((n, d), np.float32)
    z[:, : q.shape[1] - 1] = q[:, 1:] * math.sqrt(n - 1)
    # Rounding, of a sum of up to d squared variances of one, divided by d.
    assert abs(losses.covariance(z)) < 1e-6


@pytest.mark.parametrize("n, d", [(64, 512), (512, 64)])
def test_uncorrelated_embeddings_have_the_covariance_of_the_noise_floor(n, d):
    z = jax.random.normal(jax.random.key(0), (n, d))
    # Three standard errors: 2 / d of the covariances, 2 sqrt(2 / nd) of the variances.
    assert float(losses.covariance(z)) == pytest.approx((d - 1) / (n - 1), rel=0.1)


# One device against eight.

LAYOUTS = {  # sizes of the mesh, type of its axes, layout of the embeddings
    "rows": ((8,), AUTO, P("data")),
    "rows, explicit": ((8,), EXPLICIT, P("data")),
    "rows, repeated": ((4, 2), AUTO, P("data")),
    "rows over two axes": ((4, 2), AUTO, P(("data", "model"))),
    "rows over two axes, explicit": ((4, 2), EXPLICIT, P(("data", "model"))),
    "rows and features": ((4, 2), AUTO, P("data", "model")),
    "rows and features, explicit": ((4, 2), EXPLICIT, P("data", "model")),
}


@BOTH_FORMS
@pytest.mark.parametrize("layout", LAYOUTS)
def test_jit_of_a_sharded_batch_gives_the_numbers_of_one_device(layout, n, d):
    sizes, kind, spec = LAYOUTS[layout]
    mesh, views = make_mesh(sizes, kind), embeddings(n, d)
    split = jax.device_put(views, NamedSharding(mesh, spec))
    assert_close(compiled(*split), compiled(*views), SAME)


@BOTH_FORMS
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_a_mesh_that_is_set_changes_nothing(kind, n, d):
    mesh, views = make_mesh(kind=kind), embeddings(n, d)
    with jax.set_mesh(mesh):
        split = jax.device_put(views, NamedSharding(mesh, P("data")))
        got = compiled(*split)
    assert_close(got, compiled(*views), SAME)


@pytest.mark.parametrize("n, d", [(13, 24), (25, 16)])
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_rows_that_no_mesh_divides_are_computed_by_every_device(kind, n, d):
    views = embeddings(n, d)
    whole = jax.device_put(views, NamedSharding(make_mesh(kind=kind), P()))
    assert_close(compiled(*whole), compiled(*views), SAME)


@pytest.mark.parametrize(
    "kind, set_mesh, n, d",
    [
        (AUTO, False, 8, 12),
        (AUTO, True, 16, 8),
        # JAX itself wants the mesh set for the gradient of a sum on explicit axes.
        (EXPLICIT, True, 8, 12),
        (EXPLICIT, True, 16, 8),
    ],
)
def test_eager_on_a_sharded_batch_gives_the_numbers_of_one_device(kind, set_mesh, n, d):
    mesh, views = make_mesh(kind=kind), embeddings(n, d)
    split = jax.device_put(views, NamedSharding(mesh, P("data")))
    with jax.set_mesh(mesh) if set_mesh else contextlib.nullcontext():
        got = published(*split)
    assert_close(got, compiled(*views), SAME)


@BOTH_FORMS
@pytest.mark.parametrize("kind", [AUTO, EXPLICIT])
def test_a_mask_of_a_sharded_batch_gives_the_numbers_of_one_device(kind, n, d):
    views, where = embeddings(n, d), jnp.arange(n) < n // 2  # half of the devices
    split = NamedSharding(make_mesh(kind=kind), P("data"))
    where, *split = jax.device_put((where, *views), split)
    got = compiled(*split, where=where)
    assert_close(got, compiled(*views, where=where), SAME)


@pytest.mark.parametrize("check_vma", [True, False])
@pytest.mark.parametrize("n, d", [(8, 12), (16, 24), (24, 16)])  # 8: one row each
@pytest.mark.parametrize("axis", ["data", ("data", "model")])
def test_shard_map_gives_the_numbers_of_one_device(axis, n, d, check_vma):
    mesh, views = make_mesh((8,) if axis == "data" else (4, 2)), embeddings(n, d)
    terms, gradients = per_device(published, mesh, axis, check_vma=check_vma)(*views)
    if not check_vma:  # then the user averages the gradients over the devices
        gradients = tuple(g / 8 for g in gradients)
    assert_close((terms, gradients), compiled(*views), SAME)


@BOTH_FORMS
def test_shard_map_counts_the_valid_rows_of_all_devices(n, d):
    where = jnp.arange(n) % 5 < 2  # of one device no row at all
    views = [jnp.where(where[:, None], z, jnp.nan) for z in embeddings(n, d)]

    def function(where, *views, axis_name):
        return published(*views, where=where, axis_name=axis_name)

    got = per_device(function, make_mesh(), "data", check_vma=True)(where, *views)
    assert_close(got, compiled(*views, where=where), SAME)


@BOTH_FORMS
def test_pmap_gives_the_numbers_of_one_device(n, d):
    views = embeddings(n, d)
    split = [z.reshape(8, n // 8, d) for z in views]
    terms, gradients = jax.pmap(partial(published, axis_name="i"), "i")(*split)
    terms = jax.tree.map(lambda x: x[0], terms)
    gradients = tuple(g.reshape(n, d) / 8 for g in gradients)  # averaged by the user
    assert_close((terms, gradients), compiled(*views), SAME)


# Refusals.

Z = np.zeros((8, 4), np.float32)


@pytest.mark.parametrize(
    "views, options, message",
    [
        ([Z], {}, r"two or more views; got 1"),
        ([Z, Z[:6]], {}, r"\[n, d\] of one shape; got \(8, 4\) and \(6, 4\)"),
        ([Z, Z[:, :3]], {}, r"\[n, d\] of one shape; got \(8, 4\) and \(8, 3\)"),
        ([Z[0], Z[0]], {}, r"\[n, d\] of one shape; got \(4,\)"),
        ([Z[None], Z[None]], {}, r"\[n, d\] of one shape; got \(1, 8, 4\)"),
        ([Z[:1], Z[:1]], {}, r"\[n >= 2, d >= 1\]; got \(1, 4\)"),
        ([Z[:, :0], Z[:, :0]], {}, r"\[n >= 2, d >= 1\]; got \(8, 0\)"),
        ([Z.astype(int), Z.astype(int)], {}, r"of a float dtype; got int32"),
        ([Z.astype(bool), Z], {}, r"of a float dtype; got bool"),
        ([Z, Z], {"where": np.ones(7, bool)}, r"bool \[8\]; got bool \(7,\)"),
        ([Z, Z], {"where": np.ones((8, 1), bool)}, r"bool \[8\]; got bool \(8, 1\)"),
        ([Z, Z], {"where": np.ones(8)}, r"bool \[8\]; got float32 \(8,\)"),
    ],
)
def test_what_is_no_batch_of_views_is_refused(views, options, message):
    with pytest.raises(ValueError, match=message):
        losses.vicreg(*views, **options)
    if len(views) > 1:
        with pytest.raises(ValueError, match=message):
            losses.invariance(*views, **options)


def test_one_row_in_all_is_refused_by_each_statistic():
    for statistic in (losses.variance, losses.covariance):
        with pytest.raises(ValueError, match=r"\[n >= 2, d >= 1\]; got \(1, 4\)"):
            statistic(Z[:1])


def test_counts_beyond_32_bits_are_no_overflow():
    for loss, shape in ((losses.vicreg, (46_341, 46_342)), (losses.vicreg, (2**31, 3))):
        z = jax.ShapeDtypeStruct(shape, jnp.float32)
        found = jax.eval_shape(jax.grad(lambda a, b, f=loss: f(a, b).invariance), z, z)
        assert found.shape == shape
