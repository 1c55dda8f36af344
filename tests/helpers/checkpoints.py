"""Checkpoints of a small tree."""

import jax
import jax.numpy as jnp

from vicreg_jax.run.checkpoints import Checkpoints


def tree(scale=1.0):
    values = jax.random.normal(jax.random.key(0), (64, 33)) * scale
    return {
        "a": values,
        "b": {"c": values.astype(jnp.bfloat16), "step": jnp.int32(3)},
        "key": jax.random.key(int(scale)),
    }


def saved(folder, *steps, **facts):
    checkpoints = Checkpoints(folder, facts=facts)
    for step in steps:
        checkpoints.save(step, tree(step))
    checkpoints.close()
