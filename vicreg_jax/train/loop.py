"""The pretraining run: the loop that feeds, logs, judges and saves."""

import os
import signal
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
import jax.numpy as jnp
import numpy as np
import optax

from vicreg_jax import config as configs
from vicreg_jax import devices, fields, log, sharding, workdirs
from vicreg_jax.checkpoint import Checkpoints
from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan, views
from vicreg_jax.data.feed import Feed
from vicreg_jax.data.source import Source
from vicreg_jax.state import TrainState
from vicreg_jax.stop import Stop
from vicreg_jax.train import memory, monitor, parts
from vicreg_jax.train.autopsy import autopsy
from vicreg_jax.train.recorder import Recorder
from vicreg_jax.train.step import make_train_step
from vicreg_jax.watchdog import Watchdog


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

    Of several processes (`jax.distributed`) each calls it alike; the first writes.

    Args:
      config: a `Config` or a nested mapping of its fields.
      workdir: a folder for config.json, metrics.jsonl, TensorBoard events and
        checkpoints, created where needed; of several processes one that all see.
      encoder: instead of config.model.encoder, any Linen module with
        `module.apply(variables, images [n, h, w, c], train=bool)` -> [n, f].
      source: instead of config.data.name, training images: a `data.source.Source`,
        such as `Arrays(images, labels)` with labels for what watches the run, or
        anything with a length that an integer array indexes, `source[indices]` ->
        uint8 [b, h, w, c].
      tx: instead of config.optimizer, any optax transformation.

    Raises:
      ValueError: before anything compiles, what is impossible about the config, the
        data, the devices or the workdir; in one line.
      FloatingPointError: loss or gradient stay not finite. The last checkpoint is good.
      KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the state is saved.
    """
    this = _prepare(configs.parse(config), encoder, source, tx)
    config, images = this.config, this.images
    start_wandb = log.wandb_starter(config.wandb)
    workdir = workdirs.claim(workdir, config)
    lead = jax.process_index() == 0

    with ExitStack() as closing:
        # Left last, after the last save.
        stop = closing.enter_context(Stop(together=jax.process_count() > 1))
        closing.enter_context(memory.explained(this.need))
        checkpoints = Checkpoints(
            workdir.absolute() / "checkpoints", facts={"examples": len(images)}
        )
        closing.callback(checkpoints.close)
        start, state = checkpoints.restore(this.like) or (0, None)
        if start > this.total:
            raise ValueError(
                f"{workdir} is at step {start}, but config.epochs={config.epochs} asks"
                f" for {this.total} steps; give it more epochs or choose another"
                " --workdir"
            )
        if lead:
            workdirs.write_config(workdir, config)
            where = devices.environment() | {"memory_per_device": this.need.words}
            workdirs.write_json(workdir / "environment.json", where)
        if start == this.total:
            if lead:
                print(f"{workdir} has finished its {start} steps", file=sys.stderr)
            return Trained(this.model.encoder, parts.encoder_variables(state), state)
        wandb_run = start_wandb(workdir, fields.flat(config)) if lead else None
        if wandb_run:
            closing.callback(wandb_run.finish)
        watchdog = Watchdog(
            config.guard.stuck_seconds,
            workdir / f"stuck_{jax.process_index()}.txt",
        )
        closing.callback(watchdog.close)
        went_back = 0
        while True:
            try:
                state = _train(
                    this,
                    workdir,
                    checkpoints,
                    stop,
                    watchdog,
                    start=start,
                    state=state,
                    went_back=went_back,
                    wandb_run=wandb_run,
                )
                break
            except _NotFinite as error:
                checkpoints.wait()
                if went_back:
                    raise FloatingPointError(str(error)) from None
                found = checkpoints.restore(this.like)
                if found is None:
                    raise FloatingPointError(str(error)) from None
                start, state = found
                went_back = error.step
    return Trained(this.model.encoder, parts.encoder_variables(state), state)


class _NotFinite(Exception):
    """Loss or gradient were not finite for too many steps in a row."""

    def __init__(self, message, step):
        super().__init__(message)
        self.step = step


class _Prepared(NamedTuple):
    """What a run is made of, before anything compiles or is written."""

    config: Config
    mesh: jax.sharding.Mesh
    model: nn.Module
    images: Source
    planner: plan.Planner
    schedule: optax.Schedule | None
    total: int  # steps
    init: Any  # () -> state
    like: Any  # shapes and shardings of the state
    step_fns: dict[int, Any]  # number of steps at once -> function
    views_of: batches.Batches
    need: memory.Need
    warning: str
    probe: monitor.Probe | None
    knn: Any


def _prepare(config, encoder, source, tx):
    """Builds the parts of a run, and refuses what cannot work."""
    mesh = devices.mesh(config.data.batch_size)
    model = parts.model(config, encoder)
    width = parts.check_model(model, config)
    images = parts.images(config, source)
    views_of = batches.Batches(images, config, mesh)
    monitor.check(images, config)
    planner = plan.Planner(
        seed=config.seed,
        examples=len(images),
        batch_size=config.data.batch_size,
        views=views_of.views,
        numbers=views.NUMBERS,
    )
    epoch = planner.steps_per_epoch
    schedule = None
    if tx is None:
        schedule, tx = parts.optimizer(config, epoch)
    probe = knn = None
    if config.evaluate.probe:
        how = dict(width=width, mesh=mesh, seed=config.seed)
        probe = monitor.Probe(images, **how)
    if config.evaluate.knn_epochs:
        knn = monitor.nearest_neighbours(model.encoder, images, config, mesh)
    whole = sharding.whole(mesh)
    init = parts.initializer(model, tx, config)
    shapes = jax.eval_shape(init)
    places = jax.tree.map(lambda _: whole, shapes)
    if config.optimizer.sharded:
        places = sharding.divided(mesh, shapes)
    like = jax.tree.map(
        lambda x, place: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=place),
        shapes,
        places,
    )
    if probe:
        watching = jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=whole),
            jax.eval_shape(probe.init),
        )
        like = like.replace(probe=watching)
    compiled = partial(
        make_train_step,
        *(model, tx),
        weights=asdict(config.loss),
        mesh=mesh,
        seed=config.seed,
        render=lambda batch: jnp.unstack(views_of.render(*batch), axis=1),
        batch_sharding=views_of.sharding,
        state_sharding=places,
    )
    canvas = views_of.canvas
    need = memory.estimate(model, like, config, mesh.size, canvas=canvas)
    at_once = parts.at_once(config, held=views_of.held)
    return _Prepared(
        *(config, mesh, model, images, planner, schedule),
        total=config.epochs * epoch,
        init=jax.jit(init, out_shardings=places),
        like=like,
        step_fns={n: compiled(steps=n) for n in {1, at_once}},
        views_of=views_of,
        need=need,
        warning=memory.check(need, memory.limit()),
        probe=probe,
        knn=knn,
    )


def _train(
    this: _Prepared,
    workdir: Path,
    checkpoints: Checkpoints,
    stop: Stop,
    watchdog: Watchdog,
    *,
    start: int,
    state: TrainState | None,
    went_back: int,
    wandb_run: Any,
) -> TrainState:
    """Trains from step `start` until the end, a signal, or numbers that go wrong."""
    config, mesh, images = this.config, this.mesh, this.images
    planner, probe, total, every = this.planner, this.probe, this.total, config.every
    epoch = planner.steps_per_epoch
    rows = sharding.rows(config.data.batch_size)

    def make(span):
        made = [this.views_of.make(planner, step, rows) for step in span]
        batch = made[0]
        if len(span) > 1:
            batch = jax.tree.map(lambda *x: np.stack(x, axis=1), *made)
        labels = (probe.labels(planner(span[0]).indices[rows]),) if probe else ()
        return batch, labels

    ends = (every.log_steps, epoch, every.checkpoint_epochs * epoch)
    spans = parts.spans(start, total, most=max(this.step_fns), ends=ends)
    feed = Feed(
        make,
        spans,
        sharding=sharding.split(mesh),
        seconds=images.seconds,
    )
    with ExitStack() as closing:
        recorder = Recorder(
            config,
            workdir,
            mesh,
            feed,
            start=start,
            epoch=epoch,
            schedule=this.schedule,
            wandb_run=wandb_run,
        )
        closing.callback(recorder.close)
        closing.callback(workdirs.list_broken, images, workdir, recorder.note)
        if went_back:
            recorder.note(
                f"loss or gradient not finite at step {went_back}: back to step {start}"
            )
        elif start:
            recorder.note(f"continuing {workdir} at step {start} of {total}")
        for text in (this.warning, checkpoints.note, checkpoints.room(this.like)):
            if text:
                recorder.note(text)
        recorder.say("compiling")
        if state is None:
            state = this.init().replace(probe=probe.init() if probe else ())
        watch, state = state.probe, state.replace(probe=())
        # Unfinished collectives of several virtual CPU devices wait for each other's
        # threads.
        one_by_one = mesh.size > 1 and jax.default_backend() == "cpu"
        together = jax.process_count() > 1
        behind, fresh = None, set(this.step_fns)
        resident = this.views_of.resident()
        for span, (batch, labels) in feed:
            step, count = span[-1] + 1, len(span)
            begin = time.perf_counter()
            with ExitStack() as compiling:
                if count in fresh:
                    compiling.enter_context(watchdog.paused())
                state, values, outputs = this.step_fns[count](state, (resident, batch))
                if count in fresh or one_by_one:
                    jax.block_until_ready(state)
            if count in fresh:  # compiling is timed apart
                fresh.discard(count)
                recorder.pause(time.perf_counter() - begin)
            if probe:
                watch, seen = probe.step(watch, outputs[0], *labels)
                values = values | seen
            if behind:  # the host stays one step ahead, not more
                before, found, old = behind
                if int(found["skipped_in_a_row"]) >= config.guard.skipped_steps:
                    with watchdog.paused():
                        why = _explained(this, workdir, state, resident, old, before)
                    raise _NotFinite(why, before)
            behind = step, values, batch
            watchdog.beat()
            more = None
            if this.knn and step % (config.evaluate.knn_epochs * epoch) == 0:
                jax.block_until_ready(state)
                recorder.flush()
                begin = time.perf_counter()
                try:
                    with watchdog.paused():
                        more = this.knn(parts.encoder_variables(state))
                except ValueError as error:  # training itself goes on without a file
                    recorder.note(f"no k-NN accuracy at step {step}: {error}")
                recorder.pause(time.perf_counter() - begin)
            recorder.step(step, values, outputs, more=more)
            if one_by_one:
                recorder.flush()
            # Read once: it may arrive between two readings.
            stopped = checkpoints.preempted(step) if together else stop.signal
            due = step % (every.checkpoint_epochs * epoch) == 0
            if due or step == total or stopped:
                recorder.flush()
                with watchdog.paused():
                    score = more["knn_top1"] if more else None
                    checkpoints.save(step, state.replace(probe=watch), score=score)
            if stopped:
                with watchdog.paused():
                    checkpoints.wait()
                recorder.note(
                    f"stopped and saved at step {step} of {total}; the same command"
                    " continues"
                )
                stop.signal = stop.signal or signal.SIGTERM  # of another process
                break
        with watchdog.paused():
            checkpoints.wait()
    return state.replace(probe=watch)


def _explained(this, workdir, state, resident, batch, step):
    """Returns why a step is not finite; writes its batch for whoever wants to look."""
    limit = this.config.guard.skipped_steps
    text = f"loss or gradient not finite at step {step}, {limit} steps in a row"
    if jax.process_count() == 1:  # else parts of the batch are elsewhere
        steps = np.shape(batch.parameters.flip)[1:-1]  # of one dispatch, if several
        last = jax.tree.map(lambda x: x[:, -1], batch) if steps else batch
        path = workdir / f"not_finite_{step}.npz"
        indices = this.planner(step - 1).indices
        parameters = {k: np.asarray(v) for k, v in last.parameters._asdict().items()}
        np.savez(path, indices=indices, images=np.asarray(last.images), **parameters)
        images = jnp.unstack(this.views_of.render(resident, last), axis=1)
        weights = asdict(this.config.loss)
        where = autopsy(this.model, state.params, state.batch_stats, images, weights)
        text += f"; first in {where}; {path} has the batch"
    return (
        f"{text}. The last checkpoint is from before; in another --workdir try a lower"
        " optimizer.base_lr or model.dtype=float32"
    )


def untrained(config: Config) -> dict[str, Any]:
    """Returns the variables of the encoder before the first step of a run."""
    init = parts.initializer(parts.model(config, None), optax.identity(), config)
    return parts.encoder_variables(jax.jit(init)())
