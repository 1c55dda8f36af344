"""Runs of several processes through the real entry point, killed and continued."""

import random
import re
import signal
import time

import chex
import jax
import numpy as np
import pytest
from helpers.processes import finish, kill, start_processes
from helpers.records import lines, without_times
from helpers.runs import SMALL, checkpoint_hash, images

from vicreg_jax import train
from vicreg_jax.devices import sharding


@pytest.fixture(scope="module")
def pair(tmp_path_factory):
    """An uninterrupted run of two processes with two devices each."""
    workdir = tmp_path_factory.mktemp("pair") / "run"
    statuses, said = finish(
        start_processes(workdir, 2, 2, "--config.evaluate.knn_epochs=4")
    )
    assert statuses == [0, 0], said
    return workdir, said


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """The record of the same run by one process with four devices."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    statuses, said = finish(
        start_processes(workdir, 1, 4, "--config.evaluate.knn_epochs=4")
    )
    assert statuses == [0], said
    return lines(workdir)


def check_alike(one, several):
    assert [x["step"] for x in one] == [x["step"] for x in several]
    for name in ("loss", "invariance", "variance", "covariance", "grad_norm"):
        # Before rounding has had steps to grow.
        assert several[0][name] == pytest.approx(one[0][name], rel=1e-5), name
    assert several[-1]["loss"] == pytest.approx(one[-1]["loss"], rel=2e-2)
    assert abs(several[-1]["knn_top1"] - one[-1]["knn_top1"]) < 10


@pytest.mark.slow
def test_two_processes_train_what_one_trains_and_only_the_first_speaks(alone, pair):
    workdir, said = pair
    check_alike(alone, lines(workdir))
    assert "step 56/56" in said[0] and "step" not in said[1]


@pytest.mark.long
def test_four_processes_of_one_device_each_train_what_one_trains(alone, tmp_path):
    statuses, said = finish(
        start_processes(tmp_path, 4, 1, "--config.evaluate.knn_epochs=4")
    )
    assert statuses == [0] * 4, said
    check_alike(alone, lines(tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGUSR1])
def test_a_signal_to_one_of_two_stops_both_at_one_step_and_they_continue(
    number, pair, tmp_path
):
    flags = ("--config.evaluate.knn_epochs=4",)
    running = start_processes(tmp_path, 2, 2, *flags)
    kill(tmp_path, running, number, 10, 1)
    statuses, said = finish(running)
    assert statuses == [0, 0], said
    stopped = int(re.search(r"stopped and saved at step (\d+) of 56", said[0])[1])
    assert checkpoint_hash(tmp_path)[0] == str(stopped)
    assert lines(tmp_path)[-1]["step"] <= stopped < 56
    statuses, said = finish(start_processes(tmp_path, 2, 2, *flags))
    assert statuses == [0, 0] and "continuing" in said[0], said
    assert checkpoint_hash(tmp_path) == checkpoint_hash(pair[0])
    assert without_times(lines(tmp_path)) == without_times(lines(pair[0]))


@pytest.mark.long
@pytest.mark.parametrize("processes, devices", [(1, 1), (1, 8), (2, 2)])
def test_a_run_killed_at_random_ends_bit_for_bit_like_an_uninterrupted_one(
    processes, devices, tmp_path
):
    """SIGKILL, mostly; the survivor of two is killed too, as its launcher would."""
    flags = ("--config.evaluate.probe=True",)
    statuses, said = finish(
        start_processes(tmp_path / "whole", processes, devices, *flags)
    )
    assert set(statuses) == {0}, said
    chance, killed = random.Random(processes + devices), 0
    for number in range(60):
        if killed == KILLS:
            break
        workdir = tmp_path / f"{number}"
        while True:
            running = start_processes(workdir, processes, devices, *flags)
            target = -1
            if killed < KILLS:
                path = workdir / "metrics.jsonl"
                done = lines(workdir) if path.exists() and path.read_text() else []
                target = (done[-1]["step"] if done else 0) + chance.randint(1, 12)
                kill(workdir, running, signal.SIGKILL, target, 0)
                time.sleep(chance.random() / 5)
                for process in running:
                    process.kill()
            statuses, said = finish(running)
            if set(statuses) == {0}:
                break
            killed += 1
        assert checkpoint_hash(workdir) == checkpoint_hash(tmp_path / "whole")
        a, b = (without_times(lines(x)) for x in (workdir, tmp_path / "whole"))
        assert a == b
    assert killed >= KILLS


KILLS = 17  # in each of the three settings: 51 in all


def test_a_divided_state_trains_what_a_whole_one_trains(tmp_path):
    config = SMALL | dict(model=dict(encoder="digits", expander=(256, 128)))
    trained = []
    for sharded in (False, True):
        given = config | dict(optimizer=dict(warmup_epochs=1, sharded=sharded))
        trained.append(train.run(given, tmp_path / str(sharded), source=images()))
    whole, divided = (x.state.params["expander"]["linear1"]["kernel"] for x in trained)
    assert whole.sharding.is_fully_replicated
    assert divided.addressable_shards[0].data.size == divided.size // 8
    momenta = [
        x
        for x in jax.tree.leaves(trained[1].state.opt_state)
        if getattr(x, "shape", ()) == divided.shape
    ]
    assert momenta and not any(x.sharding.is_fully_replicated for x in momenta)
    a, b = (jax.device_get(x.encoder.variables) for x in trained)
    chex.assert_trees_all_close(a, b, rtol=0, atol=1e-4)  # sums in another order
    # What was divided continues, on fewer devices too.
    again = train.run(given | dict(epochs=3), tmp_path / "True", source=images())
    assert int(again.state.step) == 12


def test_small_arrays_and_odd_shapes_stay_whole(mesh):
    shapes = {
        "large": np.zeros((128, 256)),
        "tall": np.zeros((4096, 9)),
        "odd": np.zeros((999, 77)),
        "small": np.zeros(64),
    }
    found = sharding.divided(mesh, shapes)
    assert found["large"].spec == jax.sharding.PartitionSpec(None, "data")
    assert found["tall"].spec == jax.sharding.PartitionSpec("data")
    assert found["odd"] == found["small"] == sharding.whole(mesh)
