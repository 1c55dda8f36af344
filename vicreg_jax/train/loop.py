"""The pretraining run: the loop that feeds, logs, judges and saves."""

import math
import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax
from jax.sharding import Mesh

from vicreg_jax import config as configs
from vicreg_jax import log, metrics, sharding
from vicreg_jax.checkpoint import Checkpoints
from vicreg_jax.config import Config
from vicreg_jax.data import plan, views
from vicreg_jax.data.feed import Feed
from vicreg_jax.state import TrainState
from vicreg_jax.train import parts
from vicreg_jax.train.step import make_train_step
from vicreg_jax.train.stop import Stop


class Trained(NamedTuple):
    """What a run leaves behind: `encoder.apply(variables, images, train=False)`."""

    encoder: nn.Module
    variables: dict[str, Any]  # "params" and "batch_stats" of the encoder
    state: TrainState


def run(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike,
    *,
    encoder: nn.Module | None = None,
    source: Any = None,
    tx: optax.GradientTransformation | None = None,
) -> Trained:
    """Pretrains an encoder, or continues the run that the workdir holds.

    Args:
      config: a `Config` or a nested mapping of its fields.
      workdir: a folder for config.json, metrics.jsonl, TensorBoard events and
        checkpoints, created where needed.
      encoder: instead of config.model.encoder, any Linen module with
        `module.apply(variables, images [n, h, w, c], train=bool)` -> [n, f].
      source: instead of config.data.name, training images: anything with a length that
        an integer array indexes, `source[indices]` -> uint8 [b, h, w, c].
      tx: instead of config.optimizer, any optax transformation.

    Raises:
      ValueError: before anything compiles, what is impossible about the config, the
        data, the devices or the workdir; in one line.
      FloatingPointError: the loss is no longer finite. The last checkpoint is good.
      KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the state is saved.
    """
    config = configs.parse(config)
    mesh = parts.mesh(config)
    images = parts.images(config) if source is None else source
    parts.check_images(images, config)
    planner = plan.Planner(
        seed=config.seed,
        examples=len(images),
        batch_size=config.data.batch_size,
        views=2,
        numbers=views.NUMBERS,
    )
    epoch = planner.steps_per_epoch
    total = config.epochs * epoch
    schedule = None
    if tx is None:
        schedule, tx = parts.optimizer(config, epoch)
    model = parts.model(config, encoder)
    parts.check_model(model, config)
    step_fn = make_train_step(
        model,
        tx,
        weights=asdict(config.loss),
        mesh=mesh,
        seed=config.seed,
        render=partial(parts.render, config=config),
    )
    init = jax.jit(
        parts.initializer(model, tx, config), out_shardings=sharding.whole(mesh)
    )
    start_wandb = log.wandb_starter(config.wandb)
    workdir = parts.claim(workdir, config)

    with ExitStack() as closing:
        stop = closing.enter_context(Stop())  # left last, after the last save
        checkpoints = Checkpoints(
            workdir.absolute() / "checkpoints", facts={"examples": len(images)}
        )
        closing.callback(checkpoints.close)
        start, state = checkpoints.restore(jax.eval_shape(init)) or (0, None)
        if start > total:
            raise ValueError(
                f"{workdir} is at step {start}, but config.epochs={config.epochs} asks"
                f" for {total} steps; give it more epochs or choose another --workdir"
            )
        parts.write_config(workdir, config)
        if start == total:
            print(f"{workdir} has finished its {total} steps", file=sys.stderr)
            return Trained(model.encoder, parts.encoder_variables(state), state)
        feed = Feed(
            partial(parts.batch, planner, images, config),
            start=start,
            stop=total,
            sharding=sharding.split(mesh),
        )
        recorder = _Recorder(
            config,
            workdir,
            mesh,
            feed,
            start=start,
            epoch=epoch,
            schedule=schedule,
            wandb_run=start_wandb(workdir, configs.flat(config)),
        )
        closing.callback(recorder.close)
        closing.callback(parts.list_broken, images, workdir, recorder.note)

        if start:
            recorder.note(f"continuing {workdir} at step {start} of {total}")
        recorder.say("compiling")
        state = init() if state is None else state
        behind = None
        for step, batch in enumerate(feed, start + 1):
            state, values, outputs = step_fn(state, batch)
            jax.block_until_ready(behind)  # the host stays one step ahead, not more
            behind = values
            # Unfinished steps on several virtual CPU devices would wait for each
            # other's threads; the first step of a run is timed apart, it compiles.
            if step == start + 1 or (mesh.size > 1 and jax.default_backend() == "cpu"):
                jax.block_until_ready(state)
            recorder.step(step, values, outputs)
            stopped = stop.signal  # read once: it may arrive between two readings
            due = step % (config.every.checkpoint_epochs * epoch) == 0
            if due or step == total or stopped:
                recorder.flush()
                _check_finite(step, jax.device_get(values))
                checkpoints.save(step, state)
            if stopped:
                checkpoints.wait()
                recorder.note(
                    f"stopped and saved at step {step} of {total}; the same command"
                    " continues"
                )
                break
    return Trained(model.encoder, parts.encoder_variables(state), state)


def untrained(config: Config) -> dict[str, Any]:
    """Returns the variables of the encoder before the first step of a run."""
    init = parts.initializer(parts.model(config, None), optax.identity(), config)
    return parts.encoder_variables(jax.jit(init)())


def _check_finite(step, values):
    for name in ("loss", "grad_norm"):
        if not math.isfinite(values[name]):
            raise FloatingPointError(
                f"{name} is {values[name]} at step {step}, the last checkpoint is from"
                " before; start again in another --workdir with a lower"
                " optimizer.base_lr"
            )


class _Recorder:
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
        self._writer = log.Writer(workdir, step=start, wandb_run=wandb_run)
        self._bar = log.Bar(total=self._total, done=start)
        self.say, self.note = self._bar.say, self._bar.note
        # On one device: a singular value decomposition cannot be split.
        self._gather = jax.jit(tuple, out_shardings=sharding.whole(mesh))
        self._diagnose = jax.jit(metrics.diagnostics)
        self._feed, self._clock = feed, None
        self._waiting, self._healthy = None, True

    def step(self, step: int, values: dict, outputs: tuple) -> None:
        """Takes the device's results of a finished or unfinished step."""
        self.flush()
        self._bar.step(step)
        if self._clock is None:
            self._clock = (step, time.perf_counter(), self._feed.waited)
        logged = step in (1, self._epoch, self._total)
        if logged or step % self._config.every.log_steps == 0:
            # Queued before the next step, so that fetching waits for no other.
            first = [x.addressable_data(0) for x in self._gather(outputs)]
            values = values | self._diagnose(*first)
            n, d = outputs[1].shape
            floor = 2 * max(d - 1, 1) / (n - 1)  # of both views
            values["covariance_over_noise"] = values["covariance"] / floor
            if self._schedule:
                values["learning_rate"] = self._schedule(step - 1)
            self._waiting = (step, values)

    def flush(self) -> None:
        """Records the latest metrics, if they are not yet."""
        if self._waiting is None:
            return
        step, values = self._waiting
        self._waiting = None
        values = {name: float(x) for name, x in jax.device_get(values).items()}
        _check_finite(step, values)
        values |= {"epoch": step / self._epoch, **self._speed(step)}
        self._writer.write(step, values)
        self._bar.show(step, values)
        self._judge(step, values)

    def close(self) -> None:
        self._bar.close()
        self._writer.close()

    def _judge(self, step, values):
        weights = asdict(self._config.loss)
        verdict = metrics.judge(self._writer.first, values, weights)
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
        self._clock = now
        return {
            "images_per_second": float(steps * self._config.data.batch_size / seconds),
            "data_wait": float(waited / seconds),
        }
