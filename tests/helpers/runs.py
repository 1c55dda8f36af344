"""Small runs of pretraining: what is trained, and what is left of them."""

import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from helpers.processes import environment
from vicreg_jax.run.state import TrainState

SMALL = dict(
    epochs=2,
    data=dict(batch_size=16, image_size=8, mean=(0.5,), std=(0.5,)),
    model=dict(encoder="digits", expander=(16, 16)),
    optimizer=dict(warmup_epochs=1),
    every=dict(log_steps=1),
)
RUN = dict(
    epochs=2,
    data=dict(batch_size=16, image_size=8),
    model=dict(encoder="digits", expander=(16, 16)),
    optimizer=dict(warmup_epochs=1),
)


def images(n=64, size=8, channels=1, seed=0):
    shape = (n, size, size, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def state_of(model, tx, sample):
    variables = model.init(jax.random.key(0), sample, train=False)
    return TrainState(
        step=jnp.zeros([], jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
    )


def checkpoint_hash(workdir):
    """Returns the newest step and the sha256 of its arrays, read in another process."""
    code = """if True:
        import hashlib, sys, numpy as np, jax, orbax.checkpoint as ocp
        manager = ocp.CheckpointManager(sys.argv[1])
        step = manager.latest_step()
        with ocp.PyTreeCheckpointer() as reader:  # whichever devices it was saved on
            where = manager.directory / str(step) / "state"
            like = reader.metadata(where).item_metadata.tree
            host = lambda _: ocp.RestoreArgs(restore_type=np.ndarray)
            state = reader.restore(where, restore_args=jax.tree.map(host, like))
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(state):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.ascontiguousarray(leaf).tobytes())
        print(step, digest.hexdigest())
    """
    folder = str(Path(workdir).absolute() / "checkpoints")
    command = [sys.executable, "-W", "ignore", "-c", code, folder]
    out = subprocess.run(command, env=environment(), capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
    return out.stdout.split()
