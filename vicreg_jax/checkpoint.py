"""Checkpoints of a run: Orbax, with a checksum per array; nothing else imports it."""

import os
import zlib
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging


class Checkpoints:
    """The checkpoints of one run, written in the background, each complete or absent.

    Args:
      folder: absolute path, created where needed; gs:// works, too.
      keep: how many of the newest to keep.
    """

    def __init__(self, folder: str | os.PathLike, *, keep: int = 2):
        options = ocp.CheckpointManagerOptions(
            max_to_keep=keep, cleanup_tmp_directories=True
        )
        self._manager = ocp.CheckpointManager(
            folder, options=options, item_names=("state", "meta")
        )

    def save(self, step: int, state: Any) -> None:
        """Starts to save; an earlier save is finished first."""
        if step in self._manager.all_steps():
            return
        self._manager.save(
            step,
            args=ocp.args.Composite(
                state=ocp.args.StandardSave(state),
                meta=ocp.args.JsonSave({"crc32": _checksums(state)}),
            ),
        )

    def restore(self, like: Any) -> tuple[int, Any] | None:
        """Returns the newest undamaged (step, state), or None where there is none yet.

        Orbax does not notice a flipped bit in array data; the checksums do. A damaged
        checkpoint is passed over with a warning.

        Args:
          like: tree of arrays or ShapeDtypeStructs with the wanted shardings.

        Raises:
          ValueError: there are checkpoints, but none can be used.
        """
        abstract = jax.tree.map(ocp.utils.to_shape_dtype_struct, like)
        steps = sorted(self._manager.all_steps(), reverse=True)
        reasons = []
        for step in steps:
            try:
                return step, self._restore(step, abstract)
            except Exception as error:  # whatever a damaged file makes Orbax raise
                reason = f"step {step}: {' '.join(str(error).split())[:200]}"
                reasons.append(reason)
                logging.warning(
                    "checkpoint not usable, trying an older one: %s", reason
                )
        if reasons:
            folder = self._manager.directory
            raise ValueError(
                f"no usable checkpoint in {folder} ({'; '.join(reasons)});"
                " restore its files, or choose another --workdir"
            )
        return None

    def _restore(self, step, abstract):
        args = ocp.args.Composite(
            state=ocp.args.StandardRestore(abstract), meta=ocp.args.JsonRestore()
        )
        restored = self._manager.restore(step, args=args)
        wanted, found = restored["meta"]["crc32"], _checksums(restored["state"])
        damaged = [name for name in found if found[name] != wanted.get(name)]
        if damaged:
            raise ValueError(f"checksum of {', '.join(damaged[:3])} is wrong")
        return restored["state"]

    def close(self) -> None:
        """Finishes what is being written."""
        self._manager.wait_until_finished()
        self._manager.close()


def _checksums(state):
    leaves = jax.tree_util.tree_leaves_with_path(state)
    return {
        jax.tree_util.keystr(path): zlib.crc32(
            np.asarray(leaf).reshape(-1).view(np.uint8)
        )
        for path, leaf in leaves
    }
