"""Checkpoints of a run: Orbax, with a checksum per array; no other module uses it.

And trained encoders, from a run or from a file of weights.
"""

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
from vicreg_jax import models, weights
from vicreg_jax.weights import Loaded


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
        level = logging.get_verbosity()
        if read_only:  # which Orbax would warn of
            logging.set_verbosity(logging.ERROR)
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
        logging.set_verbosity(level)

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


def load(path: str | os.PathLike, *, encoder: nn.Module | None = None) -> Loaded:
    """Returns a trained encoder, whoever trained it: a run, an export, a PyTorch file.

    `module.apply(variables, images [n, h, w, c], train=False)` -> [n, f], for images
    in [0, 1] normalized by `mean` and `std`: the run's, or ImageNet's for a file that
    does not say.

    Args:
      path: the workdir of a run (its newest checkpoint); the folder or a file that
        `export.write` wrote; or a .pth, .pt or .safetensors file with the names of the
        authors' code, torchvision or timm: an encoder, or encoder and projector,
        alone or under "model". A classifier `fc` is left out. PyTorch files are read
        with weights_only; nothing in a file is run.
      encoder: the module, where it is not one of `models.create`, or has the stem
        "solo_learn", whose tensors look like those of "cifar".

    Raises:
      FileNotFoundError: there is no such file or run, or it has saved nothing yet.
      ModuleNotFoundError: reading this file needs PyTorch or safetensors.
      ValueError: the file is damaged, or its tensors are not those of the module.
    """
    path = Path(path).expanduser().absolute()
    if path.is_file():
        return weights.load_file(path, encoder=encoder)
    about = None
    if not (path / "checkpoints").is_dir():
        about = weights.description(path)
    if about:
        for name in ("encoder.safetensors", "encoder.pth"):
            if name in about["files"]:
                return weights.load_file(path / name, encoder=encoder)
        raise FileNotFoundError(
            f"{path} holds only {', '.join(about['files'])}, which are not read back;"
            " export safetensors too"
        )
    if not path.exists():
        raise FileNotFoundError(f"there is no file or folder {path}")
    if not (path / "config.json").is_file():
        raise FileNotFoundError(
            f"{path} is no run: there is no config.json; nor is it an export"
        )
    return _load_run(path, encoder)


def load_encoder(
    path: str | os.PathLike, *, encoder: nn.Module | None = None
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns the (module, variables) of `load`."""
    loaded = load(path, encoder=encoder)
    return loaded.module, loaded.variables


def _load_run(path, encoder):
    config = configs.parse(json.loads((path / "config.json").read_text()))
    if encoder is None:
        encoder = models.create(
            config.model.encoder,
            width=config.model.width,
            stem=config.model.stem,
            dtype=jnp.dtype(config.model.dtype),
        )
    expander = models.Expander(config.model.expander, bias=config.model.expander_bias)
    like = weights.abstract(
        models.JointEmbedding(encoder, expander),
        size=config.data.image_size,
        channels=len(config.data.mean),
    )
    if not (path / "checkpoints").is_dir():
        raise FileNotFoundError(f"{path} has no checkpoint yet")
    checkpoints = Checkpoints(path / "checkpoints", read_only=True)
    found = checkpoints.restore_part(like)
    checkpoints.close()
    if found is None:
        raise FileNotFoundError(f"{path} has no checkpoint yet")
    step, whole = found
    weights.check(weights.flatten(whole), weights.flatten(like), path)
    return Loaded(
        encoder,
        weights.part(whole, "encoder"),
        weights.part(whole, "expander"),
        config,
        step,
        str(path),
        config.data.mean,
        config.data.std,
    )


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
