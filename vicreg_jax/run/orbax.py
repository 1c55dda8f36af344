"""Orbax as checkpoints use it: how it writes, reads, keeps, waits and what it logs."""

import dataclasses
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from absl import logging
from orbax.checkpoint._src.metadata import array_metadata_store  # has no public name

__all__ = ["STATE", "delete_drafts", "drafts", "kept", "manager", "read", "save"]

STATE = "state"  # the folder of the arrays, in that of a checkpoint
# Devices of one process that hold the same array each write a slice of it, if that has
# so many bytes: for each slice something is compiled before the first save.
SLICE = 2**22


def manager(
    folder: Path,
    *,
    best: Callable[[list[int]], int | None],
    before_rename: Callable[[], None],
    alone: bool = False,
) -> ocp.CheckpointManager:
    """Returns a manager that keeps the newest two checkpoints and the best.

    Args:
      folder: absolute, of all checkpoints. What killed saves have left is deleted.
      best: returns the step of the best of several checkpoints, if there is one.
      before_rename: called by process 0 when all files of a checkpoint are written and
        it does not have its name yet, which is what makes it count.
      alone: whether only this process, the first, writes.
    """
    logging.get_absl_logger().addFilter(_is_ours)
    if not isinstance(sys.unraisablehook, _WithoutLate):
        sys.unraisablehook = _WithoutLate(sys.unraisablehook)
    if jax.process_index() == 0:  # Orbax would do it in a thread that outlives `close`
        delete_drafts(folder)
    only = {0} if alone else None
    several = ocp.options.MultiprocessingOptions(active_processes=only)
    sole = jax.process_count() == 1  # of several each must have something to write
    arrays = ocp.type_handlers.ArrayHandler(
        min_slice_bytes_for_replica_parallel=SLICE if sole else None,
        array_metadata_store=array_metadata_store.Store(),  # of keys: which kind
    )
    registry = ocp.type_handlers.create_type_handler_registry((jax.Array, arrays))
    handler = ocp.PyTreeCheckpointHandler(
        type_handler_registry=registry, multiprocessing_options=several
    )
    return _Manager(
        folder,
        item_handlers={STATE: handler},
        options=ocp.CheckpointManagerOptions(
            preservation_policy=_Keep(best),
            multiprocessing_options=several,
            create=not alone,  # Orbax would not, alone
            async_options=ocp.AsyncOptions(
                post_finalization_callback=before_rename,
                barrier_sync_fn=_Barrier(only),
                # Else, where they cannot be made, threads wait for them 20 minutes.
                create_directories_asynchronously=False,
            ),
        ),
    )


def kept(steps: list[int], best: Callable[[list[int]], int | None]) -> set[int]:
    """Returns the steps, of those in order, of the checkpoints that are kept."""
    return {*steps[-2:], best(steps)} - {None}


def save(manager: ocp.CheckpointManager, step: int, state: Any) -> None:
    """Starts to save.

    Raises:
      RuntimeError: there is a later checkpoint.
    """
    args = ocp.args.Composite(**{STATE: ocp.args.PyTreeSave(state)})
    if not manager.save(step, args=args):
        raise RuntimeError("there is a later checkpoint")


def drafts(folder: Path, step: int | str = "*") -> list[Path]:
    """Returns the folders of checkpoints that are not complete."""
    return list(folder.glob(f"{step}.orbax-checkpoint-tmp*"))


def delete_drafts(folder: Path, step: int | str = "*") -> None:
    """Deletes the folders of checkpoints that are not complete, where it can."""
    for draft in drafts(folder, step):
        shutil.rmtree(draft, ignore_errors=True)


def read(folder: Path, like: Any, *, part: bool) -> Any:
    """Reads the arrays of a tree from a checkpoint that is known to have them all.

    It looks at no checksum. It waits for no other process, so that one that fails does
    not stop the others.

    Args:
      folder: of the checkpoint.
      like: tree of ShapeDtypeStructs, with the wanted shardings. What is empty in it
        need not be there: checkpoints of old have fewer fields.
      part: whether they are to come as NumPy arrays instead.
    """
    own = jax.process_index()
    alone = ocp.options.MultiprocessingOptions(
        primary_host=own, active_processes={own}, barrier_sync_key_prefix=f"{own}"
    )
    where = ocp.checkpoint_utils.construct_restore_args(like)
    if part:
        where = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), like)
    args = ocp.args.PyTreeRestore(like, restore_args=where, partial_restore=True)
    handler = ocp.PyTreeCheckpointHandler(multiprocessing_options=alone)
    with ocp.Checkpointer(handler, multiprocessing_options=alone) as reader:
        return reader.restore(folder / STATE, args=args)


class _Manager(ocp.CheckpointManager):
    def reached_preemption(self, step):
        """Leaves asking to `processes.preempted`: two counts would mix."""
        return False


@dataclasses.dataclass
class _Keep:
    """What to keep; Orbax's own policy for the best may lose the newest."""

    best: Callable[[list[int]], int | None]

    def should_preserve(self, checkpoints, *, context):
        steps = [checkpoint.step for checkpoint in checkpoints]
        return [step in kept(steps, self.best) for step in steps]


class _Barrier:
    """Orbax's barrier, without the wait of a process whose part of a save failed.

    The others wait for its part, elsewhere and for 20 minutes, as it would here. So it
    can raise and end; then they are ended too.
    """

    def __init__(self, only):
        self._wait = ocp.multihost.get_barrier_sync_fn(processes=only)
        self._saving = self._written = False

    def __call__(self, *, key, timeout_ms):
        marks = "set_value" in key  # two barriers as a save begins, two as it ends
        if not marks or not self._saving or self._written:
            self._wait(key=key, timeout_ms=timeout_ms)
        if "async_commit_complete" in key:  # between them, if all went well
            self._written = True
        if "set_value_end" in key:
            self._saving, self._written = not self._saving, False


class _WithoutLate:
    """Says nothing of files that are written after a save has failed, dozens of them.

    Each would bring a traceback, as nobody waits for it any more.
    """

    def __init__(self, hook):
        self._hook = hook

    def __call__(self, unraisable):
        if "Event loop is closed" not in str(unraisable.exc_value):
            self._hook(unraisable)


def _is_ours(record):
    """Drops what Orbax logs: what matters of it is raised, in one line."""
    return "/orbax/" not in record.pathname
