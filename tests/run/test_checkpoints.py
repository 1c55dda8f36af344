"""Checkpoints: what comes back, what is kept, and what does not fit."""

import json
import socket
import subprocess
import sys
import tempfile

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.checkpoints import saved, tree
from helpers.processes import environment
from helpers.runs import RUN, images
from hypothesis import given, settings
from hypothesis import strategies as st

from vicreg_jax import train
from vicreg_jax.devices import processes, sharding
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.weights import loading


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path, 1, 2)
    checkpoints = Checkpoints(tmp_path)
    step, state = checkpoints.restore(tree())
    assert step == 2 and checkpoints.notes == []
    chex.assert_trees_all_equal(state, tree(2))
    chex.assert_trees_all_equal_dtypes(state, tree(2))


def test_a_certain_step_can_be_asked_for(tmp_path):
    saved(tmp_path, 1, 2)
    step, state = Checkpoints(tmp_path).restore(tree(), step=1)
    assert step == 1
    chex.assert_trees_all_equal(state, tree(1))
    with pytest.raises(ValueError, match="step 7: record.json cannot be read: it is m"):
        Checkpoints(tmp_path).restore(tree(), step=7)


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    checkpoints = Checkpoints(tmp_path / "new")
    assert checkpoints.restore(tree()) is None and checkpoints.steps() == []
    assert checkpoints.best() is None
    assert not processes.preempted()  # there is no jax.distributed


def test_a_saved_step_is_not_written_again(tmp_path):
    saved(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(7))
    checkpoints.close()
    chex.assert_trees_all_equal(Checkpoints(tmp_path).restore(tree())[1], tree(1))


def test_an_earlier_step_than_the_newest_is_refused_not_dropped(tmp_path):
    saved(tmp_path, 5)
    checkpoints = Checkpoints(tmp_path)
    with pytest.raises(OSError, match="step 3 could not .*: there is a later"):
        checkpoints.save(3, tree())


def test_a_state_returns_to_another_number_of_devices(tmp_path, mesh):
    saved(tmp_path, 1)
    placed = jax.device_put(tree(), sharding.whole(mesh))
    _, state = Checkpoints(tmp_path).restore(placed)
    assert state["a"].sharding == sharding.whole(mesh)
    chex.assert_trees_all_equal(state, tree(1))


SCORES = st.lists(
    st.tuples(st.none() | st.integers(0, 3), st.booleans()), min_size=1, max_size=8
)


@settings(max_examples=15, deadline=None)
@given(SCORES)
def test_the_newest_two_and_the_best_are_kept_also_over_restarts(saves):
    with tempfile.TemporaryDirectory() as folder:
        checkpoints, scores = Checkpoints(folder), {}
        for step, (score, restarted) in enumerate(saves):
            if restarted:
                checkpoints.close()
                checkpoints = Checkpoints(folder)
            checkpoints.save(step, {"a": jnp.ones(3)}, score=score)
            checkpoints.wait()
            if score is not None:
                scores[step] = score
            best = max(scores, key=lambda s: (scores[s], s), default=None)
            kept = {*range(step + 1)} & {step - 1, step, best}
            assert checkpoints.best() == best
            assert checkpoints.steps() == sorted(kept)
            scores = {s: x for s, x in scores.items() if s in kept}
        checkpoints.close()


@pytest.mark.parametrize("score", [float("nan"), float("inf")])
def test_a_score_that_is_not_finite_is_refused(tmp_path, score):
    with pytest.raises(ValueError, match="score of step 1 is (nan|inf)"):
        Checkpoints(tmp_path).save(1, tree(), score=score)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"a": jnp.zeros((5, 5))},
            r"a is float32\[64,33\] there and now float32\[5,5\]",
        ),
        (
            {"a": jnp.zeros((64, 33), jnp.bfloat16)},
            r"a is float32\[64,33\] there and now bfloat16\[64,33\]",
        ),
        (
            {"key": jnp.zeros(2, jnp.uint32)},
            r"key is key<fry>\[\] there and now uint32",
        ),
        ({"b": {"c": tree()["b"]["c"]}}, "b/step is only there"),
        ({"z": jnp.zeros(3)}, "it has no z"),
    ],
)
def test_a_state_of_other_arrays_is_refused_and_they_are_named(
    tmp_path, changes, expected
):
    saved(tmp_path, 1)
    with pytest.raises(ValueError, match=f"1 is of something else: {expected}"):
        Checkpoints(tmp_path).restore(tree() | changes)
    assert (tmp_path / "1").is_dir()


def test_other_facts_are_refused(tmp_path):
    saved(tmp_path, 1, examples=10, shape=(2, 3))
    assert Checkpoints(tmp_path, facts={"shape": (2, 3)}).restore(tree())[0] == 1
    with pytest.raises(ValueError, match="made with 10 examples, now there are 20"):
        Checkpoints(tmp_path, facts={"examples": 20}).restore(tree())
    with pytest.raises(ValueError, match="made with None classes, now there are 3"):
        Checkpoints(tmp_path, facts={"classes": 3}).restore(tree())


# Two processes with two devices each: the state has a part of which each process has a
# half. The newest checkpoint is damaged on disk; then one process alone fails to read.
PROCESS = """if True:
    import json, os, signal, sys
    import jax, jax.numpy as jnp, numpy as np
    from jax.experimental import multihost_utils

    folder, port, own = sys.argv[1], sys.argv[2], int(sys.argv[3])
    jax.config.update("jax_num_cpu_devices", 2)
    jax.distributed.initialize(f"127.0.0.1:{port}", 2, own)
    from pathlib import Path
    from vicreg_jax.devices import processes, sharding
    from vicreg_jax.run import orbax
    from vicreg_jax.run.checkpoints import Checkpoints

    mesh = sharding.data_mesh()
    places = dict(a=sharding.whole(mesh), half=sharding.split(mesh),
        key=sharding.whole(mesh))

    def tree(scale):
        return dict(a=jnp.arange(300.0) * scale, half=jnp.arange(4000.0) * scale,
            key=jax.random.key(scale))

    make = jax.jit(tree, static_argnums=0, out_shardings=places)

    def equal(state, scale):
        want = tree(scale)
        return all(
            np.array_equal(shard.data, np.asarray(want[name])[shard.index])
            for name in ("a", "half") for shard in state[name].addressable_shards
        ) and state["key"].sharding == places["key"]

    keys, wait = [], orbax._Barrier.__call__
    def remembered(self, *, key, timeout_ms):
        keys.append(key)
        wait(self, key=key, timeout_ms=timeout_ms)
    orbax._Barrier.__call__ = remembered
    first = Checkpoints(folder, facts=dict(examples=7))
    for step in (1, 2):
        first.save(step, make(step), score=1 / step)
    first.close()
    orbax._Barrier.__call__ = wait
    names = "set_value_start", "set_value_end", "async_commit_complete"
    found = [name for key in keys for name in names if name in key]
    if own == 0:
        # Half of the array that is spread over the processes lies in these.
        files = Path(folder, "2", "state", "ocdbt.process_1").rglob("*")
        file = max(files, key=lambda path: path.stat().st_size)
        data = bytearray(file.read_bytes())
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    multihost_utils.sync_global_devices("damaged")
    second = Checkpoints(folder, facts=dict(examples=7))
    step, state = second.restore(make(1))
    said = dict(step=step, equal=equal(state, step), best=second.best(), barriers=found)

    second.save(2, make(5))
    second.save(3, make(6))
    read = orbax.read
    def fails_once(*args, **options):
        orbax.read = read
        raise OSError("the network is down")
    if own == 1:
        orbax.read = fails_once
    step, state = second.restore(make(1))
    said |= dict(again=step, also_equal=equal(state, 5), notes=second.notes)

    for step in range(5, 100_000, 5):
        if processes.preempted():
            break
        if own == 1 and step == 50:
            os.kill(os.getpid(), signal.SIGTERM)
        multihost_utils.process_allgather(np.ones(1))
    second.save(step, make(9))
    second.close()
    print(json.dumps(said | dict(stopped=step)))
"""


def test_two_processes_agree_on_what_they_restore_and_when_they_stop(tmp_path, mesh):
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-c", PROCESS, str(tmp_path), str(port)]
    pipes = dict(stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    running = [
        subprocess.Popen([*command, str(i)], env=environment(NPROC="16"), **pipes)
        for i in range(2)
    ]
    try:
        ended = [process.communicate(timeout=1500) for process in running]
    finally:
        for process in running:
            process.kill()
    assert [process.returncode for process in running] == [0, 0], ended
    one, other = (json.loads(out.splitlines()[-1]) for out, _ in ended)
    assert one == other
    assert one["step"] == 1 and one["equal"] and one["best"] == 1
    # What orbax._Barrier goes by, of each of two saves, as Orbax names it today.
    begin_or_end = ["set_value_start", "set_value_end"]
    assert one["barriers"] == 2 * [
        *begin_or_end,
        "async_commit_complete",
        *begin_or_end,
    ]
    assert one["again"] == 2 and one["also_equal"] and one["notes"] == []
    assert "step 3: the network is down" in ended[0][1]  # which process 1 met
    damaged = {path.name for path in tmp_path.glob("damaged_*")}
    assert damaged == {"damaged_3"}  # 2 was replaced

    last = one["stopped"]
    like = dict(a=jnp.zeros(300), half=jnp.zeros(4000), key=jax.random.key(0))
    like = jax.device_put(like, sharding.whole(mesh))
    checkpoints = Checkpoints(tmp_path, facts={"examples": 7})
    step, state = checkpoints.restore(like)
    assert step == last and checkpoints.steps() == [1, 2, last]
    np.testing.assert_array_equal(state["half"], np.arange(4000.0) * 9)
    assert checkpoints.notes == [
        f"step {last} was saved on 4 devices of 2 processes and is now on 8 devices of"
        " 1 process: equal to rounding from here on, not bit for bit"
    ]


def test_the_encoder_of_a_run_is_loaded_as_it_was_trained(tmp_path):
    trained = train.run(RUN, tmp_path, source=images(32, channels=3))
    loaded = loading.load(tmp_path)
    want = trained.encoder
    chex.assert_trees_all_equal(loaded.variables, jax.device_get(want.variables))
    chex.assert_trees_all_equal(loaded.expander, jax.device_get(want.expander))
    assert loaded.module == want.module
    for name in ("mean", "std", "image_size", "config", "step"):
        assert getattr(loaded, name) == getattr(want, name) is not None
    x = jnp.ones((2, 8, 8, 3))
    np.testing.assert_array_equal(loaded.apply(x), want.apply(x))
    given = images(32, channels=3)
    np.testing.assert_array_equal(loaded(given), want(given))


def test_an_encoder_of_the_users_own_is_loaded_when_it_is_given(tmp_path):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(12)(x.reshape(len(x), -1))

    trained = train.run(RUN, tmp_path, encoder=Linear(), source=images(32, channels=3))
    loaded = loading.load(tmp_path, encoder=Linear())
    want = jax.device_get(trained.encoder.variables)
    chex.assert_trees_all_equal(loaded.variables["params"], want["params"])
    with pytest.raises(ValueError, match="is of something else: it has no batch_stats"):
        loading.load(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run: there is no config.json"):
        loading.load(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        loading.load(tmp_path)
