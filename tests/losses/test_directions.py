"""SimCLR and the agreement against plain NumPy, one device and many."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.losses import AUTO, EXPLICIT, assert_close, embeddings, make_mesh
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jax.test_util import check_grads

from vicreg_jax import losses


def contrast(*views, **options):
    return losses.simclr(*views, **options).contrast


LOSSES = {"simclr": contrast, "agreement": losses.agreement}


def unit(z):
    return z / np.linalg.norm(z, axis=1, keepdims=True)


def nt_xent(a, b, temperature):
    """States eq. 1 of the paper row by row, in float64."""
    z = np.concatenate([unit(a), unit(b)])
    n, losses_ = len(a), []
    for i in range(2 * n):
        cosines = {k: z[i] @ z[k] / temperature for k in range(2 * n) if k != i}
        total = np.log(sum(np.exp(x) for x in cosines.values()))
        losses_.append(total - cosines[(i + n) % (2 * n)])
    return np.mean(losses_)


@pytest.mark.parametrize("temperature", [0.1, 0.5])
@pytest.mark.parametrize("n, d", [(2, 1), (5, 8), (8, 3)])
def test_simclr_is_the_cross_entropy_of_the_paper(n, d, temperature, float64):
    a, b, c = embeddings(n, d, views=3)
    pairs = [nt_xent(x, y, temperature) for x, y in ((a, b), (a, c), (b, c))]
    one = losses.simclr(a, b, temperature=temperature)
    three = losses.simclr(a, b, c, temperature=temperature)
    assert float(one.contrast) == pytest.approx(pairs[0], rel=1e-12)
    assert float(three.contrast) == pytest.approx(np.mean(pairs), rel=1e-12)


def test_agreement_is_the_mean_cosine(float64):
    a, b = map(np.asarray, embeddings(7, 4))
    want = np.mean(np.sum(unit(a) * unit(b), axis=1))
    assert float(losses.agreement(a, b)) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_are_the_finite_differences(name, float64):
    check_grads(LOSSES[name], embeddings(4, 3), order=1, modes=["rev"], rtol=1e-5)


@pytest.mark.parametrize("name", LOSSES)
def test_a_row_of_zeros_has_a_finite_gradient(name):
    a, b = (jnp.asarray(z, jnp.float32) for z in embeddings(4, 3))
    gradients = jax.grad(LOSSES[name], (0, 1))(a.at[0].set(0), b)
    assert np.isfinite(np.concatenate(gradients)).all()


@pytest.mark.parametrize("kind", [AUTO, EXPLICIT, "mapped"])
@pytest.mark.parametrize("name", LOSSES)
def test_on_eight_devices_it_is_that_of_float64_on_one(name, kind):
    a, b = embeddings(16, 24)
    # Alike as views are: the mean of cosines about 0 would have no digits to compare.
    views = [np.asarray(z, np.float32) for z in (a, a + b)]
    function = jax.value_and_grad(LOSSES[name], (0, 1))
    with jax.enable_x64(True):
        want = jax.jit(function)(*(jnp.asarray(z, jnp.float64) for z in views))
        want = jax.tree.map(lambda x: np.asarray(x, np.float32), want)
    mesh = make_mesh(kind=AUTO if kind == "mapped" else kind)
    if kind == "mapped":
        mapped = partial(LOSSES[name], axis_name="data")
        function = jax.shard_map(
            jax.value_and_grad(mapped, (0, 1)),
            mesh=mesh,
            in_specs=P("data"),
            out_specs=(P(), P("data")),
        )
    got = jax.jit(function)(*jax.device_put(views, NamedSharding(mesh, P("data"))))
    # 1e-6 of the value; a gradient is orthogonal to its embeddings: fewer digits.
    assert_close(got[0], want[0], 1e-6)
    assert_close(got[1], want[1], 1e-5)


def test_bad_embeddings_are_refused():
    z = jnp.zeros((4, 3))
    with pytest.raises(ValueError, match="compares two or more views; got 1"):
        losses.simclr(z)
    with pytest.raises(ValueError, match=r"one shape; got \(4, 3\) and \(4, 2\)"):
        losses.agreement(z, z[:, :2])
