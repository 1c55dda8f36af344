"""Checkpoints of a run, which cannot be damaged unnoticed; it never computes."""

import contextlib
import json
import math
import os
import re
import shutil
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import jax
from absl import logging
from jax.sharding import NamedSharding, PartitionSpec

from vicreg_jax import files
from vicreg_jax.devices import processes
from vicreg_jax.devices.processes import all_or_none
from vicreg_jax.refusals import Unusable, one_line
from vicreg_jax.run import checksums, orbax

__all__ = ["Checkpoints", "facts_of"]


class Checkpoints:
    """The checkpoints of one run, each complete or absent; files are written behind.

    The newest two are kept, and the one of the best score. Of several processes each
    makes the same calls; they share the folder.

    In a bucket the first process gathers the state, Orbax writes it to a disk, and its
    files are copied from there, the record as the last: it makes a checkpoint count.

    Args:
      folder: created where needed; perhaps in a bucket.
      facts: what must not change between saving and restoring, such as the number of
        training examples.
      other_data: whether facts of the data may differ: see `checksums.check_fit`.
      read_only: another process may be writing; touch nothing.

    Attributes:
      folder: as given, absolute.
      notes: after `restore`, lines on what was different when the state was saved.

    Raises:
      Unusable: the folder cannot be written to.
    """

    def __init__(
        self,
        folder: str | os.PathLike,
        *,
        facts: Mapping[str, Any] | None = None,
        other_data: bool = False,
        read_only: bool = False,
    ):
        self.notes, self._other_data = [], other_data
        self.folder = files.expanded(folder).absolute()
        self._facts = json.loads(json.dumps(dict(facts or {})))  # as they come back
        self._manager, self._read_only = None, read_only
        self._remote, self._closing = files.in_bucket(self.folder), ExitStack()
        if not read_only and not (self._remote and jax.process_index()):
            self._local = self.folder  # where Orbax writes
            if self._remote:
                scratch = tempfile.TemporaryDirectory(prefix="vicreg_jax_")
                self._local = Path(self._closing.enter_context(scratch))
                self._remove_unfinished()
            _make(self._local)
            self._manager = orbax.manager(
                self._local,
                best=self._best_of,
                before_rename=self._write_record,
                alone=self._remote,
            )
        self._saving = None  # a record, bytes of the state, bytes free before
        self._scores = {}
        for step in self.steps():
            with contextlib.suppress(Unusable):
                self._scores[step] = checksums.read(self.folder / str(step))["score"]

    def save(self, step: int, state: Any, score: float | None = None) -> None:
        """Starts to save; an earlier save is finished first, a saved step stays.

        Args:
          score: how good the state is, the higher the better. Of equals the later
            counts as the best.

        Raises:
          Unusable: this save or the one before failed; the older checkpoints are whole.
          ValueError: the score is not finite.
        """
        if score is not None and not math.isfinite(score):
            raise ValueError(f"the score of step {step} is {score}; expected a number")
        self.wait()
        if step in self._saved():
            return
        if self._remote:
            state = _gathered(state)
        if self._manager is None:  # another process has all of it
            return
        record = {
            "step": step,
            "arrays": checksums.arrays(state),
            "facts": self._facts,
            "score": None if score is None else float(score),
            "devices": processes.devices(),
        }
        free = shutil.disk_usage(self._local).free
        self._saving = record, checksums.size(state), free
        self._scores[step] = record["score"]
        with self._explained():
            orbax.save(self._manager, step, state)

    def steps(self) -> list[int]:
        """Returns the steps of the checkpoints that there are, in order."""
        names = (path.name for path in self.folder.glob("[0-9]*"))
        if self._remote:
            found = self.folder.glob(f"[0-9]*/{checksums.RECORD}")
            names = (path.parent.name for path in found)
        return sorted(int(name) for name in names if name.isdecimal())

    def best(self) -> int | None:
        """Returns the step of the best score, None where no checkpoint has one."""
        return self._best_of(self.steps())

    def room(self, like: Any) -> str:
        """Returns a line if the disk cannot hold such checkpoints, or ""."""
        if self._remote:
            return ""
        needed = checksums.size(like) * (3 - len(self.steps()))  # one is being written
        free = shutil.disk_usage(self.folder).free
        if needed <= free:
            return ""
        return (
            f"{self.folder} has {free / 1e6:,.1f} MB free, but checkpoints will need"
            f" {needed / 1e6:,.1f} MB"
        )

    def restore(
        self,
        like: Any,
        *,
        step: int | None = None,
        before: int | None = None,
        part: bool = False,
    ) -> tuple[int, Any] | None:
        """Returns the newest undamaged (step, state), or None where there is none yet.

        A damaged checkpoint is passed over with a warning and renamed; it is deleted
        when one of that step or a later one has been restored.

        Args:
          like: tree of arrays or ShapeDtypeStructs with the wanted shardings.
          step: only this one, such as `best()`.
          before: only those of earlier steps; the others are set aside as if damaged.
          part: whether it may lack some of the state; then it is a nested dict, and
            what is returned is in host memory.

        Raises:
          Unusable: there are checkpoints, but none can be used.
          Refusal: the state has other arrays, which are named, or the facts are others.
        """
        like = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=x.sharding), like
        )
        self.wait()
        steps = json.loads(processes.first_line(json.dumps(self.steps()[::-1])))
        late = [x for x in steps if before is not None and x >= before]
        steps = [x for x in steps if x not in late]
        reasons, steps = {}, steps if step is None else [step]
        for step in steps:
            try:
                record, differs, state = self._read(step, like, part)
            except Unusable as error:  # on all processes
                reasons[step] = f"step {step}: {error}"
                logging.warning("checkpoint not usable, %s", reasons[step])
                continue
            if not self._read_only:
                self._set_aside([*late, *reasons], step)
            saved, now = record["devices"], processes.devices()
            self.notes = []
            if saved != now:
                self.notes.append(
                    f"step {step} was saved on {saved} and is now on {now}: equal to"
                    " rounding from here on, not bit for bit"
                )
            if differs:
                self.notes.append(
                    f"step {step} was made with {', '.join(differs)}; it goes on with"
                    " what there is now"
                )
            return step, state
        if reasons:
            raise Unusable(
                f"no usable checkpoint in {self.folder}"
                f" ({'; '.join(reasons.values())}); restore its files, or choose"
                " another --workdir"
            )
        return None

    def _read(self, step, like, part):
        folder = self.folder / str(step)
        with ExitStack() as until:
            with all_or_none(Unusable):
                if self._remote:
                    scratch = tempfile.TemporaryDirectory(prefix="vicreg_jax_")
                    local = Path(until.enter_context(scratch)) / str(step)
                    files.download(folder, local)
                else:
                    local = folder
                if jax.process_index() == 0 or self._remote:  # each has its own copy
                    checksums.check_files(local)
                record = checksums.read(local)
            options = dict(part=part, other_data=self._other_data)
            differs = checksums.check_fit(folder, record, like, self._facts, **options)
            with all_or_none(Unusable):
                state = orbax.read(local, like, part=part)
                checksums.check_arrays(record, state)
            return record, differs, state

    def _set_aside(self, damaged, good):
        """Renames what is not usable: it would bar newer ones. Deletes the outdated."""
        with all_or_none(Unusable):
            if jax.process_index() == 0:
                for step in damaged:
                    aside = self.folder / f"damaged_{step}"
                    files.remove(aside)
                    files.move(self.folder / str(step), aside)
                    if self._remote:
                        files.remove(self._local / str(step))
                for path in self.folder.glob("damaged_*"):
                    step = path.name.split("_")[1]
                    if step.isdecimal() and int(step) <= good:
                        files.remove(path)
        if self._manager:
            self._manager.reload()

    def _write_record(self):
        record, *_ = self._saving
        (draft,) = orbax.drafts(self._local, record["step"])
        checksums.write(draft, record)
        if self._remote:
            step = record["step"]
            files.upload(draft, self.folder / str(step), last=checksums.RECORD)
            steps = self.steps()
            for old in set(steps) - orbax.kept(steps, self._best_of):
                self._remove(old)

    def _remove(self, step):
        """Removes a checkpoint from a bucket, first what makes it count."""
        folder = self.folder / str(step)
        (folder / checksums.RECORD).unlink()
        files.remove(folder)

    def _remove_unfinished(self):
        """Removes from a bucket what killed saves have left."""
        whole = self.steps()
        for folder in self.folder.glob("[0-9]*"):
            if folder.name.isdecimal() and int(folder.name) not in whole:
                files.remove(folder)

    def _saved(self):
        return self.steps() if self._remote else self._manager.all_steps()

    def _best_of(self, steps):
        scores = [(self._scores.get(step), step) for step in steps]
        return max((x for x in scores if x[0] is not None), default=(None, None))[1]

    @contextlib.contextmanager
    def _explained(self):
        """Raises what fails in a save as one line, and deletes what it left."""
        try:
            yield
        except Exception as error:  # OSError, and what Orbax makes of it
            record, size, free = self._saving
            step = record["step"]
            self._scores.pop(step, None)
            if jax.process_index() == 0:
                orbax.delete_drafts(self._local, step)
            self._manager.reload()
            code = re.search(r"os_error_code='(\d+)'", str(error))  # of TensorStore
            if self._remote:
                raise Unusable(
                    f"the checkpoint of step {step} could not be written to"
                    f" {self.folder}: {one_line(error, 600)}; the earlier are whole"
                ) from error
            kept = self.steps()[-1:]
            raise Unusable(
                f"the checkpoint of step {step} could not be written to {self.folder}:"
                f" {os.strerror(int(code[1])) if code else one_line(error)}; it needs"
                f" over {size / 1e6:,.1f} MB, {free / 1e6:,.1f} MB were free; "
                + (f"that of step {kept[0]} is whole" if kept else "there is no other")
            ) from error

    def wait(self) -> None:
        """Returns when nothing is being written any more; raises as `save`."""
        if not self._remote:
            self._finish()
            return
        with all_or_none(Unusable):  # else those that do not write would end earlier
            self._finish()

    def _finish(self):
        if self._saving:
            with self._explained():
                self._manager.wait_until_finished()

    def close(self) -> None:
        """Finishes what is being written, raising as `save`, and ends its threads."""
        with self._closing:
            if self._manager:
                self._finish()
                self._manager.close()


def facts_of(folder: str | os.PathLike) -> dict[str, Any] | None:
    """Returns the facts of the newest checkpoint whose record can be read.

    None where there is no checkpoint, none of the facts where no record can be read.
    """
    saved = Checkpoints(folder, read_only=True)
    for step in reversed(saved.steps()):
        with contextlib.suppress(Unusable):
            return checksums.read(saved.folder / str(step))["facts"]
    return {} if saved.steps() else None


def _gathered(state):
    """Returns the whole state, in memory of this host if others have parts of it."""
    if jax.process_count() == 1:
        return state
    mesh = jax.tree.leaves(state)[0].sharding.mesh
    whole = jax.jit(_same, out_shardings=NamedSharding(mesh, PartitionSpec()))
    return jax.device_get(whole(state))


def _same(state):
    return state


def _make(folder):
    try:
        folder.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=folder).close()
    except OSError as error:
        raise Unusable(f"{folder} cannot be written to: {error.strerror}") from error
