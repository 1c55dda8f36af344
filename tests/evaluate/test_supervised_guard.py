"""Training with labels where numbers go wrong or nothing moves any more."""

import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.evaluations import fit, load, newest, protocol
from helpers.paths import ROOT
from helpers.processes import environment

from vicreg_jax.evaluate import heads, supervised
from vicreg_jax.evaluate.inputs import held_out
from vicreg_jax.run.state import TrainState


@pytest.mark.parametrize("norm", [False, True])
def test_a_head_that_diverges_stays_finite_and_leaves_the_others_alone(
    norm, trained, data, tmp_path
):
    options = dict(weight_decay=(0.0,), held_out=0.25, batch_norm=norm)
    bank = protocol(data, epochs=8, head=options | dict(rates=(0.05, 1e30)))
    outcome = fit(bank, trained, tmp_path / "bank")
    together = newest(tmp_path / "bank")["0"]
    assert all(np.isfinite(x).all() for x in together.values())
    assert outcome.chosen == 0
    config, encoder, variables = trained
    found = load(bank, config)
    kept, _ = held_out(found.kept, found.train.labels, 0.25, 5)
    (tmp_path / "one").mkdir()
    given = protocol(data, epochs=8, head=options | dict(rates=(0.05,)))
    images = found._replace(kept=kept)
    supervised.fit(given, tmp_path / "one", encoder, variables, images)
    for name, alone in newest(tmp_path / "one")["0"].items():
        np.testing.assert_allclose(together[name][0], alone[0], rtol=0, atol=1e-6)


def test_heads_are_kept_one_by_one():
    new = {"0": {"w": jnp.array([[1.0], [2.0]])}, "2": {"w": jnp.array([[3.0], [4.0]])}}
    old = jax.tree.map(lambda x: -x, new)
    momenta = jax.tree.map(lambda x: 10 * x, new)
    momenta["2"]["w"] = momenta["2"]["w"].at[0, 0].set(np.inf)
    each = jnp.array([np.nan, 0.5, 0.5, 0.5])
    (params, kept), good = heads.keep_finite(each, (new, momenta), (old, old))
    assert {k: x.tolist() for k, x in good.items()} == {
        "0": [False, True],
        "2": [False, True],
    }
    assert params["0"]["w"].tolist() == [[-1.0], [2.0]]
    assert params["2"]["w"].tolist() == [[-3.0], [4.0]]
    assert kept["2"]["w"].tolist() == [[-3.0], [40.0]]


def test_a_step_that_is_not_good_only_counts():
    state = TrainState(jnp.array(3), {"w": jnp.ones(2)}, {}, {"m": jnp.zeros(2)})
    nan = {"w": jnp.full(2, np.nan)}, {}, {"m": jnp.full(2, np.nan)}
    for expected in ([1, 1], [2, 2]):
        state = state.after(jnp.array(False), *nan)
        assert np.asarray(state.skipped).tolist() == expected
    state = state.after(jnp.array(True), {"w": jnp.zeros(2)}, {}, {"m": jnp.ones(2)})
    assert np.asarray(state.skipped).tolist() == [0, 2] and state.step == 6
    assert state.params["w"].tolist() == [0, 0] and state.opt_state["m"].sum() == 2


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_what_stays_not_finite_is_stopped_and_its_checkpoints_are_good(
    task, trained, data, tmp_path
):
    rates = dict(head=dict(rates=(1e36,)), finetune=dict(encoder_rate=1e36))
    given = protocol(data, task=task, epochs=30, guard=dict(skipped_steps=4), **rates)
    with pytest.raises(FloatingPointError, match="4 steps in a row.* lower config"):
        fit(given, trained, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    written = [json.loads(line) for line in text.splitlines()]
    assert written and written[-1]["step"] < 30  # well before the end
    assert all(np.isfinite(list(line.values())).all() for line in written)
    # An epoch ends inside the row: no checkpoint is made of what is not finite.
    assert not list((tmp_path / "run" / "checkpoints").glob("[0-9]*"))


def test_training_with_labels_leaves_behind_what_a_run_does(trained, data, tmp_path):
    fit(protocol(data), trained, tmp_path / "run")
    where = json.loads((tmp_path / "run" / "environment.json").read_text())
    assert where["jax"] == jax.__version__
    assert "batch_size 16 on 8 device(s)" in where["memory_per_device"]
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    assert [line["step"] for line in lines] == [1, 3, 6, 9]
    assert all({"images_per_second", "data_wait"} <= set(x) for x in lines[1:])


def test_the_order_of_layers_does_not_matter():
    head = protocol("x", head=dict(layers=(2, 0), rates=(0.1, 0.2))).head
    bank = heads.combinations(head)
    assert bank == [
        (layer, rate, 1e-6) for layer in (0, 2) for rate in (0.1, 0.2)
    ]  # as jax orders a tree: heads.logits' own order
    params, _ = heads.init(
        jax.random.key(0), {"2": 6, "0": 4}, heads=2, classes=3, norm=False
    )
    params["0"]["bias"] += 7
    x = {"0": jnp.zeros((1, 4)), "2": jnp.zeros((1, 6))}
    scores, _ = jax.jit(heads.logits, static_argnames="train")(
        params, {}, x, train=False
    )
    assert [bool(s.max() == 7) for s in scores] == [layer == 0 for layer, *_ in bank]
    with pytest.raises(ValueError, match="config.head.layers has a value twice"):
        protocol("x", head=dict(layers=(0, 0)))


@pytest.mark.slow
def test_a_stuck_evaluation_ends_itself(data, tmp_path):
    """A source whose images no longer come, in a process of its own."""
    program = f"""if True:
        import sys, threading
        sys.path.insert(0, {str(ROOT / "tests")!r})
        import jax, numpy as np
        from helpers.evaluations import load, protocol
        from vicreg_jax import config as configs, models
        from vicreg_jax.evaluate import supervised
        from vicreg_jax.run.watchdog import Watchdog
        from pathlib import Path

        init, dogs = Watchdog.__init__, []
        def remembered(self, *args, **options):
            init(self, *args, **options)
            dogs.append(self)
        Watchdog.__init__ = remembered
        data = dict(name="arrays", path="x", image_size=8, mean=[0.4], std=[0.3])
        config = configs.parse(dict(data=data))
        encoder = models.create("digits")
        variables = encoder.init(
            jax.random.key(1), np.zeros((2, 8, 8, 1), np.float32), train=False
        )
        given = protocol({data!r}, epochs=50, guard=dict(stuck_seconds=600.0))
        found = load(given, config)
        make = supervised.batches.Batches.make
        def slow(self, planner, step, rows):
            if step > 20:
                dogs[0]._least = 0.5  # only now: compiling may take long
                threading.Event().wait()
            return make(self, planner, step, rows)
        supervised.batches.Batches.make = slow
        supervised.fit(given, Path({str(tmp_path)!r}), encoder, variables, found)
    """
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=environment(),
        capture_output=True,
        text=True,
        timeout=1500,
    )
    assert done.returncode == 75, done.stderr
    assert "no step has finished for" in done.stderr
    assert (tmp_path / "stuck_0.txt").read_text().count("Thread") > 1
