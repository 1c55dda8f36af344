"""Two branches: against the one that views share, against NumPy, and refused."""

import dataclasses
import re
import shutil
from functools import partial

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.records import lines
from helpers.runs import SMALL, images

from vicreg_jax import load, methods, models, train
from vicreg_jax.command import recipes
from vicreg_jax.config import Config
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.train import build

HEAD = (16, 8)


class Other(nn.Module):
    """An encoder of another kind, and of representations of another width."""

    @nn.compact
    def __call__(self, x, *, train):
        x = x.reshape(len(x), -1)
        return models.BatchNorm(name="bn")(nn.Dense(5, dtype=x.dtype)(x), train=train)


def made(name="vicreg", *, own=True, other=None, dtype=jnp.float32, weights=None):
    """A method on the digits encoder, with a second branch unless views share it."""

    def parts():
        return models.create("digits", dtype=dtype), models.Expander(HEAD, dtype=dtype)

    options, kind = {}, methods.METHODS[name]
    if kind.takes_predictor and name != "vicreg":
        predictor = models.Expander((4, HEAD[-1]), bias=True, dtype=dtype)
        options["predictor"] = predictor
    if own:
        encoder, expander = parts()
        options["second"] = (other or encoder, expander)
    return kind(*parts(), weights, **options)


@pytest.mark.slow
def test_two_branches_that_are_alike_are_the_shared_one(float64):
    shared, own = (made("simsiam", own=x, dtype=jnp.float64) for x in (False, True))
    views = jax.random.normal(jax.random.key(0), (6, 2, 8, 8, 1), jnp.float64)
    like = jax.jit(own.init)(jax.random.key(1), views)
    params = like["params"]
    begin = [x["expander"]["linear0"]["kernel"] for x in (params, params["second"])]
    assert not np.allclose(*begin)  # each begins with numbers of its own
    one = {k: {n: x[n] for n in x if n != "second"} for k, x in like.items()}
    two = {k: {**x, "second": x} for k, x in one.items()}
    chex.assert_trees_all_equal_shapes_and_dtypes(two, like)

    def of(method, variables):
        value = jax.value_and_grad(method.objective, has_aux=True)
        others = {"batch_stats": variables["batch_stats"]}
        key = jax.random.key(2)
        return jax.jit(value)(variables["params"], others, views, key=key)

    (want, (terms, seen, kept)), gradient = of(shared, one)
    (found, (again, now, stats)), gradients = of(own, two)
    # Parameters are float32 either way; sums in another order.
    np.testing.assert_allclose(found, want, rtol=1e-6)
    chex.assert_trees_all_close(again, terms, rtol=1e-6)
    for name in ("embeddings", "predictions"):
        a, b = getattr(now, name), getattr(seen, name)
        np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-9)
    first = seen.representations[:, :1]
    np.testing.assert_allclose(now.representations, first, rtol=1e-6)
    second = gradients.pop("second")
    total = jax.tree.map(jnp.add, gradients, second)
    chex.assert_trees_all_close(total, gradient, rtol=1e-4, atol=1e-6)
    # One after the other, 0.9 (0.9 s + 0.1 a) + 0.1 b; here each of its own view.
    second = stats.pop("second")
    before = one["batch_stats"]
    both = jax.tree.map(lambda a, b, s: 0.9 * (a - s) + b, stats, second, before)
    chex.assert_trees_all_close(both, kept, rtol=1e-5, atol=1e-6)


@pytest.mark.long
def test_a_branch_that_the_loss_does_not_see_has_no_gradient():
    class First(methods.Method):
        weights = {"size": 1.0}

        def loss(self, outputs):
            return {"size": jnp.mean(self.views_of(outputs)[0] ** 2)}

    second = Other(), models.Expander(HEAD)
    method = First(models.create("digits"), models.Expander(HEAD), second=second)
    views = jax.random.normal(jax.random.key(0), (6, 2, 8, 8, 1))
    variables = jax.jit(method.init)(jax.random.key(1), views)
    params = variables.pop("params")
    gradient = jax.jit(jax.grad(method.objective, has_aux=True))
    found, _ = gradient(params, variables, views, key=jax.random.key(2))
    unseen = found.pop("second")
    assert unseen and not any(np.any(x) for x in jax.tree.leaves(unseen))
    assert all(np.any(x) for x in jax.tree.leaves(found["expander"]["linear1"]))


@pytest.mark.parametrize("name", ["vicreg", "simclr"])
def test_each_branch_may_have_its_own_weights(name):
    weights = dict(variance=3.0, second_variance=5.0, second_covariance=0.0)
    method = made(name, weights=weights)
    z = np.random.default_rng(0).normal(scale=0.5, size=(6, 3, 8))
    z[:, 1] /= 3
    outputs = methods.Outputs(z[:, ::2], jnp.asarray(z, jnp.float32))
    found = method.terms(outputs)
    short = [
        np.mean(np.maximum(1 - np.sqrt(z[:, i].var(0, ddof=1) + 1e-4), 0))
        for i in range(3)
    ]
    off = [np.cov(z[:, i].T) for i in range(3)]
    off = [np.sum((c - np.diag(np.diag(c))) ** 2) / 8 for c in off]
    want = {
        "variance": (short[0] + short[2]) / 3,
        "second_variance": short[1] / 3,
        "second_covariance": 2 * off[1] / 3,
    }
    if name == "vicreg":
        want["covariance"] = 2 * (off[0] + off[2]) / 3
    for term, value in want.items():
        assert float(found[term]) == pytest.approx(value, rel=1e-5), term
    assert {**method.weights, **weights} == method.weights
    if name == "vicreg":
        again = method.statistics(z[:, 0], z[:, 0], found)["covariance_over_noise"]
        whole = made(name).terms(outputs)  # the parts add up to the term
        same = made(name).statistics(z[:, 0], z[:, 0], whole)["covariance_over_noise"]
        assert float(again) == pytest.approx(float(same), rel=1e-5)


def test_other_widths_of_unit_length_ask_less_of_the_second_branch():
    head = models.Expander(HEAD, norm="l2")
    method = methods.Vicreg(None, head, {"second_variance": 25.0}, second=(None, head))
    z = jnp.ones((6, 2, 8)) / 8**0.5  # they have collapsed
    found = method.terms(methods.Outputs(z, z))
    want = (8**-0.5 - 1e-4**0.5) / 2
    for term in ("variance", "second_variance"):
        assert float(found[term]) == pytest.approx(want, rel=1e-4)


def _number(x):
    is_key = jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(x) if is_key else x


@pytest.mark.long
def test_eight_devices_give_the_gradient_of_one_for_two_architectures(mesh, float64):
    method = made(other=Other(), dtype=jnp.float64)
    views = jax.random.normal(jax.random.key(0), (16, 3, 8, 8, 1), jnp.float64)
    variables = jax.jit(method.init)(jax.random.key(1), views)
    params = variables.pop("params")
    value = partial(method.objective, key=jax.random.key(2))
    value = jax.jit(jax.value_and_grad(value, has_aux=True))
    one = value(params, variables, views)
    eight = value(params, variables, jax.device_put(views, sharding.split(mesh)))
    assert one[0][1][1].representations.shape == (16, 2, 64)
    # Gradients are rounded to float32, as parameters are.
    # A key is no number; both have been given the same.
    one, eight = jax.tree.map(_number, (one, eight))
    chex.assert_trees_all_close(eight, one, rtol=1e-6, atol=1e-8)


@pytest.mark.long
def test_a_run_of_two_branches_goes_on_bit_for_bit_and_leaves_the_first(
    tmp_path, capfd
):
    model = SMALL["model"] | dict(second_encoder="digits", second_expander=(4, 16))
    config = SMALL | dict(model=model, loss=dict(second_variance=10.0))
    whole = train.run(config, tmp_path / "whole", source=images())
    said = capfd.readouterr().err
    assert "VICReg on digits and, with weights of its own, digits:" in said
    assert "second branch (digits) is no part of the result: evaluations and" in said
    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    for kept in (half / "checkpoints").iterdir():
        if kept.name.isdigit() and int(kept.name) > 4:
            shutil.rmtree(kept)
    again = train.run(config, half, source=images())
    chex.assert_trees_all_equal(again.state, whole.state)
    params = jax.device_get(whole.state.params)
    assert params["second"]["expander"]["linear0"]["kernel"].shape == (64, 4)
    read = load(tmp_path / "whole")
    chex.assert_trees_all_equal(read.variables, whole.encoder.variables)
    chex.assert_trees_all_equal(read.variables["params"], params["encoder"])
    assert "second" not in read.variables["params"]
    line = lines(tmp_path / "whole")[0]
    weights = dict(methods.Vicreg.weights, second_variance=10.0)
    total = sum(weight * line[name] for name, weight in weights.items())
    assert line["loss"] == pytest.approx(total, rel=1e-5)
    given = Config.parse(config | dict(loss={}))
    assert build.method(given, None, None).module.second.encoder is not None


def test_every_cell_of_table_5_is_a_recipe():
    for method in ("vicreg", "barlow_twins", "simclr"):
        for second, name in (("", ""), ("+own", "resnet50"), ("+resnet101",) * 2):
            config = recipes.read(f"paper/table5:{method}{second}").config
            data = dataclasses.replace(config.data, path="images")
            config = Config.parse(dataclasses.replace(config, data=data))
            assert (config.method, config.model.second_encoder) == (
                method,
                name.removeprefix("+"),
            )
            found = build.method(config, None, None).module.second
            assert (found is not None) == bool(second)
    with pytest.raises(Refusal, match="no variant 'vicreg.vit'; there are vicreg, bar"):
        recipes.read("paper/table5:vicreg+vit")
    table = recipes.read("paper/table5").config
    words = {"loss.second_covariance": "--config.loss.second_covariance=0"}
    assert recipes.override(table, words).loss["second_covariance"] == 0


@pytest.mark.parametrize(
    "given, text",
    [
        (dict(second_encoder="vit"), "no encoder 'vit'; there are digits, resnet18, "),
        (
            dict(second_encoder="digits", second_expander=(4, 8)),
            "the branches embed in 16 and 8 dimensions; end model.expander and model.s",
        ),
        (dict(second_expander=(4,)), "is of a second branch, and there is none: conf"),
        (
            dict(second_encoder="digits", method="byol"),
            "Byol takes no second branch; leave config.model.second_encoder empty, or",
        ),
    ],
)
def test_branches_that_do_not_fit_are_refused(given, text, tmp_path):
    config = SMALL | {k: given[k] for k in given if k == "method"}
    model = {k: x for k, x in given.items() if k != "method"}
    config = config | dict(model=SMALL["model"] | model)
    with pytest.raises(Refusal, match=re.escape(text)) as caught:
        train.run(config, tmp_path / "run", source=images())
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()
