"""Steps that are not finite or go wrong: skipped, gone back from, ended."""

import os
import signal

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.records import lines, without_times
from helpers.runs import SMALL, images, state_of
from helpers.views import METHOD, batches

from vicreg_jax import methods, train
from vicreg_jax.data import plan
from vicreg_jax.devices import sharding
from vicreg_jax.run import session, spikes
from vicreg_jax.run.watchdog import Watchdog
from vicreg_jax.train import pretrain

GUARD = dict(guard=dict(skipped_steps=2))


def after(steps, tx):
    mesh = sharding.data_mesh(jax.devices()[:1])
    step = train.make_train_step(METHOD, tx, mesh=mesh)
    state = state_of(METHOD.module, tx, steps[0])
    state = jax.device_put(state, sharding.whole(mesh))
    metrics = []
    for views in steps:
        state, values, _ = step(state, views)
        metrics.append(jax.device_get(values))
    return jax.device_get(state), metrics


@pytest.mark.parametrize("bad", [(1,), (0, 1, 2), (3,)])
def test_a_step_that_is_not_finite_leaves_no_trace_but_its_count(bad):
    tx = optax.adam(1e-3)
    with jax.numpy_dtype_promotion("standard"):  # of optax's Adam
        skipped, metrics = after(batches(4, bad=bad), tx)
        clean, _ = after([b for i, b in enumerate(batches(4)) if i not in bad], tx)
    for name in ("params", "batch_stats", "opt_state"):
        chex.assert_trees_all_equal(getattr(skipped, name), getattr(clean, name))
    assert int(skipped.step) == 4 and int(skipped.skipped[1]) == len(bad)
    row, rows = 0, []
    for i in range(4):
        row = row + 1 if i in bad else 0
        rows.append(row)
    assert [int(m["skipped_in_a_row"]) for m in metrics] == rows


def test_a_run_goes_on_after_a_few_bad_steps_and_counts_them(tmp_path):
    class Sometimes(nn.Module):
        """An encoder that a black image brings to infinity."""

        @nn.compact
        def __call__(self, x, *, train):
            black = jnp.max(x, axis=(1, 2, 3), keepdims=True) < -0.99
            x = jnp.where(black, jnp.inf, x)
            return nn.Dense(12, name="dense")(x.reshape(len(x), -1))

    source = images()
    first = plan.permutation(0, 0, 64)[0]
    source[first] = 0  # in step 1 of four an epoch; with mean and std 0.5 it is -1
    config = SMALL | GUARD | dict(augment=dict(jitter=0.0, solarize=(0.0, 0.0)))
    trained = train.run(config, tmp_path, source=source, encoder=Sometimes())
    written = lines(tmp_path)
    assert [line["step"] for line in written] == list(range(1, 9))
    assert [line["skipped_steps"] for line in written][-1] == 2
    assert int(trained.state.skipped[1]) == 2
    assert sum("loss" not in line for line in written) == 2  # what is no number
    chex.assert_tree_all_finite(trained.state.params)


def test_too_many_in_a_row_go_back_once_then_stop_and_spare_the_checkpoint(
    tmp_path, capsys
):
    tx = optax.sgd(lambda step: jnp.where(step < 9, 1e-3, jnp.inf))
    config = SMALL | GUARD | dict(epochs=4, every=dict(log_steps=1000))
    with pytest.raises(FloatingPointError) as error:
        train.run(config, tmp_path, source=images(), tx=tx)
    said = str(error.value)
    assert "not finite at step 11, 2 steps in a row; first in the update" in said
    assert (
        f"{tmp_path / 'not_finite_11.npz'} has the batch" in said and "\n" not in said
    )
    assert capsys.readouterr().err.count("not finite at step 11: back to step 8") == 1
    with np.load(tmp_path / "not_finite_11.npz") as file:
        assert file["indices"].shape == (16,) and file["box"].shape == (16, 2, 4)
    again = train.run(SMALL, tmp_path, source=images(), tx=tx)  # epochs may change
    assert int(again.state.step) == 8
    chex.assert_tree_all_finite(again.state.params)


@pytest.mark.parametrize(
    "first, back",
    [(7, 4)] + [pytest.param(x, 8, marks=pytest.mark.long) for x in (9, 11)],
)
def test_what_is_gone_back_to_is_from_before_the_streak(first, back, tmp_path, capsys):
    """Of ten steps that are not finite, checkpoints fall into the middle."""
    tx = optax.sgd(lambda step: jnp.where(step < first - 1, 1e-3, jnp.inf))
    config = SMALL | dict(epochs=8, guard=dict(skipped_steps=10))
    with pytest.raises(FloatingPointError, match=f"at step {first + 9}, 10 steps"):
        train.run(config, tmp_path, source=images(), tx=tx)
    said = capsys.readouterr().err
    assert said.count(f"not finite at step {first + 9}: back to step {back}\n") == 1
    saved = sorted(int(x.name) for x in (tmp_path / "checkpoints").glob("[0-9]*"))
    assert saved[-1] == back


@pytest.mark.long
def test_a_checkpoint_of_a_stop_inside_a_streak_is_not_gone_back_to(
    tmp_path, monkeypatch, capsys
):
    """The fifth step of a streak is saved, for the run was told to stop."""
    tx = optax.sgd(lambda step: jnp.where(step < 8, 1e-3, jnp.inf))
    config = SMALL | dict(epochs=8, guard=dict(skipped_steps=10))
    where = tmp_path / "metrics.jsonl"

    class Stops:
        def __len__(self):
            return 64

        def __getitem__(self, indices):
            if where.exists() and len(lines(tmp_path)) >= 11 and not stopped:
                stopped.append(os.kill(os.getpid(), signal.SIGTERM))
            return images()[indices]

    stopped = []
    with pytest.raises(SystemExit):
        train.run(config, tmp_path, source=Stops(), tx=tx)
    saved = [int(x.name) for x in (tmp_path / "checkpoints").glob("[0-9]*")]
    assert 8 < max(saved) < 18
    with pytest.raises(FloatingPointError, match="at step 18, 10 steps in a row"):
        train.run(config, tmp_path, source=Stops(), tx=tx)
    assert "not finite at step 18: back to step 8" in capsys.readouterr().err


def test_a_finite_spike_goes_back_once_and_is_then_only_noted(
    tmp_path, capsys, monkeypatch
):
    monkeypatch.setattr(spikes, "KNOWN", 8)
    monkeypatch.setattr(spikes, "LASTS", 3)
    monkeypatch.setattr(session, "LASTS", 3)

    class Jumps(methods.Vicreg):
        """From the time on that a checkpoint's parameters moved, far away."""

        weights = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0, "far": 1.0}

        def init(self, key, views):
            return super().init(key, views) | {"target": {"step": jnp.zeros([])}}

        def forward(self, variables, views, *, key, capture=False):
            own = dict(variables)
            step = own.pop("target")["step"]
            outputs, kept = super().forward(own, views, key=key, capture=capture)
            far = jnp.where(step >= 13, 1e6, 0.0) * jnp.ones_like(outputs.embeddings)
            both = jnp.concatenate([outputs.embeddings, far], axis=2)
            return outputs._replace(embeddings=both), kept

        def loss(self, outputs):
            own, far = jnp.split(outputs.embeddings, 2, axis=2)
            terms = super().loss(outputs._replace(embeddings=own))
            return terms | {"far": jnp.mean(far)}

        def after_step(self, target, params, step):
            return {"step": step.astype(jnp.float32)}

    config = SMALL | dict(epochs=6)
    train.run(config, tmp_path / "a", source=images(), method=Jumps, tx=optax.sgd(1e-3))
    said = capsys.readouterr().err
    words = "loss 1e+06 at step 16, above "
    assert said.count(words) == 2
    assert said.count(" for 3 steps: back to step 12\n") == 1
    assert said.count(" for 3 steps; it goes on\n") == 1
    assert [line["step"] for line in lines(tmp_path / "a")] == list(range(1, 25))
    calm = config | dict(guard=dict(spike=0.0))
    train.run(calm, tmp_path / "b", source=images(), method=Jumps, tx=optax.sgd(1e-3))
    assert words not in capsys.readouterr().err
    a, b = (without_times(lines(tmp_path / x)) for x in "ab")
    assert a == b


def test_a_step_computed_twice_is_the_step_and_a_flipped_bit_ends_the_run(
    tmp_path, monkeypatch
):
    twice = SMALL | dict(guard=dict(rerun_steps=3))
    once = train.run(SMALL, tmp_path / "once", source=images())
    again = train.run(twice, tmp_path / "twice", source=images())
    chex.assert_trees_all_equal(again.state, once.state)
    calls, step = [], pretrain.Pretraining.step

    def flips(self, state, batch, count):
        state, values, outputs = step(self, state, batch, count)
        calls.append(count)
        if len(calls) == 7:  # steps 1, 2, 3, 3, 4, 5, 6, and the second 6 is to come
            kernel = state.params["encoder"]["conv2"]["kernel"]
            held = np.array(kernel)
            held.reshape(-1).view(np.uint32)[17] ^= 1
            held = jax.device_put(held, kernel.sharding)
            state.params["encoder"]["conv2"]["kernel"] = held
        return state, values, outputs

    monkeypatch.setattr(pretrain.Pretraining, "step", flips)
    with pytest.raises(
        OSError, match="step 6, computed twice, differs in 0/params/enc"
    ):
        train.run(twice, tmp_path / "flipped", source=images())
    assert [x.name for x in (tmp_path / "flipped/checkpoints").glob("[0-9]*")] == ["4"]


def test_the_last_step_is_looked_at_before_it_is_saved(tmp_path):
    tx = optax.sgd(jnp.inf)
    limit = dict(guard=dict(skipped_steps=8, stuck_seconds=0.0))
    with pytest.raises(FloatingPointError, match="at step 8, 8 steps in a row"):
        train.run(SMALL | limit, tmp_path, source=images(), tx=tx)
    assert lines(tmp_path)[-1]["step"] == 8


def test_weights_and_biases_may_take_their_time_to_finish(tmp_path, monkeypatch):
    dogs, paused = [], []

    class Seen(Watchdog):
        def __init__(self, *args):
            super().__init__(*args)
            dogs.append(self)

    class Run:
        def log(self, *args, **kwargs):
            pass

        def finish(self):
            paused.append(dogs[0]._paused)

    start = "vicreg_jax.run.metrics_file.wandb_starter"
    monkeypatch.setattr(start, lambda project: lambda *_: Run())
    monkeypatch.setattr(session, "Watchdog", Seen)
    train.run(SMALL, tmp_path, source=images())
    assert paused == [1]


def test_without_a_checkpoint_it_stops_at_once(tmp_path):
    tx = optax.sgd(jnp.inf)
    with pytest.raises(
        FloatingPointError, match="not finite at step 2, 2 steps in a r"
    ):
        train.run(SMALL | GUARD, tmp_path, source=images(), tx=tx)
    assert not list((tmp_path / "checkpoints").glob("[0-9]*"))
