"""What a run says of itself: metrics written, shown and judged."""

import math
import time
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from vicreg_jax import metrics, metrics_file, progress, sharding
from vicreg_jax.config import Config
from vicreg_jax.data.feed import Feed
from vicreg_jax.train import memory

STARVING = 0.1  # share of the time spent waiting for data that is worth a word


class Recorder:
    """Writes, shows and judges the metrics of steps.

    It fetches those of a step only after the next has been dispatched, so that the
    device never waits for it.
    """

    def __init__(
        self,
        config: Config,
        workdir: Path,
        mesh: Mesh,
        feed: Feed,
        *,
        start: int,
        epoch: int,
        schedule: optax.Schedule | None,
        wandb_run: Any,
    ):
        self._config, self._epoch, self._schedule = config, epoch, schedule
        self._total = config.epochs * epoch
        if jax.process_index() == 0:
            self._bar = progress.Bar(total=self._total, done=start)
            self._writer = metrics_file.Writer(
                workdir, step=start, note=self._bar.note, wandb_run=wandb_run
            )
        else:
            self._writer, self._bar = metrics_file.Silent(), progress.Silent()
        self.say, self.note = self._bar.say, self._bar.note
        # On one device: a singular value decomposition cannot be split.
        self._gather = jax.jit(tuple, out_shardings=sharding.whole(mesh))
        self._diagnose = jax.jit(metrics.diagnostics)
        self._feed, self._clock = feed, None
        self._diagnosed = False
        self._waiting, self._healthy, self._starved = None, True, False
        self._paused = 0.0

    def pause(self, seconds: float) -> None:
        """Leaves time out of the rates: of what was no training."""
        self._paused += seconds

    def step(
        self, step: int, values: dict, outputs: tuple, *, more: Mapping | None = None
    ) -> None:
        """Takes the device's results of a finished or unfinished step.

        Args:
          more: metrics that are to be recorded with this step, whichever it is.
        """
        self.flush()
        self._bar.step(step)
        if self._clock is None:
            self._clock = (step, time.perf_counter(), self._feed.waited)
            self._paused = 0.0
        logged = more or step in (1, self._epoch, self._total)
        if logged or step % self._config.every.log_steps == 0:
            # Queued before the next step, so that fetching waits for no other.
            first = [x.addressable_data(0) for x in self._gather(outputs)]
            begin = time.perf_counter()
            values = values | self._diagnose(*first)
            if not self._diagnosed:  # compiling is timed apart
                self._diagnosed = True
                self.pause(time.perf_counter() - begin)
            n, d = outputs[1].shape
            floor = 2 * max(d - 1, 1) / (n - 1)  # of both views
            values["covariance_over_noise"] = values["covariance"] / floor
            if self._schedule:
                values["learning_rate"] = self._schedule(step - 1)
            self._waiting = (step, values | dict(more or {}))

    def flush(self) -> None:
        """Records the latest metrics, if they are not yet."""
        if self._waiting is None:
            return
        step, values = self._waiting
        self._waiting = None
        values = {name: float(x) for name, x in jax.device_get(values).items()}
        row = values.pop("skipped_in_a_row")
        values |= {"epoch": step / self._epoch, **self._speed(step), **memory.peak()}
        self._writer.write(step, {k: v for k, v in values.items() if math.isfinite(v)})
        if row:
            self.note(f"step {step}: loss or gradient not finite; skipped")
        else:
            self._bar.show(step, values, _terms(values))
            self._judge(step, values)
        if values.get("data_wait", 0.0) > STARVING and not self._starved:
            self._starved = True  # said once
            self.note(
                f"step {step}: the device waits {values['data_wait']:.0%} of the time"
                f" for images; {self._feed.bottleneck()}"
            )

    def close(self) -> None:
        self._bar.close()
        self._writer.close()

    def _judge(self, step, values):
        weights = asdict(self._config.loss)
        first = self._writer.first  # that of a skipped step lacks what was no number
        first = first if "embedding_std" in first else values
        verdict = metrics.judge(first, values, weights)
        if step == self._epoch or verdict.healthy != self._healthy:
            word = "healthy" if verdict.healthy else "NOT healthy"
            self.note(f"health at step {step}: {word}: {verdict.reason}")
        self._healthy = verdict.healthy

    def _speed(self, step):
        """Returns images (pairs of views) per second, and the share of time waiting."""
        now = (step, time.perf_counter(), self._feed.waited)
        steps, seconds, waited = np.subtract(now, self._clock)
        if not steps:
            return {}
        self._clock, seconds, self._paused = now, seconds - self._paused, 0.0
        return {
            "images_per_second": float(steps * self._config.data.batch_size / seconds),
            "data_wait": float(waited / seconds),
        }


def _terms(values):
    return (
        f"loss {values['loss']:.2f} = invariance {values['invariance']:.3f}"
        f", variance {values['variance']:.3f}, covariance {values['covariance']:.2f}"
        f"; std {values['embedding_std']:.2f}"
    )
