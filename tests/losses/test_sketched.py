"""SIGReg and VISReg against plain NumPy, one device and many."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.losses import AUTO, EXPLICIT, assert_close, embeddings, make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads
from scipy import stats

from vicreg_jax import losses

KEY = jax.random.key(7)


def directions(slices, d):
    """Those of KEY, in float64."""
    a = np.asarray(jax.random.normal(KEY, (slices, d), jnp.float32), np.float64)
    return a / np.linalg.norm(a, axis=1, keepdims=True)


def prediction(views):
    return np.mean((views - views.mean(axis=0)) ** 2)


def sigreg_in_numpy(views, slices):
    """States algorithms 1 and 2 of the paper, direction by direction."""
    t = np.linspace(-5, 5, 17)
    normal = np.exp(-(t**2) / 2)
    found = []
    for z in views:
        for a in directions(slices, z.shape[1]):
            ecf = np.mean(np.exp(1j * np.outer(z @ a, t)), axis=0)
            error = np.abs(ecf - normal) ** 2 * normal
            found.append(len(z) * np.trapezoid(error, t))
    return prediction(views), np.mean(found)


def visreg_in_numpy(views, slices):
    """States algorithm 1 of the paper, direction by direction."""
    terms = []
    for z in views:
        n, d = z.shape
        mean, std = z.mean(axis=0), z.std(axis=0)
        quantiles = stats.norm.ppf(np.arange(1, n + 1) / (n + 1))
        scaled = (z - mean) / std
        shape = [
            np.mean((np.sort(scaled @ a) - quantiles) ** 2)
            for a in directions(slices, d)
        ]
        terms.append((np.mean((1 - std) ** 2), np.mean(shape), np.mean(mean**2)))
    return prediction(views), *np.mean(terms, axis=0)


LOSSES = {
    "sigreg": (losses.sigreg, sigreg_in_numpy),
    "visreg": (losses.visreg, visreg_in_numpy),
}


def total(name, slices, *views, **options):
    """Returns the sum of the terms, each with another weight."""
    terms = vars(LOSSES[name][0](*views, key=KEY, slices=slices, **options)).values()
    return sum(i * term for i, term in enumerate(terms, start=1))


compiled = jax.jit(jax.value_and_grad(total, 2), static_argnums=(0, 1))


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("n, d, views", [(2, 1, 2), (7, 5, 3), (5, 8, 1)])
def test_terms_are_those_of_the_papers_algorithms(name, n, d, views, float64):
    z = np.random.default_rng(0).normal(0.3, 2, size=(views, n, d))
    loss, in_numpy = LOSSES[name]
    found = vars(jax.jit(partial(loss, key=KEY, slices=12))(*jnp.asarray(z))).values()
    np.testing.assert_allclose(list(found), in_numpy(z, 12), rtol=1e-10, atol=1e-14)


def test_gradients_are_the_finite_differences(float64):
    loss = jax.jit(partial(total, "sigreg", 6))
    check_grads(loss, embeddings(4, 3), order=1, modes=["rev"], rtol=1e-5)


def test_the_shape_has_no_gradient_towards_the_scale(float64):
    (z,) = embeddings(9, 3, views=1)
    z = z - z.mean(axis=0, keepdims=True)

    def scaled(by):
        terms = losses.visreg(by * z, key=KEY, slices=6)
        return jnp.stack([terms.shape, terms.scale])

    # With the standard deviation held, it is that of the sorted projections alone.
    z, a = np.asarray(z), directions(6, 3)
    std = np.std(z, axis=0)
    p = np.sort((z / std) @ a.T, axis=0)
    quantiles = stats.norm.ppf(np.arange(1, 10) / 10)[:, None]
    want = np.mean(2 * (p - quantiles) * p), np.mean(2 * (std - 1) * std)
    found = jax.jit(jax.jacrev(scaled))(1.0)
    np.testing.assert_allclose(found, want, rtol=1e-9)


@pytest.mark.parametrize("name", LOSSES)
def test_a_collapsed_batch_has_a_finite_gradient(name):
    _, gradient = compiled(name, 8, jnp.full((4, 3), 0.5))
    assert np.isfinite(gradient).all() and np.any(gradient)


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT, "mapped"])
@pytest.mark.parametrize("name", LOSSES)
def test_on_eight_devices_it_is_that_of_float64_on_one(name, kind):
    views = [np.asarray(z, np.float32) for z in embeddings(16, 24)]
    function = jax.value_and_grad(partial(total, name, 64), (0, 1))
    with jax.enable_x64(True):
        want = jax.jit(function)(*(jnp.asarray(z, jnp.float64) for z in views))
        want = jax.tree.map(lambda x: np.asarray(x, np.float32), want)
    mesh = make_mesh(kind=AUTO if kind == "mapped" else kind)
    if kind == "mapped":
        mapped = partial(total, name, 64, axis_name="data")
        function = jax.shard_map(
            jax.value_and_grad(mapped, (0, 1)),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=(P(), P("data")),
        )
    got = jax.jit(function)(*jax.device_put(views, NamedSharding(mesh, P("data"))))
    assert_close(got, want, 1e-6)


def test_the_directions_are_shared_by_the_views_and_new_with_each_key():
    (z,) = embeddings(8, 4, views=1)
    loss = jax.jit(partial(losses.sigreg, slices=4))
    one, two = (loss(*views, key=KEY).sigreg for views in ((z,), (z, z)))
    assert one == two != loss(z, key=jax.random.key(8)).sigreg


def test_bad_embeddings_are_refused():
    z = jnp.zeros((4, 3))
    for loss, _ in LOSSES.values():
        with pytest.raises(ValueError, match=r"one shape; got \(4, 3\) and \(4, 2\)"):
            loss(z, z[:, :2], key=KEY)
