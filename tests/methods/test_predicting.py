"""Methods but the first two, predictors, regularizers, against NumPy and themselves."""

import dataclasses
import shutil

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.records import lines
from helpers.runs import SMALL, images

from vicreg_jax import losses, methods, models, optim, train
from vicreg_jax.command import recipes
from vicreg_jax.config import Config
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.run.state import TrainState
from vicreg_jax.train import build

NEW = ("simclr", "simsiam", "byol")
SKETCHED = ("sigreg", "visreg")
TABLE4 = (
    *("byol", "simsiam", "simsiam_plain", "simsiam_bare", "vicreg_predictor_plain"),
    *("vicreg_predictor", "vicreg", "vicreg_plain"),
)
TABLE8 = ("batch_none", "batch_batch", "none_batch", "none_none", "none_l2")


def checked(variant):
    """Returns a recipe's config, with all of its limits checked."""
    config = recipes.read(variant).config
    data = dataclasses.replace(config.data, path="images")
    return Config.parse(dataclasses.replace(config, data=data))


def made(name, weights=None, predictor=True, stop_gradient=True, **head):
    takes = predictor and methods.METHODS[name].takes_predictor
    return methods.METHODS[name](
        models.create("digits"),
        models.Expander((16, 8), **head),
        weights,
        predictor=models.Expander((4, 8), bias=True) if takes else None,
        stop_gradient=stop_gradient,
    )


def outputs(n=6, v=2, d=8):
    z, p, t = np.random.default_rng(0).normal(size=(3, n, v, d)).astype(np.float32)
    return methods.Outputs(z, z, p, t, jax.random.key(3))


def cosine(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.mean(np.sum(a * b, axis=1, dtype=np.float64))


def test_the_losses_are_those_of_their_papers():
    o = outputs()
    z, p, t = ([x[:, i] for i in (0, 1)] for x in o[1:4])
    simsiam = -(cosine(p[0], z[1]) + cosine(p[1], z[0])) / 2
    byol = 2 - 2 * cosine(p[0], t[1]) + 2 - 2 * cosine(p[1], t[0])
    vicreg = (np.mean((p[0] - z[1]) ** 2) + np.mean((p[1] - z[0]) ** 2)) / 2
    for name, term, want in (
        ("simsiam", "distance", simsiam),
        ("byol", "distance", byol),
        ("vicreg", "invariance", vicreg),
    ):
        assert float(made(name).loss(o)[term]) == pytest.approx(want, rel=1e-5)
    bare = o._replace(predictions=None)
    want = -cosine(z[0], z[1])
    assert float(made("simsiam").loss(bare)["distance"]) == pytest.approx(want, 1e-5)


def test_simsiam_has_a_gradient_towards_what_is_predicted_only_where_it_is_told_so():
    o = outputs()
    z, p = jnp.asarray(o.embeddings), jnp.asarray(o.predictions)

    def gradient(**options):
        method = made("simsiam", **options)
        return jax.grad(lambda z: method.loss(o._replace(embeddings=z))["distance"])(z)

    assert not np.any(gradient())
    # Of -cos(p, z): (cos z / |z| - p / |p|) / |z|, over n rows and two orders.
    length = np.linalg.norm(z, axis=2, keepdims=True)
    u, w = z / length, (p / np.linalg.norm(p, axis=2, keepdims=True))[:, ::-1]
    want = (np.sum(u * w, axis=2, keepdims=True) * u - w) / length / len(z) / 2
    np.testing.assert_allclose(gradient(stop_gradient=False), want, rtol=1e-4)


@pytest.mark.parametrize("name", ["barlow_twins", *NEW, *SKETCHED])
def test_any_method_takes_variance_and_covariance_of_the_embeddings(name):
    o = outputs()
    method = made(name, {"variance": 3.0, "covariance": 0.5})
    found, want = method.terms(o), losses.vicreg(o.embeddings[:, 0], o.embeddings[:, 1])
    for term in ("variance", "covariance"):
        assert float(found[term]) == pytest.approx(float(vars(want)[term]), rel=1e-6)
    assert list(found) == list(method.weights)
    # Without a weight it is not there: old runs say nothing of it, either.
    assert set(made(name, {"variance": 0.0}).weights) == set(method.__class__.weights)


def test_of_unit_length_the_standard_deviation_asked_for_is_smaller():
    z = outputs()._replace(predictions=None)
    views = [z.embeddings[:, i] for i in (0, 1)]
    found = made("vicreg", predictor=False, norm="l2").loss(z)["variance"]
    want = losses.vicreg(*views, gamma=8**-0.5).variance
    assert float(found) == pytest.approx(float(want), rel=1e-6)


@pytest.mark.parametrize("norm", ["none", "batch", "l2"])
@pytest.mark.parametrize("hidden", [True, False])
def test_an_expander_normalizes_what_it_is_told_to(hidden, norm):
    expander = models.Expander((5, 4), hidden_norm=hidden, norm=norm)
    y = jax.random.normal(jax.random.key(0), (6, 3))
    variables = expander.init(jax.random.key(1), y, train=False)
    found = set(variables.get("batch_stats", {}))
    assert found == {"bn0"} & {"bn0" if hidden else ""} | (
        {"bn1"} if norm == "batch" else set()
    )
    z, _ = expander.apply(variables, y, train=True, mutable="batch_stats")
    if norm == "l2":
        np.testing.assert_allclose(np.linalg.norm(z, axis=1), 1, rtol=1e-5)
    if norm == "batch":
        np.testing.assert_allclose(np.mean(z, axis=0), 0, atol=1e-6)


def test_the_target_of_byol_follows_by_a_cosine():
    method, tx = made("byol"), optax.sgd(0.1)
    method.target_momentum = optim.rising(0.9, 4)
    mesh = sharding.data_mesh(jax.devices()[:1])
    step = train.make_train_step(method, tx, mesh=mesh)
    views = jax.random.normal(jax.random.key(1), (8, 2, 8, 8, 1))
    v = method.init(jax.random.key(0), views)
    assert set(v["target"]) == {"encoder", "expander"} != set(v["params"])
    want = jax.device_get(v["target"])
    state = TrainState(
        jnp.zeros([], jnp.int32), v["params"], v["batch_stats"],
        tx.init(v["params"]), target=v["target"],
    )  # fmt: skip
    for k in range(4):
        state, _, _ = step(state, views)
        share = 1 - 0.1 * (np.cos(np.pi * k / 4) + 1) / 2
        new = {name: jax.device_get(state.params[name]) for name in want}
        want = jax.tree.map(lambda t, p, m=share: m * t + (1 - m) * p, want, new)
    chex.assert_trees_all_close(state.target, want, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks=pytest.mark.slow if name in ("byol", "sigreg") else pytest.mark.long,
        )
        for name in NEW + SKETCHED
    ],
)
def test_an_interrupted_run_is_the_uninterrupted_one_and_its_loss_falls(name, tmp_path):
    predictor = (8,) if methods.METHODS[name].takes_predictor else ()
    model = SMALL["model"] | dict(predictor=predictor)
    config = SMALL | dict(method=name, model=model, loss=dict(variance=1.0))
    config |= dict(epochs=4, optimizer=dict(name="sgd", base_lr=0.5, warmup_epochs=0))
    whole = train.run(config, tmp_path / "whole", source=images())

    half = tmp_path / "half"
    shutil.copytree(tmp_path / "whole", half)
    for kept in (half / "checkpoints").iterdir():
        if kept.name.isdigit() and int(kept.name) > 8:
            shutil.rmtree(kept)
    again = train.run(config, half, source=images())
    chex.assert_trees_all_equal(again.state, whole.state)
    found = lines(tmp_path / "whole")
    assert found[-1]["loss"] < found[0]["loss"]
    assert ("direction_std" in found[0]) == (name in NEW)
    assert ("target" in whole.state.others()) == (name == "byol")


def test_directions_are_new_in_each_step_and_the_same_again():
    class Flat(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return x.reshape(len(x), -1)

    method = methods.Sigreg(Flat(), models.Expander((8,)))
    views = jax.random.normal(jax.random.key(1), (4, 2, 2, 2, 1))
    variables = method.init(jax.random.key(0), views)

    @jax.jit
    def terms(step):
        key = train.dropout_key(0, step)
        return method.loss(method.forward(variables, views, key=key)[0])

    zero, one, again = (terms(step) for step in (0, 1, 0))
    chex.assert_trees_all_equal(zero, again)
    assert zero["sigreg"] != one["sigreg"] and zero["prediction"] == one["prediction"]


@pytest.mark.parametrize("name", SKETCHED)
def test_embeddings_of_unit_length_have_no_standard_deviation_of_one(name):
    with pytest.raises(Refusal, match="set config.model.embedding_norm to") as caught:
        made(name, norm="l2")
    assert "\n" not in str(caught.value)
    start = {"embedding_std": 1.0, "embedding_rank": 9.0}
    verdict = methods.METHODS[name].health(start, start | {"embedding_std": 0.05}, {})
    assert not verdict.healthy and "target 1" in verdict.reason


@pytest.mark.parametrize("name", NEW)
def test_health_looks_at_directions(name):
    start = {"embedding_std": 1.0, "embedding_rank": 9.0, "direction_std": 0.8}
    kind = methods.METHODS[name]
    small = kind.health(start, start | {"embedding_std": 1e-4}, kind.weights)
    one = kind.health(start, start | {"direction_std": 0.01}, kind.weights)
    assert small.healthy and not one.healthy and "directions" in one.reason


def test_every_row_of_tables_4_and_8_is_a_recipe():
    for row in TABLE4:
        for terms in ("", "+variance", "+covariance"):
            assert build.method(checked(f"paper/table4:{row}{terms}"), None, None)
    for row in TABLE8:
        assert build.method(checked(f"paper/table8:{row}"), None, None)
    config = recipes.read("paper/table4:byol+covariance").config
    assert config.loss == {"distance": 1.0, "variance": 1.0, "covariance": 0.01}
    with pytest.raises(Refusal, match="no variant 'moco'; there are byol"):
        recipes.read("paper/table4:moco")


def test_a_config_without_stop_gradient_is_for_simsiam():
    config = Config.parse(SMALL | dict(method="simsiam", stop_gradient=False))
    assert not build.method(config, None, None).stop_gradient
    config = dataclasses.replace(config, method="byol")
    with pytest.raises(Refusal, match="Byol stops no gradient; leave") as caught:
        build.method(config, None, None)
    assert "\n" not in str(caught.value)


def test_a_predictor_for_a_method_that_takes_none_is_refused():
    with pytest.raises(Refusal, match="Simclr takes no predictor; leave") as caught:
        methods.Simclr(None, None, predictor=models.Expander((4, 8)))
    assert "\n" not in str(caught.value)
