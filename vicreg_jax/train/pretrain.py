"""Pretraining: `run` does it from a config; the loop is the session's."""

import os
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import numpy as np
import optax

from vicreg_jax import devices, files, models, optim
from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.source import describe
from vicreg_jax.devices import processes, sharding
from vicreg_jax.methods import Method, health
from vicreg_jax.refusals import Refusal, one_line
from vicreg_jax.run import checkpoints, code, metrics_file, workdirs
from vicreg_jax.run.session import Job, Session
from vicreg_jax.run.state import TrainState
from vicreg_jax.train import build, memory_estimate, not_finite, online, start
from vicreg_jax.train.step import make_train_step
from vicreg_jax.train.verdict import Verdict
from vicreg_jax.weights import Encoder

__all__ = ["Pretraining", "Trained", "run", "untrained"]

AT_ONCE = 8  # steps of one dispatch


class Trained(NamedTuple):
    """What a run leaves behind."""

    encoder: Encoder
    state: TrainState


def run(
    config: Config | Mapping[str, Any],
    workdir: str | os.PathLike,
    *,
    encoder: nn.Module | None = None,
    method: Callable[..., Method] | None = None,
    source: Any = None,
    tx: optax.GradientTransformation | None = None,
    variables: Mapping[str, Any] | None = None,
) -> Trained:
    """Pretrains an encoder, or continues the run that the workdir holds.

    Of several processes (`jax.distributed`) each calls it alike; the first writes.

    Args:
      config: a `Config` or a nested mapping of its fields.
      workdir: a folder for config.json, metrics.jsonl, TensorBoard events and
        checkpoints, created where needed; of several processes one that all see;
        perhaps in a bucket, gs://BUCKET/RUN.
      encoder: instead of config.model.encoder, any Linen module with
        `module.apply(variables, images [n, h, w, c], train=bool)` -> [n, f].
      method: instead of config.method, a subclass of `methods.Method`, or any function
        (encoder, expander, weights) that returns such an object.
      source: instead of config.data.name, training images: a `data.source.Source`,
        such as `Arrays(images, labels)` with labels for what watches the run, or
        anything with a length that an integer array indexes, `source[indices]` ->
        uint8 or uint16 [b, h, w, c]; or what gives images or views one after the
        other, such as a tf.data.Dataset: see `data.streams.Stream`.
      tx: instead of config.optimizer, any optax transformation.
      variables: instead of config.model.weights, what the encoder starts from, such as
        `load(path).variables`; or of a `models.JointEmbedding`, some of its parts.

    Raises:
      Refusal: before anything compiles, what is impossible about the config, the data,
        the devices or the workdir; in one line. It is a ValueError.
      Diverged: loss or gradient stay not finite. The last checkpoint is good.
      KeyboardInterrupt, SystemExit: after Ctrl-C or SIGTERM, once the state is saved.
    """
    config = Config.parse(config)
    workdirs.agree(workdir, config)
    with processes.all_or_none(Refusal, of=Refusal):
        cache = IndexCache(workdir)
        recorded = checkpoints.facts_of(files.expanded(workdir) / "checkpoints")
        parts = encoder, method, source, tx, cache, variables
        job = Pretraining(config, *parts, recorded)
        start_wandb = metrics_file.wandb_starter(job.config.wandb)
    with (
        workdirs.claimed(workdir, job.config) as (workdir, before),
        Session(
            job, workdir.absolute(), before=before, start_wandb=start_wandb
        ) as session,
    ):
        cache.write()
        judge = job.verdict(workdir)
        if judge and not session.start:
            with session.watchdog.paused(), session.goodput.spent("judging"):
                session.state = job.init()
                judge.before(session.state)
        if session.finished:
            session.bar.note(f"{workdir} has finished its {job.total} steps")
            state = session.state
        else:
            state = session.train()
            if second := job.config.model.second_encoder:
                session.bar.note(
                    f"the second branch ({second}) is no part of the result:"
                    " evaluations and exports take the encoder of the first"
                )
        if judge:
            with session.watchdog.paused():
                session.bar.note(judge.after(state))
    trained = build.trained(job.method, state, job.config, source=str(workdir))
    return Trained(trained, state)


class Pretraining(Job):
    """A pretraining run, built from its config; refuses what cannot work.

    Args: see `run`.
      cache: what is known of the images.
      recorded: the facts of its newest checkpoint, None where there is none: what
        weights it started from is told by them then, and the weights are not read.
    """

    cure = "a lower optimizer.base_lr or model.dtype=float32"

    def __init__(
        self,
        config,
        encoder,
        method,
        source,
        tx,
        cache=None,
        variables=None,
        recorded=None,
    ):
        self.mesh = devices.mesh(config.data.batch_size)
        build.check_microbatches(config, self.mesh.size)
        self.method = build.method(config, encoder, method)
        self.config = config = replace(config, **build.names(self.method, method))
        width = build.check_encoder(self.method, config)
        self._set_data(build.images(config, source, cache))
        self._set_start(variables, recorded)
        self._set_watchers(width)
        self._set_steps(tx)
        self._statistics = jax.jit(self._all_statistics)
        self._healthy = True

    def saved(self, step):
        if self.images.in_order:
            self.images.keep(step * (self._rows.stop - self._rows.start))

    def _set_data(self, images):
        """The images, and how many steps they make."""
        config = self.config
        self.images, self.held_out = images
        self._batches = batches.Batches(self.images, config, self.mesh)
        online.check(self.images, config)
        self._planner = build.planner(config, self.images)
        self.epoch = self._planner.steps_per_epoch
        self.total = config.epochs * self.epoch
        self._rows = sharding.rows(config.data.batch_size)
        self._make = self._batches.stream(self.plan, self._rows, stop=self.total)
        self.method.target_momentum = optim.rising(config.target_momentum, self.total)
        self.log_steps = config.every.log_steps
        self.checkpoint_steps = config.every.checkpoint_epochs * self.epoch
        self.judge_steps = config.evaluate.knn_epochs * self.epoch
        self.profile_step = config.every.profile_step
        self.facts = {
            "examples": len(self.images),
            "data": dict(self.images.fingerprint()),
        }
        if own := code.of_class(type(self.method)):
            self.facts["code"] = own

    def _set_start(self, variables, recorded):
        """The weights to start from, if any; their checksum is a fact."""
        config, self._start = self.config, None
        if variables is not None and config.model.weights:
            raise Refusal(
                f"variables= and config.model.weights={config.model.weights!r} both say"
                " what the run starts from; give one of them"
            )
        if variables is not None:
            self._start = start.of_variables(variables, config, self.method)
        elif config.model.weights and recorded is None:
            self._start = start.of_config(config, self.method)
        fact = self._start.checksum if self._start else (recorded or {}).get("weights")
        if fact is not None:
            self.facts["weights"] = fact

    def _set_watchers(self, width):
        """What watches the run by its labels."""
        config, mesh = self.config, self.mesh
        self._probe = self._neighbours = None
        if config.evaluate.probe:
            self._probe = online.Probe(
                self.images, width=width, mesh=mesh, seed=config.seed
            )
        if config.evaluate.knn_epochs:
            self._neighbours = online.nearest_neighbours(
                self.method.encoder, self.images, config, mesh
            )

    def _set_steps(self, tx):
        """The optimizer, the state, its memory, and the compiled steps."""
        config, mesh = self.config, self.mesh
        self._schedule = None
        if tx is None:
            self._schedule, tx = build.optimizer(config, self.epoch)
        elif not isinstance(tx, optax.GradientTransformation):
            raise Refusal(
                f"tx={tx!r} is no optax transformation; give one such as"
                " optax.adam(1e-3)"
            )
        init = build.initializer(self.method, tx, config)
        places = sharding.whole(mesh)
        if config.optimizer.sharded:
            places = sharding.divided(mesh, jax.eval_shape(init))
        self._init = jax.jit(init, out_shardings=places)
        self.like = jax.eval_shape(self._init)
        if self._probe:
            self.like = self.like.replace(probe=self._probe.like)
        build.check_loss(self.method, self.like, config)
        need = memory_estimate.estimate(
            self.method, self.like, config, mesh.size, canvas=self._batches.canvas
        )
        self.size = need.words
        self.warning = memory_estimate.check(need, memory_estimate.limit())
        # A CPU has nothing to gain from several at once, and compiles twice.
        alone = jax.default_backend() == "cpu" or self._probe is not None
        self.at_once = AT_ONCE if self._batches.held and not alone else 1
        self._step_fns = {
            count: make_train_step(
                self.method,
                tx,
                mesh=mesh,
                seed=config.seed,
                render=lambda batch: self._batches.render(*batch),
                batch_sharding=self._batches.sharding,
                state_sharding=places,
                steps=count,
            )
            for count in {1, self.at_once}
        }
        self._gather = jax.jit(tuple, out_shardings=sharding.whole(mesh))

    def opening(self, before, start):
        config, method = self.config, self.method
        model = config.model.encoder
        if models.spec(method.encoder) is None:
            model = type(method.encoder).__name__
        if config.model.second_encoder:
            model += f" and, with weights of its own, {config.model.second_encoder}"
        dropped = len(self.images) - self.epoch * config.data.batch_size
        by = {"": "", "threads": ", read by threads", "tf_data": ", read by tf.data"}
        begins = self._start and not start
        lines = [
            f"{method.title} on {model}:"
            f" {describe(self.images)}{by[self._batches.pipeline]};"
            f" {config.epochs} epochs of {self.epoch:,} steps of"
            f" {config.data.batch_size:,} images ({dropped:,} left out of each epoch);"
            f" {processes.described()}"
        ]
        if begins:
            lines.append(f"it begins with the {self._start.words}")
        if before and start and before.epochs != config.epochs:
            lines.append(self._other_epochs(before, start))
        return lines

    def _other_epochs(self, before, start):
        line = f"config.epochs was {before.epochs}, is {self.config.epochs}"
        if self._schedule:
            old, _ = build.optimizer(before, self.epoch)
            rates = (
                f"{float(old(start - 1)):.3g}",
                f"{float(self._schedule(start)):.3g}",
            )
            line += ": the learning rate goes from {} to {}".format(*rates)
        return line

    def init(self):
        state = self._init(self._start.parts if self._start else None)
        return state.replace(probe=self._probe.init()) if self._probe else state

    def verdict(self, workdir: Path) -> Verdict | None:
        """Returns what judges the run by the images held out, if there are any."""
        if not self.config.data.held_out:
            return None
        images = self.images, self.held_out
        return Verdict(self.method, *images, self.config, self.mesh, workdir)

    def make(self, span):
        made = [self._make(step) for step in span]
        batch = made[0]
        if len(made) > 1:
            batch = jax.tree.map(lambda *x: np.stack(x, axis=1), *made)
        labels = None
        if self._probe:
            labels = self._probe.labels(self.plan(span[0]).indices[self._rows])
        return batch, labels

    def plan(self, step: int) -> plan.Plan:
        """Returns which images a step has, from 0 on, and their random numbers."""
        return self._planner(step)

    def views(self, batch: batches.Batch) -> batches.Views:
        """Returns the views of the batch of one step."""
        return self._batches.render(self._batches.resident(), batch)

    def step(self, state, batch, count):
        batch, labels = batch
        watch, state = state.probe, state.replace(probe=())  # no part of the training
        state, values, outputs = self._step_fns[count](
            state, (self._batches.resident(), batch)
        )
        if self._probe:
            watch, seen = self._probe.step(watch, outputs.representations, labels)
            values = values | seen
        return state.replace(probe=watch), values, outputs

    def measure(self, step, values, outputs):
        # On one device: a singular value decomposition cannot be split.
        first = [x.addressable_data(0) for x in self._gather(outputs[:2])]
        terms = {name: values[name] for name in self.method.weights}
        terms = {name: x.addressable_data(0) for name, x in terms.items()}
        found = self._statistics(*first, terms)
        if self._schedule:
            found["learning_rate"] = self._schedule(step - 1)
        return found

    def _all_statistics(self, representation, embedding, terms):
        outputs = representation, embedding
        return health.statistics(*outputs) | self.method.statistics(*outputs, terms)

    def judge(self, state, note):
        try:
            return self._neighbours(build.encoder_variables(state))
        except Refusal as error:  # training itself goes on without a file
            note(f"no k-NN accuracy at step {int(state.step)}: {error}")
            return {}

    def text(self, values):
        terms = ", ".join(f"{name} {values[name]:.3g}" for name in self.method.weights)
        return f"loss {values['loss']:.2f} = {terms}; std {values['embedding_std']:.2f}"

    def notes(self, step, values, first):
        # That of a skipped step lacks what was no number.
        first = first if "embedding_std" in first else values
        if step == 1:  # there is nothing to compare it with
            return []
        verdict = self.method.health(first, values, self.method.weights)
        changed, self._healthy = verdict.healthy != self._healthy, verdict.healthy
        if step not in (self.epoch, self.total) and not changed:
            return []
        word = "healthy" if verdict.healthy else "NOT healthy"
        return [f"health at step {step}: {word}: {verdict.reason}"]

    def explain(self, workdir: Path, state, batch, step):
        if jax.process_count() > 1:  # parts of the batch are elsewhere
            return ""
        batch, _ = batch
        if np.ndim(batch.parameters.flip) > 2:  # of several steps
            batch = jax.tree.map(lambda x: x[:, -1], batch)
        path = workdir / f"not_finite_{step}.npz"
        parameters = {k: np.asarray(v) for k, v in batch.parameters._asdict().items()}
        indices = self.plan(step - 1).indices
        images = np.asarray(batch.images)
        files.write_npz(path, {"indices": indices, "images": images, **parameters})
        views = self.views(batch)
        variables = state.params, state.others()
        try:
            where = f"first in {not_finite.explain(self.method, *variables, views)}"
        except (
            Exception
        ) as error:  # in a method of the user's own; that is not the news
            where = f"where is not known ({type(error).__name__}: {one_line(error)})"
        return f"; {where}; {path} has the batch"


def untrained(config: Config) -> Encoder:
    """Returns the encoder before the first step of a run."""
    method = build.method(config, None, None)
    init = build.initializer(method, optax.identity(), config)
    return build.trained(method, jax.jit(init)(), config, source="untrained")
