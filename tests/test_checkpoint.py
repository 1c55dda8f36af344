"""Checkpoints: what comes back, and what happens to damaged ones."""

import gc
import logging

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vicreg_jax import checkpoint, sharding, train
from vicreg_jax.checkpoint import Checkpoints

# Where reading one array fails, Orbax drops its readers of the others half way.
pytestmark = pytest.mark.filterwarnings(
    "ignore::pytest.PytestUnraisableExceptionWarning"
)


@pytest.fixture(autouse=True)
def dropped_readers_end_with_the_test():
    yield
    gc.collect()


def tree(scale=1.0):
    values = jax.random.normal(jax.random.key(0), (64, 33)) * scale
    return {"a": values, "b": {"c": values.astype(jnp.bfloat16), "step": jnp.int32(3)}}


def saved(folder, *steps):
    checkpoints = Checkpoints(folder)
    for step in steps:
        checkpoints.save(step, tree(step))
    checkpoints.close()


def test_what_was_saved_comes_back_bit_for_bit(tmp_path):
    saved(tmp_path, 1, 2)
    step, state = Checkpoints(tmp_path).restore(tree())
    assert step == 2
    chex.assert_trees_all_equal(state, tree(2))
    chex.assert_trees_all_equal_dtypes(state, tree(2))


def test_only_the_newest_are_kept(tmp_path):
    saved(tmp_path, 1, 2, 3)
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_dir()) == ["2", "3"]


def test_an_empty_folder_has_nothing_to_restore(tmp_path):
    assert Checkpoints(tmp_path / "new").restore(tree()) is None


def test_a_state_returns_to_another_number_of_devices(tmp_path, mesh):
    saved(tmp_path, 1)
    placed = jax.device_put(tree(), sharding.whole(mesh))
    _, state = Checkpoints(tmp_path).restore(placed)
    assert state["a"].sharding == sharding.whole(mesh)
    chex.assert_trees_all_equal(state, tree())


def damage(folder, how):
    """Damages the largest file below the folder: its array data."""
    file = max(
        (p for p in folder.rglob("*") if p.is_file()), key=lambda p: p.stat().st_size
    )
    data = bytearray(file.read_bytes())
    if how == "flip":
        data[len(data) // 2] ^= 1
    else:
        data = data[: len(data) // 2]
    file.write_bytes(data)


@pytest.mark.parametrize("how", ["flip", "truncate"])
def test_a_damaged_checkpoint_is_passed_over_for_an_older_one(tmp_path, how, caplog):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2" / "state", how)
    with caplog.at_level(logging.WARNING):
        step, state = Checkpoints(tmp_path).restore(tree())
    assert step == 1
    chex.assert_trees_all_equal(state, tree(1))
    assert "checkpoint not usable, step 2" in caplog.text


def test_a_damaged_checkpoint_is_kept_aside_and_does_not_bar_its_step(tmp_path):
    saved(tmp_path, 1, 2)
    damage(tmp_path / "2" / "state", "flip")
    checkpoints = Checkpoints(tmp_path)
    assert checkpoints.restore(tree())[0] == 1
    checkpoints.save(2, tree(5))
    checkpoints.close()
    assert len(list(tmp_path.glob("damaged_2_*"))) == 1
    step, state = Checkpoints(tmp_path).restore(tree())
    assert step == 2
    chex.assert_trees_all_equal(state, tree(5))


def test_without_a_usable_checkpoint_nothing_is_started_anew(tmp_path):
    saved(tmp_path, 1)
    damage(tmp_path / "1" / "state", "flip")
    with pytest.raises(ValueError, match="no usable checkpoint in .*step 1: checksum"):
        Checkpoints(tmp_path).restore(tree())


def test_a_state_of_other_shapes_is_refused(tmp_path):
    saved(tmp_path, 1)
    other = tree() | {"a": jnp.zeros((5, 5))}
    with pytest.raises(ValueError, match="no usable checkpoint"):
        Checkpoints(tmp_path).restore(other)


def test_a_state_of_another_dtype_is_refused(tmp_path):
    saved(tmp_path, 1)
    other = tree() | {"a": jnp.zeros((64, 33), jnp.bfloat16)}
    with pytest.raises(ValueError, match="checksum of a is wrong"):
        Checkpoints(tmp_path).restore(other)


def test_a_saved_step_is_not_written_again(tmp_path):
    saved(tmp_path, 1)
    checkpoints = Checkpoints(tmp_path)
    checkpoints.save(1, tree(7))
    checkpoints.close()
    chex.assert_trees_all_equal(Checkpoints(tmp_path).restore(tree())[1], tree(1))


RUN = dict(
    epochs=2,
    data=dict(batch_size=16, image_size=8),
    model=dict(encoder="digits", expander=(16, 16)),
    optimizer=dict(warmup_epochs=1),
)


def pictures():
    return np.random.default_rng(0).integers(0, 256, (32, 8, 8, 3), np.uint8)


def test_the_encoder_of_a_run_is_loaded_as_it_was_trained(tmp_path):
    trained = train.run(RUN, tmp_path, source=pictures())
    module, variables = checkpoint.load_encoder(tmp_path)
    chex.assert_trees_all_equal(variables, jax.device_get(trained.variables))
    images = jnp.ones((2, 8, 8, 3))
    np.testing.assert_array_equal(
        module.apply(variables, images, train=False),
        trained.encoder.apply(trained.variables, images, train=False),
    )


def test_an_encoder_of_the_users_own_is_loaded_when_it_is_given(tmp_path):
    class Linear(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            return nn.Dense(12)(x.reshape(len(x), -1))

    trained = train.run(RUN, tmp_path, encoder=Linear(), source=pictures())
    _, variables = checkpoint.load_encoder(tmp_path, encoder=Linear())
    chex.assert_trees_all_equal(
        variables["params"], jax.device_get(trained.variables["params"])
    )
    with pytest.raises(ValueError, match="no usable checkpoint"):
        checkpoint.load_encoder(tmp_path)


def test_a_folder_without_a_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="is no run: there is no config.json"):
        checkpoint.load_encoder(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(FileNotFoundError, match="has no checkpoint yet"):
        checkpoint.load_encoder(tmp_path)
