"""Runs of several processes through the real entry point, killed and continued."""

import random
import re
import signal
import time

import chex
import jax
import numpy as np
import pytest
from helpers.paths import ROOT
from helpers.pictures import pictures
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
@pytest.mark.parametrize(
    "number",
    [signal.SIGTERM, pytest.param(signal.SIGUSR1, marks=pytest.mark.long)],
)
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


OTHERS = [
    ("seed=1", "config.seed is 0 of process 0, 1 of process 1"),
    ("epochs=5", "config.epochs is 4 of process 0, 5 of process 1"),
    ("optimizer.base_lr=0.1", "config.optimizer.base_lr is 0.02 of process 0, 0.1 of"),
    ("loss.invariance=1.0", "config.loss.invariance is 25.0 of process 0, 1.0 of pro"),
    ("augment.flip=0.1", "config.augment.flip is 0.0 of process 0, 0.1 of process 1"),
    ("every.log_steps=7", "config.every.log_steps is 5 of process 0, 7 of process 1"),
    ("model.expander=(8,8)", "config.model.expander is [16, 16] of process 0, [8, 8]"),
    ("data.batch_size=64", "config.data.batch_size is 96 of process 0, 64 of process"),
    ("guard.skipped_steps=3", "config.guard.skipped_steps is 10 of process 0, 3 of p"),
    ("evaluate.probe=True", "config.evaluate.probe is False of process 0, True of pr"),
    ("wandb=x", "config.wandb is"),
    ("epochs=0", "config.epochs must be positive; got 0"),
    ("data.name=folder", "config.data.path is empty; data.name 'folder' needs the f"),
]


@pytest.mark.parametrize(
    "field, text",
    [
        pytest.param(*x, marks=pytest.mark.long if 0 < i < 11 else pytest.mark.slow)
        for i, x in enumerate(OTHERS)
    ],
)
def test_processes_of_different_configs_all_end_with_one_line(field, text, tmp_path):
    own = {1: (f"--config.{field}",)}
    statuses, said = finish(start_processes(tmp_path / "run", 2, 1, own=own))
    assert statuses == [2, 2], said
    for line in (x.strip().splitlines()[-1] for x in said):
        assert line.startswith("vicreg_jax: ") and text in line
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_processes_of_different_data_workdirs_or_evaluations_do_not_begin(
    tmp_path, run
):
    homes = [tmp_path / x for x in ("here", "there")]
    for home in homes:
        pictures(home / "images", each=8)
    (homes[1] / "images" / "a" / "1.png").rename(homes[1] / "images" / "a" / "x.png")
    # Each its own data at one path, as a disk that is not shared has them.
    folder = ("--config.data.name=folder", "--config.data.batch_size=8")
    folder += ("--config.data.image_size=8", "--config.data.mean=(0.5,0.5,0.5)")
    folder += ("--config.data.std=(0.2,0.2,0.2)", "--config.data.path=~/images")
    running = start_processes(tmp_path / "a", 2, 1, *folder, homes=homes)
    statuses, said = finish(running)
    assert statuses == [2, 2], said
    assert all("data.names of files is" in x for x in said), said
    homes[1] = tmp_path  # which has no such folder
    running = start_processes(tmp_path / "a", 2, 1, *folder, homes=homes)
    statuses, said = finish(running)
    assert statuses == [2, 2], said
    assert all(f"there is no folder '{tmp_path}/images'" in x for x in said), said
    own = {i: (f"--workdir={tmp_path / x}",) for i, x in enumerate("bc")}
    statuses, said = finish(start_processes(tmp_path / "b", 2, 1, own=own))
    assert statuses == [2, 2], said
    assert all("the workdir is" in x for x in said)
    assert not any((tmp_path / x / "config.json").exists() for x in "abc")
    config = (f"--config={ROOT}/configs/eval/knn.py", f"--config.checkpoint={run}")
    own = {1: ("--config.knn.temperature=0.2",)}
    running = start_processes(tmp_path / "d", 2, 1, base=config, own=own)
    statuses, said = finish(running)
    assert statuses == [2, 2], said
    assert all("config.knn.temperature is 0.07 of process 0, 0.2" in x for x in said)


@pytest.mark.long
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
