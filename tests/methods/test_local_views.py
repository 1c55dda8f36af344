"""Global and local views: the terms in NumPy, the passes, devices, runs, refusals."""

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

from vicreg_jax import losses, methods, models, train
from vicreg_jax.devices import sharding
from vicreg_jax.models.norm import BatchNorm
from vicreg_jax.refusals import Refusal
from vicreg_jax.train import not_finite

V, L = 2, 3  # global and local views
# Unordered pairs with a global view, and ordered ones whose second view is one.
PAIRS = [(0, 1), (0, 2), (0, 3), (0, 4), (1, 2), (1, 3), (1, 4)]
ORDERED = [(0, 1), (1, 0), (2, 0), (2, 1), (3, 0), (3, 1), (4, 0), (4, 1)]

NAMES = pytest.mark.parametrize(
    "name",
    [
        pytest.param(
            name,
            marks={"vicreg": (), "byol": pytest.mark.slow}.get(name, pytest.mark.long),
        )
        for name in methods.METHODS
    ],
)


class Tiny(nn.Module):
    """A convolution that sees images of any size, and compiles soon."""

    dtype: jnp.dtype = jnp.float32
    takes_views: bool = True

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Conv(6, (3, 3), dtype=self.dtype, name="conv")(x)
        x = BatchNorm(name="bn")(x, train=train, views=x.ndim == 5)
        return jnp.mean(nn.relu(x), axis=(-3, -2))


def made(name, dtype=jnp.float32, **options):
    takes = methods.METHODS[name].takes_predictor
    return methods.METHODS[name](
        Tiny(dtype, **options),
        models.Expander((8, 4), dtype=dtype),
        predictor=models.Expander((4, 4), bias=True, dtype=dtype) if takes else None,
    )


def outputs(n=6, d=4):
    z, p, t = np.random.default_rng(0).normal(size=(3, n, V + L, d))
    t = t[:, :V]
    z, p, t = map(jnp.asarray, (z, p, t))
    return methods.Outputs(z, z, p, t, jax.random.key(3), V)


def views_of(outputs, name):
    return list(np.moveaxis(np.asarray(getattr(outputs, name)), 1, 0))


def numpy_terms(views, pairs):
    invariance = np.mean([np.mean((views[i] - views[j]) ** 2) for i, j in pairs])
    stds = [np.sqrt(z.var(axis=0, ddof=1) + 1e-4) for z in views]
    variance = np.mean([np.mean(np.maximum(0, 1 - std)) for std in stds])
    squares = [np.cov(z.T) ** 2 for z in views]
    covariances = [(c.sum() - np.trace(c)) / len(c) for c in squares]
    return invariance, variance, 2 * np.mean(covariances)


def cosine(a, b):
    a, b = (x / np.linalg.norm(x, axis=1, keepdims=True) for x in (a, b))
    return np.mean(np.sum(a * b, axis=1))


def test_vicreg_compares_a_global_view_with_any_other(float64):
    o = outputs()
    z, p = views_of(o, "embeddings"), views_of(o, "predictions")
    want = numpy_terms(z, PAIRS)
    found = vars(losses.vicreg(*z, global_views=V))
    np.testing.assert_allclose(list(found.values()), want, rtol=1e-12)
    found = made("vicreg").loss(o._replace(predictions=None))
    np.testing.assert_allclose(list(found.values()), want, rtol=1e-12)
    predicted = np.mean([np.mean((p[i] - z[j]) ** 2) for i, j in ORDERED])
    found = made("vicreg").loss(o)
    np.testing.assert_allclose(list(found.values()), (predicted, *want[1:]), rtol=1e-12)
    # Where all are global it is what it was.
    everything = vars(losses.vicreg(*z, global_views=V + L))
    chex.assert_trees_all_equal(everything, vars(losses.vicreg(*z)))


def test_simsiam_and_byol_predict_the_global_views_from_all(float64):
    o = outputs()
    z, p, t = (views_of(o, name) for name in ("embeddings", "predictions", "targets"))
    simsiam = -np.mean([cosine(p[i], z[j]) for i, j in ORDERED])
    byol = 4 - 4 * np.mean([cosine(p[i], t[j]) for i, j in ORDERED])
    for name, want in (("simsiam", simsiam), ("byol", byol)):
        assert float(made(name).loss(o)["distance"]) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ["barlow_twins", "simclr"])
def test_other_terms_of_pairs_are_means_over_the_same_ones(name, float64):
    o = outputs()
    z, loss = views_of(o, "embeddings"), getattr(losses, name)
    pairs = [vars(loss(z[i], z[j])) for i, j in PAIRS]
    for term, value in made(name).loss(o).items():
        want = np.mean([pair[term] for pair in pairs])
        assert float(value) == pytest.approx(want, rel=1e-12)


@pytest.mark.parametrize("name", ["sigreg", "visreg"])
def test_all_views_meet_in_the_mean_of_the_global_ones(name, float64):
    o = outputs()
    z, method = np.asarray(o.embeddings), made(name)
    method.slices = 16
    found = method.loss(o)
    want = np.mean((z - z[:, :V].mean(axis=1, keepdims=True)) ** 2)
    assert float(found.pop("prediction")) == pytest.approx(want, rel=1e-12)
    each = method.loss(o._replace(global_views=None))  # the rest knows no pairs
    assert all(each[term] == value for term, value in found.items())


def pictures(n=16, dtype=jnp.float32, sizes=(8, 5)):
    draw = partial(jax.random.normal, dtype=dtype)
    large = draw(jax.random.key(1), (n, V, sizes[0], sizes[0], 1))
    return large, draw(jax.random.key(2), (n, L, sizes[1], sizes[1], 1))


@pytest.mark.parametrize("takes_views", [True, False])
def test_each_view_has_its_own_statistics_in_order(takes_views):
    module = made("vicreg", takes_views=takes_views).module
    views = pictures()
    variables = module.init(jax.random.key(0), views[0], train=False)
    found, new = module.apply(variables, views, train=True, mutable="batch_stats")
    want, stats = [], variables["batch_stats"]
    for view in (*jnp.unstack(views[0], axis=1), *jnp.unstack(views[1], axis=1)):
        passed, after = module.apply(
            variables | {"batch_stats": stats}, view, train=True, mutable="batch_stats"
        )
        want, stats = [*want, passed], after["batch_stats"]
    want = jax.tree.map(lambda *x: jnp.stack(x, axis=1), *want)
    chex.assert_trees_all_close(found, want, rtol=1e-4, atol=1e-5)  # sums in one pass
    chex.assert_trees_all_close(new["batch_stats"], stats, rtol=1e-5, atol=1e-6)


def test_microbatches_are_of_both_sizes():
    module, views = made("vicreg").module, pictures()
    variables = module.init(jax.random.key(0), views[0], train=False)

    def encode(module, views):
        how = dict(train=True, mutable="batch_stats", method="encode")
        return module.apply(variables, views, **how)[0]

    found = encode(module.clone(microbatches=2), views)
    for i in range(2):
        want = encode(module, jax.tree.map(lambda x, i=i: x[i::2], views))
        np.testing.assert_allclose(found[i::2], want, rtol=1e-4, atol=1e-5)


def test_the_target_of_byol_sees_the_global_views_alone():
    method, views = made("byol"), pictures()
    variables = method.init(jax.random.key(0), views[0])
    variables["target"] = jax.tree.map(lambda x: 1.5 * x, variables["target"])
    forward = partial(method.forward, variables, key=jax.random.key(1))
    both, alone = forward(views)[0], forward(views[0])[0]
    chex.assert_trees_all_equal(both.targets, alone.targets)
    assert both.predictions.shape == (16, V + L, 4) and both.global_views == V


def a_step(name, mesh, dtype):
    method = made(name, dtype)
    views = pictures(dtype=dtype)
    variables = method.init(jax.random.key(0), views[0])
    params = variables.pop("params")

    def loss(params, views):
        total, (terms, _, stats) = method.objective(
            params, variables, views, key=jax.random.key(2)
        )
        return total, (terms, stats)

    value = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return value(params, jax.device_put(views, sharding.split(mesh)))


@NAMES
def test_eight_devices_give_the_loss_and_gradient_of_one(name, mesh, float64):
    one = sharding.data_mesh(jax.devices()[:1])
    found = [jax.device_get(a_step(name, x, jnp.float64)) for x in (mesh, one)]
    # Gradients are rounded to float32, as parameters are.
    chex.assert_trees_all_close(*found, rtol=1e-6, atol=1e-8)


def settings(name="vicreg", **data):
    data = SMALL["data"] | dict(local_views=L) | data
    predictor = (4,) if methods.METHODS[name].takes_predictor else ()
    config = SMALL | dict(method=name, data=data, optimizer=dict(warmup_epochs=0))
    return config | dict(model=SMALL["model"] | dict(predictor=predictor))


def interrupted(workdir, after):
    half = workdir.parent / "half"
    shutil.copytree(workdir, half)
    for kept in (half / "checkpoints").iterdir():
        if kept.name.isdigit() and int(kept.name) > after:
            shutil.rmtree(kept)
    return half


@NAMES
@pytest.mark.long
def test_a_run_goes_on_bit_for_bit_and_its_steps_come_again(name, tmp_path):
    how = dict(source=images(), encoder=Tiny())
    whole = train.run(settings(name), tmp_path / "whole", **how)
    again = train.run(settings(name), interrupted(tmp_path / "whole", 4), **how)
    chex.assert_trees_all_equal(again.state, whole.state)
    for line in lines(tmp_path / "whole"):
        weights = methods.METHODS[name].weights.items()
        total = sum(weight * line[term] for term, weight in weights)
        assert line["loss"] == pytest.approx(total, rel=1e-5)
    found = train.replay(tmp_path / "whole", 7, **how)
    assert found.recorded and not found.not_finite and len(found.images) == 5
    for term, value in found.recorded.items():
        assert found.metrics[term] == value, term


@pytest.mark.long
def test_a_run_is_judged_and_its_step_computed_twice(tmp_path):
    config = settings(held_out=0.25) | dict(guard=dict(rerun_steps=1))
    train.run(config, tmp_path, source=images(), encoder=Tiny())
    assert (tmp_path / "verdict.json").is_file()


def test_what_is_not_finite_is_named_by_its_view():
    method, views = made("vicreg"), pictures()
    others = method.init(jax.random.key(0), views[0])
    params = others.pop("params")
    params["encoder"]["conv"]["kernel"] *= 100

    def explain(large, small):
        return not_finite.explain(method, params, others, (large, small))

    large, small = views
    local = small.at[7, 1].set(jnp.inf)
    assert explain(large, local) == "pixels of view 4, batch positions 7"
    found = explain(large, small.at[3, 2].set(1e38))  # finite pixels
    assert found.startswith("layer encoder/conv, view 5, batch positions 3")
    found = explain(large.at[3, 1].set(1e38), small)
    assert found.startswith("layer encoder/conv, view 2, batch positions 3")
    params["expander"]["linear0"]["kernel"] = jnp.full((6, 8), jnp.inf)
    assert explain(*views).startswith("layer expander/linear0, view 1, batch positions")


class Flat(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(6, name="dense")(x.reshape(len(x), -1))


def ready():
    yield np.zeros((64, 2, 8, 8, 1), np.uint8)


REFUSED = {
    "many": (dict(local_views=101), {}, "config.data.local_views must be 100 or less"),
    "less": (dict(local_views=-1), {}, "config.data.local_views must be zero or more"),
    "large": (dict(local_size=9), {}, "config.data.local_size must be from 2 to"),
    "small": (dict(local_size=1), {}, "data.image_size (8); got 1"),
    "flat": (
        {},
        dict(encoder=Flat()),
        "the encoder sees images of 8 pixels and no local views of 3; set config.data",
    ),
    "ready": (
        dict(examples=64),
        dict(source=ready),
        "the source gives views that are ready, which are of one size; set config.dat",
    ),
}


@pytest.mark.parametrize("data, how, text", REFUSED.values(), ids=REFUSED)
def test_what_has_no_local_views_is_refused(data, how, text, tmp_path):
    with pytest.raises(Refusal, match=re.escape(text)) as caught:
        train.run(settings(**data), tmp_path / "run", **dict(source=images()) | how)
    assert "\n" not in str(caught.value) and not (tmp_path / "run").exists()


def test_two_branches_and_no_global_view_are_refused(tmp_path):
    config = settings()
    config["model"] = SMALL["model"] | dict(second_encoder="digits")
    with pytest.raises(Refusal, match="local views go with one branch; set config.da"):
        train.run(config, tmp_path / "run", source=images())
    assert not (tmp_path / "run").exists()
    for count in (0, 3):
        with pytest.raises(ValueError, match=f"or more are global; got .* {count}$"):
            losses.vicreg(*jnp.ones((2, 4, 3)), global_views=count)
