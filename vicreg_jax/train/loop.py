"""The pretraining run: the loop that feeds, logs, judges and saves."""

import os
import sys
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import optax

from vicreg_jax import config as configs
from vicreg_jax import log, sharding
from vicreg_jax.checkpoint import Checkpoints
from vicreg_jax.config import Config
from vicreg_jax.data import plan, views
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.data.feed import Feed
from vicreg_jax.state import TrainState
from vicreg_jax.train import memory, parts, workdirs
from vicreg_jax.train.recorder import Recorder, check_finite
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
    model = parts.model(config, encoder)
    parts.check_model(model, config)
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
    whole, split = sharding.whole(mesh), sharding.split(mesh)
    on_cpu = jax.default_backend() == "cpu"
    one_cpu = on_cpu and mesh.size == 1
    held = parts.is_small(images)
    step_fn = make_train_step(
        model,
        tx,
        weights=asdict(config.loss),
        mesh=mesh,
        seed=config.seed,
        render=partial(
            parts.render,
            config=config,
            in_turn=one_cpu,
            shape=images.shape[1:] if held else (),
        ),
        batch_sharding=(whole, split, split) if held else split,
    )
    init = jax.jit(parts.initializer(model, tx, config), out_shardings=whole)
    shapes = jax.eval_shape(init)
    canvas = parts.canvas(images, config)
    need = memory.estimate(model, shapes, config, mesh.size, canvas=canvas)
    warning = memory.check(need, memory.limit())
    start_wandb = log.wandb_starter(config.wandb)
    workdir = workdirs.claim(workdir, config)

    with ExitStack() as closing:
        stop = closing.enter_context(Stop())  # left last, after the last save
        closing.enter_context(memory.explained(need))
        checkpoints = Checkpoints(
            workdir.absolute() / "checkpoints", facts={"examples": len(images)}
        )
        closing.callback(checkpoints.close)
        start, state = checkpoints.restore(shapes) or (0, None)
        if start > total:
            raise ValueError(
                f"{workdir} is at step {start}, but config.epochs={config.epochs} asks"
                f" for {total} steps; give it more epochs or choose another --workdir"
            )
        workdirs.write_config(workdir, config)
        if start == total:
            print(f"{workdir} has finished its {total} steps", file=sys.stderr)
            return Trained(model.encoder, parts.encoder_variables(state), state)
        feed = Feed(
            partial(
                parts.batch,
                planner,
                images,
                config,
                rows=sharding.rows(config.data.batch_size),
                canvas=canvas,
            ),
            start=start,
            stop=total,
            sharding=split,
            seconds=images.seconds if isinstance(images, Encoded) else None,
        )
        recorder = Recorder(
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
        closing.callback(workdirs.list_broken, images, workdir, recorder.note)

        if start:
            recorder.note(f"continuing {workdir} at step {start} of {total}")
        if warning:
            recorder.note(warning)
        recorder.say("compiling")
        state = init() if state is None else state
        # Unfinished collectives of several virtual CPU devices wait for each other's
        # threads.
        one_by_one = mesh.size > 1 and on_cpu
        behind = None
        # In rows: the tiles of a TPU would blow up a last axis of 3 channels.
        rows = images.reshape(len(images), -1) if held else None
        resident = (jax.device_put(rows, whole),) if held else ()
        for step, batch in enumerate(feed, start + 1):
            state, values, outputs = step_fn(state, (*resident, *batch))
            jax.block_until_ready(behind)  # the host stays one step ahead, not more
            behind = values
            if step == start + 1 or one_by_one:  # the first is timed apart: it compiles
                jax.block_until_ready(state)
            recorder.step(step, values, outputs)
            if one_by_one:
                recorder.flush()
            stopped = stop.signal  # read once: it may arrive between two readings
            due = step % (config.every.checkpoint_epochs * epoch) == 0
            if due or step == total or stopped:
                recorder.flush()
                check_finite(step, jax.device_get(values))
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
