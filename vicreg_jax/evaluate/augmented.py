"""Frozen features of views as training saw them, augmented; no files."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import Source
from vicreg_jax.devices import sharding
from vicreg_jax.run.prefetch import Feed

__all__ = ["augmented_features"]

BATCH = 128  # images, of two views each


def augmented_features(
    apply: Callable[[Any, jax.Array], jax.Array],
    variables: Any,
    source: Source,
    config: Config,
    *,
    rows: np.ndarray,
    count: int,
    mesh: Mesh,
    progress: Callable[[int], None] = lambda done: None,
) -> np.ndarray:
    """Returns features of augmented views, float32 [n, count, f], by all devices.

    The views of an image come in pairs, a first and a second view of a run; they are a
    pure function of config.seed on any number of devices that divides 128.

    Args:
      apply: (variables, views [b, s, s, c]) -> [b, f].
      config: its seed, data and augmentations.
      rows: int [n], which images.
      count: of views of each image.
      progress: is told how many views are done.

    Raises:
      Refusal: what `Batches` refuses, or too many files that cannot be read.
    """
    config = replace(config, data=replace(config.data, views=2, local_views=0))
    pairs_of = batches.Batches(source, config, mesh)
    size = -(-BATCH // mesh.size) * mesh.size
    blocks, pairs = -(-len(rows) // size), -(-count // 2)
    padded = np.pad(rows, (0, blocks * size - len(rows)), mode="edge")

    def planner(step):
        block = step % blocks
        uniforms = plan.uniforms(config.seed, step, (size, 2, draw.NUMBERS))
        return plan.Plan(padded[block * size : (block + 1) * size], uniforms)

    own, whole = sharding.rows(size), sharding.whole(mesh)

    @partial(jax.jit, in_shardings=(whole, *pairs_of.sharding), out_shardings=whole)
    def see(variables, resident, batch):
        views = jnp.unstack(pairs_of.render(resident, batch), axis=1)
        seen = [apply(variables, view) for view in views]
        return jnp.stack(seen, axis=1).astype(jnp.float32)

    def make(step):
        return pairs_of.make(planner, step, own)

    variables = sharding.replicate(variables, mesh)
    resident, found = pairs_of.resident(), []
    steps = range(pairs * blocks)
    for step, batch in Feed(make, steps, sharding=sharding.split(mesh)):
        found.append(np.asarray(see(variables, resident, batch)))
        progress(2 * size * (step + 1))
    everything = np.stack(found).reshape(pairs, blocks * size, 2, -1)
    in_order = everything.transpose(1, 0, 2, 3)[: len(rows)]
    return in_order.reshape(len(rows), 2 * pairs, -1)[:, :count]
