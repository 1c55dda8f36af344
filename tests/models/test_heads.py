"""The expander and the joint embedding: shapes, initialization, what they compute."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict
from helpers.modules import assert_close, count, numpy_norm, shapes

from vicreg_jax import models
from vicreg_jax.models import heads


@pytest.mark.parametrize("inputs", [12, 300])
def test_linear_layers_start_uniform_within_the_root_of_their_inputs(inputs):
    layer = heads.linear(400, inputs, dtype=jnp.float32, name=None)
    params = layer.init(jax.random.key(0), jnp.zeros((1, inputs)))["params"]
    for x in (params["kernel"], params["bias"]):
        v = np.asarray(x, np.float64).ravel() * np.sqrt(inputs)
        # Within +-1 but for rounding; a mean of 0 and variance of 1 / 3 by five sigma.
        assert np.abs(v).max() <= 1 + 1e-6 and np.abs(v).max() > 0.95
        assert abs(v.mean()) < 5 * np.sqrt(1 / 3 / v.size)
        assert abs((v**2).mean() - 1 / 3) < 5 * np.sqrt(4 / 45 / v.size)


@pytest.mark.parametrize("widths", [(8,), (16, 8), (5, 32, 7, 3)])
def test_an_expander_has_any_widths_and_a_bias_but_in_the_last_layer(widths):
    found = shapes(models.Expander(widths), 24)
    sizes = {"/".join(k): x.shape for k, x in flatten_dict(found["params"]).items()}
    want = {}
    for i, (inputs, width) in enumerate(zip((24, *widths), widths, strict=False)):
        want[f"linear{i}/kernel"] = (inputs, width)
        if i < len(widths) - 1:
            names = (f"linear{i}/bias", f"bn{i}/scale", f"bn{i}/bias")
            want |= dict.fromkeys(names, (width,))
    assert sizes == want


def test_the_published_expander_has_151_million_parameters():
    want = 2048 * 8192 + 2 * 8192**2 + 2 * 3 * 8192
    assert count(shapes(models.Expander(), 2048)["params"]) == want


def test_an_expander_is_linear_norm_relu_and_linear():
    expander = models.Expander((16, 8))
    y = jax.random.normal(jax.random.key(1), (32, 24))
    variables = expander.init(jax.random.key(0), y, train=False)
    p = jax.tree.map(np.asarray, variables["params"])
    hidden = np.asarray(y, np.float64) @ p["linear0"]["kernel"] + p["linear0"]["bias"]
    hidden = np.maximum(numpy_norm(hidden, **p["bn0"])[0], 0)
    got, _ = expander.apply(variables, y, train=True, mutable="batch_stats")
    # Float32 through three layers.
    assert_close(got, hidden @ p["linear1"]["kernel"], 1e-5)


def test_a_joint_embedding_returns_the_representation_and_its_expansion():
    encoder, expander = models.create("digits"), models.Expander((16, 8))
    joint = models.JointEmbedding(encoder, expander)
    x = jax.random.uniform(jax.random.key(1), (4, 8, 8, 1))
    variables = joint.init(jax.random.key(0), x, train=False)
    y, z = joint.apply(variables, x, train=False)

    def part(name):
        return {collection: tree[name] for collection, tree in variables.items()}

    np.testing.assert_array_equal(y, encoder.apply(part("encoder"), x, train=False))
    np.testing.assert_array_equal(z, expander.apply(part("expander"), y, train=False))
