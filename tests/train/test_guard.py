"""Numbers that go wrong and steps that never end: skipped, explained, ended."""

import os
import signal
import subprocess
import sys
import time

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.processes import environment
from helpers.records import lines, without_times
from helpers.runs import SMALL, images, state_of

from vicreg_jax import methods, models, train
from vicreg_jax.data import plan
from vicreg_jax.devices import sharding
from vicreg_jax.run import session, spikes
from vicreg_jax.run.watchdog import Watchdog
from vicreg_jax.train import not_finite, pretrain

METHOD = methods.Vicreg(models.create("digits"), models.Expander((16, 16)))
GUARD = dict(guard=dict(skipped_steps=2))


def batches(n, *, bad=()):
    """n times pairs of views; some steps have a pixel that is no number."""
    views = jax.random.normal(jax.random.key(1), (n, 16, 2, 8, 8, 1))
    for i in bad:
        views = views.at[i, 5, 1, 0, 0].set(jnp.nan)
    return list(views)


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


@pytest.mark.parametrize("first, back", [(7, 4), (9, 8), (11, 8)])
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


def test_what_never_beats_again_is_ended_with_its_stacks(tmp_path):
    code = """if True:
        import sys, time
        from pathlib import Path
        from vicreg_jax.run.watchdog import Watchdog

        def stuck_in_here():
            time.sleep(100)

        dog = Watchdog(1.0, Path(sys.argv[1]))
        for _ in range(3):
            dog.beat()
        with dog.paused():
            time.sleep(2.5)  # longer than the limit, but told
        stuck_in_here()
    """
    begin = time.monotonic()
    command = [sys.executable, "-c", code, str(tmp_path / "stuck.txt")]
    done = subprocess.run(
        command, env=environment(), capture_output=True, text=True, timeout=90
    )
    assert done.returncode == 75 and time.monotonic() - begin < 80
    assert (
        "stuck_in_here" in done.stderr
        and "stuck_in_here" in (tmp_path / "stuck.txt").read_text()
    )
    last = done.stderr.splitlines()[-1]
    assert last.startswith("vicreg_jax: no step has finished for ")


@pytest.fixture
def watched(monkeypatch, tmp_path):
    """A function (seconds) -> (watchdog that ends nothing, its clock, its looks)."""
    monkeypatch.setattr(Watchdog, "_watch", lambda self: None)

    def make(seconds):
        now = [0.0]
        dog = Watchdog(seconds, tmp_path / "stuck", clock=lambda: now[0])

        def looks(seconds, every=1.0):
            """What the thread sees of some seconds without a beat."""
            seen = []
            for _ in range(round(seconds / every)):
                now[0] += every
                seen.append(dog._look())
            return max(seen)

        return dog, now, looks

    return make


def test_nothing_is_ended_before_the_second_beat(watched):
    dog, _, looks = watched(8.0)
    assert looks(100) == 0
    dog.beat()
    assert looks(0.1, every=0.1) == 0 and looks(100) == 0  # it compiles
    dog.beat()
    assert looks(1000) == 0  # 20 times 100.1 s
    for _ in range(9):
        dog.beat()
    assert looks(9) == 0
    assert 8.0 < looks(1) <= 9.0


def test_a_pause_and_each_beat_begin_anew(watched):
    dog, now, looks = watched(8.0)
    dog.beat()
    dog.beat()
    for _ in range(3):
        assert looks(8) == 0
        with dog.paused():
            assert looks(100) == 0
        assert looks(8) == 0
        now[0] += 0.1
        dog.beat()
        dog._times.clear(), dog._times.append(0.1)
    assert looks(10) > 8.0


def test_a_process_that_was_stopped_is_not_stuck(watched):
    """By SIGSTOP, Ctrl-Z or with its machine: neither it nor its watchdog ran."""
    dog, now, looks = watched(120.0)
    dog.beat()
    dog.beat()
    for _ in range(5):
        assert looks(20) == 0
        now[0] += 3600  # stopped
    assert looks(9) == 0
    assert looks(20) > 120.0  # what it has run


def test_a_run_whose_data_hangs_is_ended_and_continues(tmp_path):
    code = """if True:
        import sys, threading, time
        from pathlib import Path
        import numpy as np
        from vicreg_jax import train
        from vicreg_jax.run.watchdog import Watchdog

        init, dogs = Watchdog.__init__, []
        def remembered(self, *args, **options):
            init(self, *args, **options)
            dogs.append(self)
        Watchdog.__init__ = remembered

        class Hanging:
            def __len__(self):
                return 64

            def __getitem__(self, indices):
                Hanging.reads = getattr(Hanging, "reads", 0) + 1
                if sys.argv[2] == "hang" and Hanging.reads == 10:
                    # Only now: a busy machine may take long to compile.
                    while not Path(sys.argv[1], "checkpoints", "4").exists():
                        time.sleep(0.05)
                    dogs[0]._least = 0.5
                    threading.Event().wait()
                return np.zeros((len(indices), 8, 8, 1), np.uint8)

        train.run(
            dict(
                epochs=4,
                data=dict(batch_size=16, image_size=8, mean=(0.5,), std=(0.5,)),
                model=dict(encoder="digits", expander=(16, 16)),
                optimizer=dict(warmup_epochs=1),
                guard=dict(stuck_seconds=600.0),
            ),
            sys.argv[1],
            source=Hanging(),
        )
    """
    command = [sys.executable, "-c", code, str(tmp_path)]
    how = dict(env=environment(), capture_output=True, text=True, timeout=170)
    done = subprocess.run([*command, "hang"], **how)
    assert done.returncode == 75, done.stderr
    assert "Hanging" in done.stderr or "__getitem__" in done.stderr
    assert (tmp_path / "stuck_0.txt").exists()
    done = subprocess.run([*command, "go"], **how)
    assert done.returncode == 0 and "continuing" in done.stderr, done.stderr
    steps = [line["step"] for line in lines(tmp_path)]
    assert steps[-1] == 16 and len(set(steps)) == len(steps)
