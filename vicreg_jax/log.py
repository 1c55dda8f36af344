"""Writes the metrics of a run: JSON lines, TensorBoard, Weights & Biases, progress bar.

`metrics.jsonl` is the record; the others follow it.
"""

import json
import math
import os
import sys
import time
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from absl import logging
from rich.console import Console, Group
from rich.live import Live
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text


class Writer:
    """Appends the metrics of a step to everything that records them.

    Args:
      workdir: an existing folder.
      step: metrics beyond this step are cut; the run repeats those steps.
      wandb_run: also log there, if given.
    """

    def __init__(
        self,
        workdir: Path,
        *,
        step: int,
        wandb_run: Any = None,
    ):
        self._wandb = wandb_run
        self._path = workdir / "metrics.jsonl"
        self.first = _cut(self._path, step)
        self._file = self._path.open("a")
        self._board = _board(workdir, step)

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Records finite numbers; the line is on disk afterwards."""
        line = {"step": step, **metrics}
        self._file.write(json.dumps(line) + "\n")
        self._file.flush()
        os.fsync(self._file.fileno())
        self.first = self.first or line
        if self._board:
            for name, value in metrics.items():
                self._board.add_scalar(name, value, step)
            self._board.flush()
        if self._wandb:
            self._wandb.log(dict(metrics), step=step)

    def close(self) -> None:
        self._file.close()
        if self._board:
            self._board.close()


class Silent:
    """Takes what `Writer` and `Bar` take, of the processes that do not write."""

    first: Mapping[str, float] | None = None

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        self.first = self.first or {"step": step, **metrics}

    def say(self, text: str) -> None: ...

    def note(self, text: str) -> None: ...

    def step(self, step: int) -> None: ...

    def show(self, step: int, metrics: Mapping[str, float], text: str) -> None: ...

    def close(self) -> None: ...


class Bar:
    """Shows progress in two lines of a terminal; elsewhere prints one now and then."""

    def __init__(self, *, total: int, done: int):
        self._console = Console(stderr=True)
        self._total, self._spoke, self._terms = total, -math.inf, ""
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(),
        )
        self._task = self._progress.add_task("", total=total, completed=done, rate="")
        self._live = None
        if self._console.is_terminal:
            self._live = Live(get_renderable=self._picture, console=self._console)
            self._live.start()

    def _picture(self):
        return Group(self._progress, Text(self._terms, no_wrap=True))

    def say(self, text: str) -> None:
        """Shows what is going on: "compiling"."""
        self._progress.update(self._task, description=text)
        if not self._live:
            print(text, file=sys.stderr, flush=True)

    def note(self, text: str) -> None:
        """Prints a line that stays."""
        self._console.print(text, highlight=False, markup=False, soft_wrap=True)

    def step(self, step: int) -> None:
        """Moves on to `step`."""
        self._progress.update(self._task, description="training", completed=step)

    def show(self, step: int, metrics: Mapping[str, float], text: str) -> None:
        """Shows a text on the metrics of a step, until the next one."""
        self._terms, rate = text, ""
        if "images_per_second" in metrics:
            rate = f"{metrics['images_per_second']:.0f} images/s"
        self._progress.update(self._task, rate=rate)
        now = time.monotonic()
        if not self._live and (now - self._spoke > 10 or step == self._total):
            self._spoke = now
            text = f"step {step}/{self._total}  {rate}  {self._terms}"
            print(text, file=sys.stderr, flush=True)

    def close(self) -> None:
        if self._live:
            self._live.stop()


def _cut(path, step):
    """Drops what lies beyond the step or was half written; returns the first line."""
    if not path.exists():
        return None
    kept = []
    for text in path.read_text().splitlines():
        try:
            line = json.loads(text)
        except json.JSONDecodeError:
            continue
        if line["step"] <= step:
            kept.append(line)
    draft = path.with_suffix(".tmp")
    draft.write_text("".join(json.dumps(line) + "\n" for line in kept))
    os.replace(draft, path)
    return kept[0] if kept else None


def _board(workdir, step):
    try:
        from tensorboardX import SummaryWriter
    except ModuleNotFoundError:
        logging.warning("no TensorBoard events: run pip install tensorboardX for them")
        return None
    # The suffix keeps a run that restarts within a second from overwriting a file.
    return SummaryWriter(
        str(workdir / "tensorboard"), purge_step=step + 1, filename_suffix=f".{step}"
    )


def wandb_starter(project: str) -> Callable[[Path, Mapping[str, object]], Any]:
    """Returns a function of (workdir, config) that starts a run on Weights & Biases.

    It returns None where the project is "".

    Raises:
      ModuleNotFoundError: a project is named, but Weights & Biases is not installed.
    """
    if not project:
        return lambda workdir, config: None
    try:
        import wandb
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"config.wandb is {project!r}, but Weights & Biases is not installed; run:"
            " pip install wandb"
        ) from error

    def start(workdir, config):
        file = workdir / "wandb_id.txt"  # the run that a restart continues
        if not file.exists():
            file.write_text(uuid.uuid4().hex)
        return wandb.init(
            project=project,
            id=file.read_text(),
            name=workdir.name,
            dir=str(workdir),
            config=dict(config),
            resume="allow",
        )

    return start
