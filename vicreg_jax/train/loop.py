"""The pretraining run: the loop that feeds, logs, judges and saves."""

import os
import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from vicreg_jax import config as configs
from vicreg_jax import devices, fields, log, sharding, workdirs
from vicreg_jax.checkpoint import Checkpoints
from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan, views
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.data.feed import Feed
from vicreg_jax.state import TrainState
from vicreg_jax.stop import Stop
from vicreg_jax.train import memory, monitor, parts
from vicreg_jax.train.recorder import Recorder, check_finite
from vicreg_jax.train.step import make_train_step


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
        an integer array indexes, `source[indices]` -> uint8 [b, h, w, c]; or
        `sources.Examples` with labels, for what watches the run.
      tx: instead of config.optimizer, any optax transformation.

    Raises:
      ValueError: before anything compiles, what is impossible about the config, the
        data, the devices or the workdir; in one line.
      FloatingPointError: the loss is no longer finite. The last checkpoint is good.
      KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the state is saved.
    """
    config = configs.parse(config)
    mesh = devices.mesh(config.data.batch_size)
    model = parts.model(config, encoder)
    width = parts.check_model(model, config)
    examples = parts.examples(config, source)
    images = examples.images
    parts.check_images(images, config)
    monitor.check(examples, config)
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
    probe = knn = None
    if config.evaluate.probe:
        how = dict(width=width, mesh=mesh, seed=config.seed)
        probe = monitor.Probe(examples, **how)
    if config.evaluate.knn_epochs:
        knn = monitor.nearest_neighbours(model.encoder, examples, config, mesh)
    whole, split = sharding.whole(mesh), sharding.split(mesh)
    on_cpu = jax.default_backend() == "cpu"
    one_cpu = on_cpu and mesh.size == 1
    held = batches.is_small(images)
    most = parts.at_once(images, config)
    compiled = partial(
        make_train_step,
        model,
        tx,
        weights=asdict(config.loss),
        mesh=mesh,
        seed=config.seed,
        render=partial(
            batches.render,
            config=config,
            in_turn=one_cpu,
            shape=images.shape[1:] if held else (),
        ),
        batch_sharding=(whole, split, split) if held else split,
    )
    step_fns = {count: compiled(steps=count) for count in {1, most}}
    init = jax.jit(parts.initializer(model, tx, config), out_shardings=whole)
    shapes = jax.eval_shape(init)
    if probe:
        shapes = shapes.replace(probe=jax.eval_shape(probe.init))
    canvas = batches.canvas(images, config)
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
        workdirs.write_json(workdir / "environment.json", devices.environment())
        if start == total:
            print(f"{workdir} has finished its {total} steps", file=sys.stderr)
            return Trained(model.encoder, parts.encoder_variables(state), state)
        rows = sharding.rows(config.data.batch_size)

        def make(span):
            made = [
                batches.batch(planner, images, config, step, rows=rows, canvas=canvas)
                for step in span
            ]
            batch = made[0]
            if len(span) > 1:
                batch = jax.tree.map(lambda *x: np.stack(x, axis=1), *made)
            labels = (probe.labels(planner(span[0]).indices[rows]),) if probe else ()
            return batch, labels

        every = config.every
        ends = (every.log_steps, epoch, every.checkpoint_epochs * epoch)
        feed = Feed(
            make,
            parts.spans(start, total, most=most, ends=ends),
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
            wandb_run=start_wandb(workdir, fields.flat(config)),
        )
        closing.callback(recorder.close)
        closing.callback(workdirs.list_broken, images, workdir, recorder.note)

        if start:
            recorder.note(f"continuing {workdir} at step {start} of {total}")
        if warning:
            recorder.note(warning)
        recorder.say("compiling")
        if state is None:
            state = init().replace(probe=probe.init() if probe else ())
        watch, state = state.probe, state.replace(probe=())
        # Unfinished collectives of several virtual CPU devices wait for each other's
        # threads.
        one_by_one = mesh.size > 1 and on_cpu
        behind, fresh = None, set(step_fns)
        # In rows: the tiles of a TPU would blow up a last axis of 3 channels.
        flat = images.reshape(len(images), -1) if held else None
        resident = (jax.device_put(flat, whole),) if held else ()
        for span, (batch, labels) in feed:
            step = span[-1] + 1
            begin = time.perf_counter()
            step_fn = step_fns[len(span)]
            state, values, outputs = step_fn(state, (*resident, *batch))
            if len(span) in fresh or one_by_one:
                jax.block_until_ready(state)
            if len(span) in fresh:  # compiling is timed apart
                fresh.discard(len(span))
                recorder.pause(time.perf_counter() - begin)
            if probe:
                watch, seen = probe.step(watch, outputs[0], *labels)
                values = values | seen
            jax.block_until_ready(behind)  # the host stays one step ahead, not more
            behind = values
            more = None
            if knn and step % (config.evaluate.knn_epochs * epoch) == 0:
                jax.block_until_ready(state)
                begin = time.perf_counter()
                try:
                    more = knn(parts.encoder_variables(state))
                except ValueError as error:  # training itself goes on without a file
                    recorder.note(f"no k-NN accuracy at step {step}: {error}")
                recorder.pause(time.perf_counter() - begin)
            recorder.step(step, values, outputs, more=more)
            if one_by_one:
                recorder.flush()
            stopped = stop.signal  # read once: it may arrive between two readings
            due = step % (every.checkpoint_epochs * epoch) == 0
            if due or step == total or stopped:
                recorder.flush()
                check_finite(step, jax.device_get(values))
                checkpoints.save(step, state.replace(probe=watch))
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
