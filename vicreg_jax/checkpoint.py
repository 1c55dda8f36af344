"""Checkpoints of a run: Orbax, with a checksum per array; no other module uses it."""

import json
import os
import time
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
from absl import logging

from vicreg_jax import config as configs
from vicreg_jax import models


class Checkpoints:
    """The checkpoints of one run, each complete or absent; files are written behind.

    Args:
      folder: absolute path, created where needed.
      facts: what must not change between saving and restoring, such as the number of
        training examples.
      read_only: another process may be writing; touch nothing.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        facts: Mapping[str, Any] | None = None,
        read_only: bool = False,
    ):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=None if read_only else 2,
            cleanup_tmp_directories=not read_only,
            create=not read_only,
            read_only=read_only,
        )
        self._facts, self._read_only = dict(facts or {}), read_only
        self._manager = ocp.CheckpointManager(
            folder, options=options, item_names=("state", "meta")
        )

    def save(self, step: int, state: Any) -> None:
        """Starts to save; an earlier save is finished first, a saved step stays."""
        meta = {"crc32": _checksums(state), "facts": self._facts}
        args = ocp.args.Composite(
            state=ocp.args.StandardSave(state), meta=ocp.args.JsonSave(meta)
        )
        if not self._manager.save(step, args=args) and step not in self.steps():
            raise RuntimeError(f"Orbax did not save step {step}")

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that there are."""
        return list(self._manager.all_steps())

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Returns the newest undamaged (step, state), or None where there is none yet.

        Orbax does not notice a flipped bit in array data; the checksums do. A damaged
        checkpoint is passed over with a warning and renamed, never deleted.

        Args:
          like: tree of arrays or ShapeDtypeStructs with the wanted shardings.

        Raises:
          ValueError: there are checkpoints, but none can be used.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        return self._newest(ocp.args.StandardRestore(abstract))

    def restore_part(self, like: Any) -> tuple[int, Any] | None:
        """Returns the newest undamaged (step, part of the state) in host memory.

        Args:
          like: nested dict of ShapeDtypeStructs, a part of the state's.

        Raises:
          ValueError: as `restore`.
        """
        host = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
        args = ocp.args.PyTreeRestore(like, restore_args=host, partial_restore=True)
        return self._newest(args)

    def _newest(self, args):
        reasons = {}
        for step in sorted(self._manager.all_steps(), reverse=True):
            try:
                found, facts = self._checked(step, args)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                reasons[step] = f"step {step}: {' '.join(str(error).split())[:200]}"
                logging.warning("checkpoint not usable, %s", reasons[step])
                continue
            for name, value in self._facts.items():
                if facts[name] != value:
                    raise ValueError(
                        f"the checkpoints in {self._manager.directory} were made with"
                        f" {facts[name]} {name}, now there are {value}; choose another"
                        " --workdir"
                    )
            self._set_aside(reasons)
            return step, found
        if reasons:
            folder = self._manager.directory
            raise ValueError(
                f"no usable checkpoint in {folder} ({'; '.join(reasons.values())});"
                " restore its files, give back the encoder or optimizer that it was"
                " trained with, or choose another --workdir"
            )
        return None

    def _set_aside(self, steps):
        """Renames checkpoints that are not usable: they would bar newer ones."""
        if steps and not self._read_only:
            for step in steps:
                folder = Path(self._manager.directory) / str(step)
                folder.rename(folder.with_name(f"damaged_{step}_{time.time_ns()}"))
            self._manager.reload()

    def _checked(self, step, args):
        both = ocp.args.Composite(state=args, meta=ocp.args.JsonRestore())
        restored = self._manager.restore(step, args=both)
        wanted, found = restored["meta"]["crc32"], _checksums(restored["state"])
        damaged = [name for name in found if found[name] != wanted.get(name)]
        if damaged:
            raise ValueError(f"checksum of {', '.join(damaged[:3])} is wrong")
        return restored["state"], restored["meta"]["facts"]

    def wait(self) -> None:
        """Returns when nothing is being written any more."""
        self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written and ends its threads."""
        self._manager.close()


def load_encoder(
    path: str | os.PathLike, *, encoder: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns (module, variables) of the encoder that a run has trained so far.

    `module.apply(variables, images [n, h, w, c], train=False)` -> [n, f], for images
    normalized by the mean and std of the run's config.

    Args:
      path: the workdir of a run.
      encoder: the module, if the run was given its own.

    Raises:
      FileNotFoundError: there is no run, or it has not saved anything yet.
      ValueError: no checkpoint is usable or fits the module.
    """
    path = Path(path).absolute()
    if not (path / "config.json").is_file():
        raise FileNotFoundError(f"{path} is no run: there is no config.json")
    config = configs.parse(json.loads((path / "config.json").read_text()))
    if encoder is None:
        encoder = models.create(
            config.model.encoder,
            width=config.model.width,
            stem=config.model.stem,
            dtype=jnp.dtype(config.model.dtype),
        )
    size, channels = config.data.image_size, len(config.data.mean)
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    shapes = jax.eval_shape(
        lambda x: encoder.init(jax.random.key(0), x, train=False), images
    )
    like = {name: {"encoder": tree} for name, tree in shapes.items()}
    if not (path / "checkpoints").is_dir():
        raise FileNotFoundError(f"{path} has no checkpoint yet")
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    found = checkpoints.restore_part(like)
    checkpoints.close()
    if found is None:
        raise FileNotFoundError(f"{path} has no checkpoint yet")
    return encoder, {name: tree["encoder"] for name, tree in found[1].items()}


def _checksums(state):
    """Returns names such as params/encoder/conv1/kernel and their checksums."""
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path, simple=True, separator="/"): zlib.crc32(_bytes(leaf))
        for path, leaf in leaves
    }


def _bytes(leaf):
    if jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key):
        leaf = jax.random.key_data(leaf)
    return np.asarray(leaf).reshape(-1).view(np.uint8)
