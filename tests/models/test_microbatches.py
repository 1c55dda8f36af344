"""An encoder that sees its batch part by part: against a loop over the parts."""

import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.records import lines, without_times

from vicreg_jax import config as configs
from vicreg_jax import methods, models, train
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.run.state import TrainState
from vicreg_jax.train import build, not_finite
from vicreg_jax.train import memory_estimate as memory

PARTS = 4
TREES = chex.assert_trees_all_close


def views(n=32, count=2):
    shape = (n, count, 8, 8, 1)
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def made(kind=methods.Vicreg, parts=PARTS, **options):
    encoder, expander = models.create("digits"), models.Expander((32, 32))
    return kind(encoder, expander, microbatches=parts, **options)


def looped(method, params, others, images):
    """The loss and the statistics by plain code: nothing scanned, nothing twice."""
    plain = made(type(method), parts=1)
    stats, seen = others["batch_stats"], [None] * len(images)
    encoder_stats = stats["encoder"]
    for k in range(PARTS):
        y, new = plain.encoder.apply(
            {"params": params["encoder"], "batch_stats": encoder_stats},
            images[k::PARTS],
            train=True,
            mutable=["batch_stats"],
        )
        encoder_stats = new["batch_stats"]
        seen[k::PARTS] = list(y)
    z, new = plain.expander.apply(
        {"params": params["expander"], "batch_stats": stats["expander"]},
        jnp.stack(seen),
        train=True,
        mutable=["batch_stats"],
    )
    terms = plain.terms(methods.Outputs(jnp.stack(seen), z))
    total = sum(plain.weights[name] * terms[name] for name in plain.weights)
    return total, {"encoder": encoder_stats, "expander": new["batch_stats"]}


def test_loss_and_gradient_are_those_of_the_whole_batch():
    method, images, key = made(), views(), jax.random.key(1)
    variables = method.init(jax.random.key(0), images[:2])
    params, others = variables["params"], {"batch_stats": variables["batch_stats"]}
    (loss, aux), grads = jax.jit(
        jax.value_and_grad(
            lambda p: method.objective(p, others, images, key=key), has_aux=True
        )
    )(params)
    (want, stats), want_grads = jax.jit(
        jax.value_and_grad(lambda p: looped(method, p, others, images), has_aux=True)
    )(params)
    assert float(loss) == pytest.approx(float(want), rel=1e-6)
    # A gradient of float32 is a sum of thousands: to 1e-6 of the greatest.
    scale = max(float(jnp.abs(x).max()) for x in jax.tree.leaves(want_grads))
    TREES(grads, want_grads, atol=1e-6 * scale, rtol=1e-5)
    TREES(aux[2], stats, rtol=1e-5, atol=1e-7)


class NoNorm(nn.Module):
    """An encoder to which it makes no difference in which parts it sees a batch."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.tanh(nn.Dense(16)(x.reshape(len(x), -1)))


def test_without_batch_norm_it_is_the_step_of_the_whole_batch():
    grads = []
    for parts in (1, PARTS):
        expander = models.Expander((16, 16))
        method = methods.Vicreg(NoNorm(), expander, microbatches=parts)
        variables = method.init(jax.random.key(0), views(2))
        others = {"batch_stats": variables["batch_stats"]}
        objective = lambda p, m=method, o=others: m.objective(  # noqa: E731
            p, o, views(), key=jax.random.key(1)
        )[0]
        grads.append(jax.jit(jax.grad(objective))(variables["params"]))
    TREES(*grads, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "name", ["byol", "vicreg", pytest.param("simsiam", marks=pytest.mark.long)]
)
def test_eight_devices_step_like_one(name):
    method, images = made(methods.METHODS[name]), views(64)
    variables = method.init(jax.random.key(0), images[:2])
    found = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.data_mesh(devices)
        step = train.make_train_step(method, optax.sgd(0.1), mesh=mesh)
        tx = optax.sgd(0.1)
        state = TrainState(
            step=jnp.zeros([], jnp.int32),
            params=variables["params"],
            batch_stats=variables["batch_stats"],
            opt_state=tx.init(variables["params"]),
            target=variables.get("target", ()),
        )
        state = sharding.replicate(jax.tree.map(jnp.copy, state), mesh)
        seen = jax.device_put(images, sharding.split(mesh))
        found.append(jax.device_get(step(state, seen)[1]["loss"]))
    assert found[0] == pytest.approx(found[1], rel=1e-6)


def test_the_image_that_is_not_finite_is_named():
    method, images = made(), views(16)
    variables = method.init(jax.random.key(0), images[:2])
    others = {"batch_stats": variables["batch_stats"]}
    # One row of a view is so large that its square is not finite.
    bad = images.at[6, 1].set(1e30)
    said = not_finite.explain(method, variables["params"], others, bad)
    assert said.startswith("layer encoder/") and "view 2, batch positions" in said
    assert set(re.findall(r"\d+", said.partition("positions")[2])) == {
        "2",
        "6",
        "10",
        "14",  # of its part
    }


def config(**given):
    data = dict(name="digits", batch_size=64, image_size=8, mean=(0.0,), std=(1.0,))
    model = dict(encoder="digits", expander=(16, 16), microbatches=4)
    model |= given.pop("model", {})
    augment = dict(saturation=0.0, hue=0.0, grey=0.0)
    every = dict(log_steps=5)
    optimizer = dict(warmup_epochs=0.5)
    given = dict(data=data, model=model, augment=augment, optimizer=optimizer) | given
    return configs.parse(dict(epochs=1, every=every) | given)


@pytest.mark.long
def test_a_run_in_parts_is_one_of_the_program(tmp_path):
    train.run(config(), tmp_path / "a")
    train.run(config(), tmp_path / "b")
    first = without_times(lines(tmp_path / "a"))
    assert first == without_times(lines(tmp_path / "b")) and len(first) > 3
    assert all(np.isfinite(line["loss"]) for line in first)


def test_what_cannot_be_divided_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"microbatches \(5\) must divide config.data"):
        config(model=dict(microbatches=5))
    with pytest.raises(Refusal, match="into parts of 2 or more"):
        config(model=dict(microbatches=64))
    with pytest.raises(Refusal, match="the 8 images of a device; use 8, or another"):
        train.run(config(model=dict(microbatches=16)), tmp_path / "a")


@pytest.mark.long
def test_the_estimate_falls_as_what_xla_needs():
    """Of the CIFAR ResNet-18: temporary memory of the compiled step, and estimate."""
    used, likely = [], []
    for parts in (1, 4):
        data = dict(name="fake", batch_size=64, image_size=32)
        model = dict(encoder="resnet18", stem="cifar", expander=(512, 512))
        model["microbatches"] = parts
        given = configs.parse(dict(data=data, model=model, epochs=20))
        method = build.method(given, None, None)
        _, tx = build.optimizer(given, 10)
        state = jax.eval_shape(build.initializer(method, tx, given))
        shape = jax.ShapeDtypeStruct((64, 2, 32, 32, 3), np.float32)
        mesh = sharding.data_mesh(jax.devices()[:1])
        step = train.make_train_step(method, tx, mesh=mesh)
        found = step.lower(state, shape).compile().memory_analysis()
        used.append(found.temp_size_in_bytes + found.argument_size_in_bytes)
        likely.append(memory.estimate(method, state, given, 1).likely)
    assert used[1] < 0.6 * used[0]
    assert likely[1] / 1.5 < used[1] < 1.5 * likely[1]
