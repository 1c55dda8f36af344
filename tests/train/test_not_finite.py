"""Where numbers stop being finite: pixels, layer, rows, terms, gradients."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
import pytest
from helpers.runs import SMALL, images
from helpers.views import METHOD, batches

from vicreg_jax import methods, models, train
from vicreg_jax.train import not_finite

GUARD = dict(guard=dict(skipped_steps=2))


def variables():
    found = METHOD.init(jax.random.key(0), batches(1)[0])
    return found["params"], {"batch_stats": found["batch_stats"]}


def examine(params, views):
    return not_finite.explain(METHOD, params, variables()[1], views)


def test_what_is_not_finite_is_pixels_layer_term_or_gradient():
    params, _ = variables()
    views = batches(1, bad=(0,))[0]
    assert examine(params, views) == "pixels of view 2, batch positions 5"
    views = batches(1)[0]
    kernel = params["encoder"]["conv3"]["kernel"]
    broken = jax.tree.map(lambda p: p, params)
    broken["encoder"]["conv3"]["kernel"] = kernel.at[0, 0, 0, 0].set(jnp.inf)
    found = examine(broken, views)
    assert found.startswith("layer encoder/conv3, view 1, batch positions 0")
    # Finite embeddings whose squares are not.
    large = jax.tree.map(lambda p: p, params)
    last = large["expander"]["linear1"]
    last["kernel"] = 1e30 * last["kernel"]
    found = examine(large, views)
    assert found.startswith("term ") and "covariance (" in found
    assert examine(params, views).startswith("the update, or a norm")


def test_one_bad_image_is_told_from_the_rest_of_its_batch():
    params, _ = variables()
    first = params["encoder"]["conv1"]
    first["kernel"] = 100 * first["kernel"]
    views = batches(1)[0].at[7, 1].set(1e38)  # finite pixels, infinite activations
    found = examine(params, views)
    assert found.startswith("layer encoder/conv1, view 2, batch positions 7")


class Odd(nn.Module):
    """Layers that are called twice for a view, or return a scalar or integers."""

    @nn.compact
    def __call__(self, x, *, train):
        layer = nn.Dense(4, name="twice")
        y = layer(x.reshape(len(x), -1)[:, :4])
        y = y + layer(y) * Scalar(name="scalar")(x)
        return y + Rows(name="rows")(x)[:, None].astype(jnp.float32)


class Scalar(nn.Module):
    scale: float = 1.0

    def __call__(self, x):
        return self.scale * jnp.max(x)


class Rows(nn.Module):
    def __call__(self, x):
        return jnp.arange(len(x))


@pytest.mark.parametrize(
    "value, found",
    [
        (1e37, "layer encoder/twice, batch positions 3"),
        (jnp.inf, "pixels of view 2, batch positions 3"),
    ],
)
def test_layers_of_the_users_own_are_named_as_far_as_they_tell(value, found):
    method = methods.Vicreg(Odd(), models.Expander((8, 4)))
    views = jax.random.normal(jax.random.key(0), (4, 2, 8, 8, 1))
    others = method.init(jax.random.key(1), views)
    params = others.pop("params")
    params["encoder"]["twice"]["kernel"] = jnp.full((4, 4), 100.0)
    views = views.at[3, 1].set(value)
    assert not_finite.explain(method, params, others, views) == found


def test_a_scalar_that_is_not_finite_is_named_by_its_layer():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return x.reshape(len(x), -1)[:, :4] + Scalar(jnp.inf, name="scalar")(x)

    method = methods.Vicreg(Own(), models.Expander((8, 4)))
    views = jax.random.normal(jax.random.key(0), (4, 2, 8, 8, 1))
    others = method.init(jax.random.key(1), views)
    params = others.pop("params")
    found = not_finite.explain(method, params, others, views)
    assert found == "layer encoder/scalar, view 1"


def test_a_method_that_captures_nothing_is_judged_by_its_terms(tmp_path):
    class Plain(methods.Vicreg):
        def forward(self, variables, views, *, key, capture=False):
            return super().forward(variables, views, key=key)

        def loss(self, outputs):
            found = super().loss(outputs)
            return found | {"invariance": jnp.inf * found["invariance"]}

    method = Plain(METHOD.encoder, METHOD.module.expander)
    params, others = variables()
    found = not_finite.explain(method, params, others, batches(1)[0])
    assert found == "term invariance (inf) of the loss"


def test_whatever_an_explanation_meets_the_run_ends_by_what_it_is_about(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(not_finite, "explain", lambda *_: {}["lost"])
    tx = optax.sgd(jnp.inf)
    with pytest.raises(FloatingPointError, match="is not known .KeyError: 'lost'.; /"):
        train.run(SMALL | GUARD, tmp_path, source=images(), tx=tx)
