"""What a job says of itself: metrics written and shown, one step behind the device."""

import math
import time
from collections.abc import Mapping
from contextlib import nullcontext
from typing import Any

import jax
import numpy as np

from vicreg_jax.devices import found
from vicreg_jax.run import metrics_file
from vicreg_jax.run.prefetch import Feed

__all__ = ["Recorder", "peak_memory"]

STARVING = 0.1  # share of the time spent waiting for data that is worth a word


class Recorder:
    """Writes and shows the metrics of steps; what they mean is the job's to say.

    It fetches those of a step only after the next has been dispatched, so that the
    device never waits for it.

    Args:
      session: a `session.Session`; metrics beyond its start are cut.
      feed: of its batches.
      wandb_run: also log there, if given.
    """

    def __init__(self, session: Any, feed: Feed, wandb_run: Any):
        self._job, self._bar, self._feed = session.job, session.bar, feed
        self._watchdog, self._goodput = session.watchdog, session.goodput
        self._writer = None  # of the processes that do not write
        if jax.process_index() == 0:
            self._writer = metrics_file.Writer(
                session.workdir,
                step=session.start,
                note=self._bar.note,
                wandb_run=wandb_run,
            )
        self._clock = None  # step, time and time waited of the latest line
        self._measured = self._starved = False
        self._waiting = None
        self._paused = 0.0

    def save(self) -> None:
        """Records all metrics where they are to stay, as before a checkpoint."""
        self.flush()
        if self._writer:
            self._writer.flush()

    def close(self) -> None:
        if self._writer:
            self._writer.close()

    def pause(self, seconds: float) -> None:
        """Leaves time out of the rates: of what was no training."""
        self._paused += seconds

    def step(
        self, step: int, values: dict, outputs: Any, judged: Mapping | None
    ) -> None:
        """Takes the device's results of a finished or unfinished step.

        Args:
          judged: metrics that are to be recorded with this step, whichever it is.
        """
        self.flush()
        self._bar.step(step)
        if self._clock is None:
            self._clock = (step, time.perf_counter(), self._feed.waited)
            self._paused = 0.0
        job = self._job
        marked = judged is not None or step in (1, job.epoch, job.total)
        if not marked and step % job.log_steps:
            return
        # Queued before the next step, so that fetching waits for no other.
        begin = time.perf_counter()
        with nullcontext() if self._measured else self._watchdog.paused():
            values = values | job.measure(step, values, outputs) | dict(judged or {})
        if not self._measured:  # compiling is timed apart
            self._measured = True
            self.pause(time.perf_counter() - begin)
            self._goodput.add("compiling", time.perf_counter() - begin)
        self._waiting = (step, values)

    def flush(self) -> None:
        """Records the latest metrics, if they are not yet."""
        waiting, self._waiting = self._waiting, None
        if waiting is None or self._writer is None:
            return
        step, values = waiting
        values = {name: float(x) for name, x in jax.device_get(values).items()}
        row = values.pop("skipped_in_a_row")
        values |= {"epoch": step / self._job.epoch}
        values |= self._speed(step) | peak_memory()
        self._writer.write(step, {k: v for k, v in values.items() if math.isfinite(v)})
        self._goodput.write(step)
        if row:
            self._bar.note(f"step {step}: loss or gradient not finite; skipped")
        else:
            self._bar.show(step, values, self._job.text(values))
            for note in self._job.notes(step, values, self._writer.first):
                self._bar.note(note)
        if values.get("data_wait", 0.0) > STARVING and not self._starved:
            self._starved = True  # said once
            self._bar.note(
                f"step {step}: the device waits {values['data_wait']:.0%} of the time"
                f" for images; {self._feed.bottleneck()}"
            )

    def _speed(self, step):
        """Returns images per second, and the share of the time spent waiting."""
        now = (step, time.perf_counter(), self._feed.waited)
        steps, seconds, waited = np.subtract(now, self._clock)
        if not steps:
            return {}
        self._clock, seconds, self._paused = now, seconds - self._paused, 0.0
        batch_size = self._job.config.data.batch_size
        return {
            "images_per_second": float(steps * batch_size / seconds),
            "data_wait": float(waited / seconds),
        }


def peak_memory() -> dict[str, float]:
    """Returns the most memory that a device has used so far, where that is counted."""
    used = found.memory_stats().get("peak_bytes_in_use")
    return {} if used is None else {"memory_peak_gb": used / 1e9}
