"""A step computed again: the recorded one to the bit, and what brings it."""

import json

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.paths import ROOT
from helpers.processes import main
from helpers.records import lines
from helpers.runs import SMALL, images

from vicreg_jax import train
from vicreg_jax.data import plan
from vicreg_jax.refusals import Refusal, Unusable
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.train import replaying

CONFIG = SMALL | dict(epochs=3, every=dict(log_steps=1, checkpoint_epochs=1))


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("replay")
    return workdir, train.run(CONFIG, workdir, source=images())


@pytest.mark.parametrize("step, start", [(12, 8), (9, 8)])
def test_a_step_again_is_the_recorded_one_to_the_bit(step, start, ran):
    workdir, _ = ran
    before = {x: x.read_bytes() for x in workdir.rglob("*") if x.is_file()}
    found = train.replay(workdir, step, source=images())
    assert (found.step, found.start, found.not_finite) == (step, start, "")
    recorded = lines(workdir)[step - 1]
    names = {"loss", "invariance", "variance", "covariance", "grad_norm"}
    assert names <= found.recorded.keys()
    for name, value in found.recorded.items():
        assert found.metrics[name] == value == recorded[name], name
    assert {x: x.read_bytes() for x in workdir.rglob("*") if x.is_file()} == before


def test_the_state_afterwards_is_that_of_the_checkpoint_and_norms_are_numpys(ran):
    workdir, trained = ran
    found = train.replay(workdir, 12, source=images())
    chex.assert_trees_all_equal(found.state.params, trained.state.params)
    _, old = Checkpoints(workdir / "checkpoints", read_only=True).restore(
        jax.tree.map(lambda x: x, found.state), step=8
    )
    again = train.replay(workdir, 9, source=images())
    for name in ("conv1", "conv3"):
        arrays = jax.tree.map(np.float64, old.params["encoder"][name])
        new = jax.tree.map(np.float64, again.state.params["encoder"][name])
        norms = again.layers[f"encoder/{name}"]
        flat, change = (
            np.concatenate([x.ravel() for x in jax.tree.leaves(tree)])
            for tree in (arrays, jax.tree.map(np.subtract, new, arrays))
        )
        assert norms.parameters == pytest.approx(np.linalg.norm(flat), rel=1e-5)
        assert norms.update == pytest.approx(np.linalg.norm(change), rel=1e-3)
    squares = sum(norms.gradient**2 for norms in again.layers.values())
    assert np.sqrt(squares) == pytest.approx(again.metrics["grad_norm"], rel=1e-4)
    shares = [image.share for image in again.images]
    assert len(shares) == 5 and shares == sorted(shares, reverse=True)
    chosen = plan.permutation(0, 2, 64)[:16]  # the first step of epoch 2
    for image in again.images:
        assert image.index == chosen[image.position] and image.name == ""


def test_before_the_first_checkpoint_it_begins_at_nothing(ran):
    workdir, _ = ran
    kept = sorted(int(x.name) for x in (workdir / "checkpoints").glob("[0-9]*"))
    assert kept == [8, 12]
    found = train.replay(workdir, 3, source=images())
    assert found.start == 0 and found.metrics["loss"] == lines(workdir)[2]["loss"]


class Black(nn.Module):
    """An encoder that a black image brings to infinity."""

    @nn.compact
    def __call__(self, x, *, train):
        black = jnp.max(x, axis=(1, 2, 3), keepdims=True) < -0.99
        x = nn.Dense(12, name="dense")(x.reshape(len(x), -1))
        return jnp.where(black[:, :, 0, 0], jnp.inf, x)


def test_what_is_not_finite_is_brought_home_to_its_image(tmp_path):
    """From the file that the run left, too."""
    source, order = images(), plan.permutation(0, 1, 64)
    source[order[5]] = 0  # position 5 of step 5
    calm = dict(augment=dict(jitter=0.0, solarize=(0.0, 0.0)))
    config = SMALL | calm | dict(guard=dict(skipped_steps=1))
    given = dict(source=source, encoder=Black(), tx=optax.sgd(1e-3))
    with pytest.raises(FloatingPointError, match="not finite at step"):
        train.run(config, tmp_path, **given)
    (path,) = tmp_path.glob("not_finite_*.npz")
    workdir, step = replaying.of_batch(path)
    assert workdir == tmp_path and step in (1, 2, 3, 4, 5)
    found = train.replay(workdir, step, **given)
    first = np.load(path)["indices"].tolist().index(order[5])
    assert found.not_finite.endswith(f"batch positions {first}")
    assert not found.images and found.metrics["skipped_in_a_row"] == 1


def test_what_cannot_be_replayed_is_one_line(ran, tmp_path):
    workdir, _ = ran
    for step in (0, 13):
        with pytest.raises(Refusal, match=f"are 1 to 12; got {step}"):
            train.replay(workdir, step, source=images())
    with pytest.raises(Refusal, match="holds no run; give its folder as --workdir"):
        train.replay(tmp_path, 1, source=images())
    for name in ("not_finite_3.npz", "x.npz"):
        with pytest.raises(Unusable, match="is no file not_finite_STEP.npz of a run"):
            replaying.of_batch(tmp_path / name)


@pytest.mark.long
def test_the_task_prints_tables(run):
    config = f"--config={ROOT}/configs/replay.py"
    done = main(config, f"--workdir={run}", "--config.step=45")
    assert done.returncode == 0, done.stderr
    assert (
        f"step 45 of {run}, computed again from the checkpoint of step 42"
        in done.stdout
    )
    loss = next(x for x in done.stdout.splitlines() if " loss " in x)
    recorded = next(x for x in lines(run) if x["step"] == 45)["loss"]
    assert (
        f"{recorded:.9g}" in loss and "equal" in loss and "DIFFERS" not in done.stdout
    )
    assert "encoder/conv1" in done.stdout and "% of the gradient at the" in done.stdout
    for flags, text in (
        ((f"--workdir={run}",), "the task replay needs config.step, from 1 on, or con"),
        (("--config.step=3",), "--workdir is missing: the folder of the run to replay"),
        ((f"--workdir={run}", "--config.step=99"), "are 1 to 56; got 99"),
    ):
        done = main(config, *flags)
        assert done.returncode == 2 and text in done.stderr, done.stderr
        assert len(done.stderr.splitlines()) == 1
    config = json.loads((run / "config.json").read_text())
    assert config["task"] == "pretrain"  # nothing is written
