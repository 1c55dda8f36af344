"""Metrics of a run on disk, and for TensorBoard and Weights & Biases; it measures none.

`metrics.jsonl` is the record. What follows it may fail; the run goes on.
"""

import tempfile
import uuid
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import one_line, require
from vicreg_jax.run import json_lines

__all__ = ["Note", "Writer", "wandb_starter"]

Note = Callable[[str], None]
LONGEST = 64  # bytes of the name of a run on Weights & Biases


class Writer:
    """Appends the metrics of a step to everything that records them.

    Args:
      workdir: an existing folder, or one in a bucket, which gets lines and events late
        but not later than `flush`.
      step: metrics beyond this step are cut; the run repeats those steps.
      note: is told in a line what was damaged, or is no longer followed.
      wandb_run: also log there, if given.

    Attributes:
      first: the first line of the record, or None.

    Raises:
      Unusable: the record cannot be read or written.
    """

    def __init__(self, workdir: Path, *, step: int, note: Note, wandb_run: Any = None):
        self._note = note
        path = workdir / "metrics.jsonl"
        self._lines = json_lines.Lines(path, _cut(path, step, note))
        self._followers = {}
        if wandb_run:
            self._followers["Weights & Biases"] = lambda step, metrics: wandb_run.log(
                dict(metrics), step=step
            )
        self._board, self._events = None, workdir / "tensorboard"
        self._staging = None
        if files.in_bucket(workdir):
            self._staging = tempfile.TemporaryDirectory(prefix="vicreg_jax_")
        try:
            board = require(
                "tensorboardX", "metrics for TensorBoard", install="tensorboardX"
            )
            self._board = board.SummaryWriter(
                self._staging.name if self._staging else str(self._events),
                purge_step=step + 1,
                # Else a run that restarts within a second overwrites a file.
                filename_suffix=f".{step}",
            )
            self._followers["TensorBoard"] = self._draw
        except Exception as error:  # whatever a package raises that does not fit
            note(f"no TensorBoard events: {one_line(error)}")

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records finite numbers; the line is on disk afterwards.

        Raises:
          Unusable: the disk is full, or the record cannot be written.
        """
        self._lines.append({"step": step, **metrics})
        for name, follow in list(self._followers.items()):
            try:
                follow(step, metrics)
            except Exception as error:
                del self._followers[name]
                self._note(f"step {step}: no more metrics to {name}: {one_line(error)}")

    def _draw(self, step, metrics):
        for name, value in metrics.items():
            self._board.add_scalar(name, value, step)
        self._board.flush()

    @property
    def first(self) -> Mapping[str, float] | None:
        return next(iter(self._lines.lines), None)

    def flush(self) -> None:
        """Returns when all is where it is to stay. Raises: as `write`."""
        self._lines.flush()
        if self._staging:
            files.upload(Path(self._staging.name), self._events)

    def close(self) -> None:
        """Ends what follows, after a `flush`. Raises: as `write`."""
        if self._board:
            self._board.close()
        self.flush()
        if self._staging:
            self._staging.cleanup()


def wandb_starter(
    project: str,
) -> Callable[[Path, Mapping[str, object], Note], Any]:
    """Returns a function of (workdir, config, note) that starts Weights & Biases.

    It returns a run, which is kept on disk only where the service is out of reach, or
    None where that fails too, or the project is "".

    Raises:
      NotInstalled: a project is named, but Weights & Biases is not installed.
    """
    if not project:
        return lambda workdir, config, note: None
    wandb = require("wandb", f"config.wandb={project!r}", install="wandb")

    def start(workdir, config, note):
        folder = workdir
        if files.in_bucket(workdir):
            folder = Path(tempfile.mkdtemp(prefix="vicreg_jax_"))
        init = partial(
            wandb.init,
            project=project,
            id=_wandb_id(workdir),
            name=workdir.name,
            dir=str(folder),
            config=dict(config),
        )
        try:
            return init(resume="allow")
        except Exception as error:  # no network, no key, no such project
            note(
                f"Weights & Biases: {one_line(error)}; what it would get is kept in"
                f" {folder / 'wandb'} for `wandb sync`"
            )
        try:
            wandb.teardown()  # else the name of the run is taken
            return init(mode="offline")
        except Exception as error:
            note(f"nothing is kept for Weights & Biases: {one_line(error)}")
            return None

    return start


def _wandb_id(workdir):
    """Returns the name of the run that a restart continues."""
    path = workdir / "wandb_id.txt"
    known = files.read(str(path)).strip() if path.exists() else b""
    if not (known.isalnum() and len(known) <= LONGEST):  # empty, or damaged
        known = uuid.uuid4().hex.encode()
        files.write(path, known)
    return known.decode()


def _cut(path, step, note):
    """Drops what lies beyond the step or is damaged; returns what is left."""
    lines, damaged = json_lines.read(path, _is_of_a_step)
    kept = [line for line in lines if line["step"] <= step]
    if path.exists():
        json_lines.write(path, kept)
    if damaged:
        note(f"{path}: dropped {damaged} damaged line{'s' * (damaged > 1)}")
    return kept


def _is_of_a_step(line):
    numbers = all(map(files.is_number, line.values()))
    return numbers and isinstance(line.get("step"), int) and line["step"] > 0
