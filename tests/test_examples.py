"""The method in one file: its steps are those of the library."""

import importlib.util
import subprocess
import sys

import chex
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax.traverse_util import flatten_dict
from helpers.paths import ROOT
from helpers.processes import environment
from sklearn.datasets import load_digits

from vicreg_jax import models, optim
from vicreg_jax.methods import Vicreg

PATH = ROOT / "examples/vicreg_in_one_file.py"


def load():
    spec = importlib.util.spec_from_file_location("one_file", PATH)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_it_is_one_file_of_two_hundred_lines_that_does_not_need_the_package():
    text = PATH.read_text()
    assert len(text.splitlines()) <= 200 and "vicreg_jax" not in text


@pytest.mark.slow
def test_its_steps_are_those_of_the_library(float64):
    one, network = load(), load().Network()
    digits = load_digits().images[: 4 * 64].reshape(4, 64, 1, 8, 8, 1) / 16
    views = digits + np.random.default_rng(0).normal(0, 0.1, (4, 64, 2, 8, 8, 1))
    wide = dict(dtype=jnp.float64)
    expander = models.Expander((128, 128, 128), **wide)
    method = Vicreg(models.create("digits", **wide), expander)
    variables = method.init(jax.random.key(0), jnp.asarray(views[0]))
    variables = jax.tree.map(lambda x: x.astype(jnp.float64), variables)
    tx = optax.sgd(0.02, momentum=0.9)

    @jax.jit
    def library_step(variables, state, views):
        others = {"batch_stats": variables["batch_stats"]}
        objective = jax.value_and_grad(method.objective, has_aux=True)
        (loss, (*_, stats)), grads = objective(
            variables["params"], others, views, key=jax.random.key(0)
        )
        updates, state = tx.update(grads, state)
        params = optax.apply_updates(variables["params"], updates)
        return {"params": params, "batch_stats": stats}, state, loss

    own, own_state = variables, tx.init(variables["params"])
    state = own_state
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        own_step = jax.jit(lambda *x: one.step(network, tx, *x))
        for batch in jnp.asarray(views):
            own, own_state, loss = own_step(own, own_state, [batch[:, 0], batch[:, 1]])
            variables, state, wanted = library_step(variables, state, batch)
            np.testing.assert_allclose(loss, wanted, rtol=1e-9)
    chex.assert_trees_all_close(own["params"], variables["params"], rtol=0, atol=1e-9)
    seen, known = (flatten_dict(x["batch_stats"]) for x in (own, variables))
    means = [name for name in known if name[-1] == "mean"]
    for name in means:  # of the variances the library's are unbiased, as PyTorch's
        np.testing.assert_allclose(seen[name], known[name], rtol=0, atol=1e-9)


def test_its_optimizer_is_that_of_the_recipe():
    one, per_epoch = load(), 11
    schedule = optim.warmup_cosine(
        base_lr=2e-2,
        batch_size=128,
        epochs=90,
        steps_per_epoch=per_epoch,
        warmup_epochs=9,
    )
    params = {"a": jnp.ones((3, 2)), "b": jnp.ones(2)}
    seen = []
    for tx in (one.optimizer(90 * per_epoch), optim.adamw(schedule, weight_decay=1e-4)):
        at, state, chance = params, tx.init(params), np.random.default_rng(0)
        with jax.numpy_dtype_promotion("standard"):
            for _ in range(20):
                drawn = [chance.normal(size=x.shape) for x in params.values()]
                grads = dict(zip(params, map(jnp.float32, drawn), strict=True))
                updates, state = tx.update(grads, state, at)
                at = optax.apply_updates(at, updates)
        seen.append(at)
    chex.assert_trees_all_close(*seen, rtol=1e-6)


@pytest.mark.long
def test_it_runs_and_beats_raw_pixels():
    done = subprocess.run(
        [sys.executable, "-W", "error", str(PATH)],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 0, done.stderr
    learned, pixels = (
        float(line.split()[-2]) for line in done.stdout.splitlines()[-2:]
    )
    assert learned > pixels + 2 and "epoch 90: loss" in done.stdout
