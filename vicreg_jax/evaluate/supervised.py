"""Training with labels: linear heads on a frozen encoder, or the whole network."""

from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vicreg_jax import devices, files
from vicreg_jax.config import Evaluation
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import heads
from vicreg_jax.evaluate.features import Whole, checksum, stream
from vicreg_jax.evaluate.inputs import Inputs, held_out
from vicreg_jax.run import json_lines
from vicreg_jax.run.session import Job, Session
from vicreg_jax.run.state import TrainState

__all__ = ["Frozen", "Outcome", "Supervised", "Tuned", "accuracies", "fit"]


class Outcome(NamedTuple):
    """Per cent of right answers of each head, and which head was chosen."""

    test: np.ndarray  # [heads, 2], top-1 and top-5
    chosen: int  # by the images held out, or the only one
    held_out: np.ndarray | None  # [heads, 2]
    maximum: np.ndarray | None  # [2] over epochs, of the chosen head, where known


def fit(
    config: Evaluation,
    workdir: Path,
    encoder: nn.Module,
    variables: Any,
    found: Inputs,
) -> Outcome:
    """Trains, or continues, and tests.

    The task "linear" trains a bank of heads on the frozen encoder in inference mode;
    "finetune" trains encoder and head, all in train mode. Of several processes each
    calls it alike; the first writes.

    Raises:
      Refusal: before anything is written, what does not fit together.
      Diverged: losses or gradients stay not finite.
    """
    job = Supervised(config, encoder, variables, found)
    with Session(job, workdir.absolute()) as session:
        job.place()
        if session.state is None:
            session.state = job.init()
            if len(job.aside):  # a file that cannot be read is found now, not later
                session.bar.say("reading the images held out")
                job.right(session.state, found.train, job.aside)
        state = session.train()
        session.watchdog.close()
        chosen, valid = 0, None
        if len(job.aside):
            session.bar.say("choosing on the images held out")
            valid = job.right(state, found.train, job.aside)
            chosen = int(np.argmax(valid[:, 0]))  # the first of equals
        session.bar.say("testing")
        test = job.right(state, found.test, job.tested)
        maximum = None
        if config.head.test_every_epoch and jax.process_index() == 0:
            maximum = _maximum(workdir, chosen, config.epochs)
    return Outcome(test, chosen, valid, maximum)


class Supervised(Job):
    """Training with labels, built from its config; refuses what cannot work.

    Args: those of `fit`: its config, encoder, variables and inputs.

    Attributes:
      aside: int [m], the training images that choose among a bank of heads.
      tested: int [t], the test images.
    """

    log_steps = 50
    cure = "lower config.head.rates or config.finetune.encoder_rate"

    def __init__(self, config, encoder, variables, found):
        head, data = config.head, found.config.data
        self.config, self._inputs, self._variables = config, found, variables
        self.images = found.train
        kept, self.aside = found.kept, found.kept[:0]
        if head.held_out and head.bank > 1:
            labels = np.asarray(found.train.labels)
            kept, self.aside = held_out(kept, labels, head.held_out, config.seed)
        self.tested = found.tested
        self._planner = _Chosen(kept, config.seed, data.batch_size)
        self.epoch = self._planner.steps_per_epoch
        self.checkpoint_steps = self.judge_steps = self.epoch
        self.total = config.epochs * self.epoch
        self.mesh = devices.mesh(data.batch_size)
        self._batches = batches.Batches(self.images, found.config, self.mesh)
        self._rows = sharding.rows(data.batch_size)
        self._make = self._batches.stream(self._planner, self._rows, stop=self.total)
        kind = Frozen if config.task == "linear" else Tuned
        network = self._network = kind(config, encoder, found.classes, self.epoch)
        whole, split = sharding.whole(self.mesh), sharding.split(self.mesh)
        begin = partial(network.init, config=found.config)
        self._init = jax.jit(begin, out_shardings=whole)
        self.like = jax.eval_shape(self._init, variables)
        self.facts = {
            "examples": len(kept),
            "encoder": checksum(variables),
            "data": found.fingerprint(),
        }
        self.size = (
            f"config.data.batch_size {data.batch_size} on {self.mesh.size} device(s)"
        )

        @partial(
            jax.jit,
            in_shardings=(whole, whole, *self._batches.sharding, split),
            out_shardings=(whole, whole),
            donate_argnums=1,
        )
        def step(variables, state, resident, batch, labels):
            view = self._batches.render(resident, batch)[:, 0]
            return network.step(variables, state, view, labels)

        self._step = step

    def place(self) -> None:
        """Gives every device the frozen variables; to be called once."""
        self._variables = sharding.replicate(self._variables, self.mesh)

    def init(self):
        return self._init(self._variables)

    def make(self, span):
        (step,) = span
        batch = self._make(step)
        indices = self.images.chosen(self._planner(step).indices[self._rows])
        return batch, np.asarray(self.images.labels[indices], np.int32)

    def step(self, state, batch, count):
        resident = self._batches.resident()
        return *self._step(self._variables, state, resident, *batch), ()

    def judge(self, state, note):
        if not self.config.head.test_every_epoch:
            return {}
        values = {}
        top = self.right(state, self._inputs.test, self.tested)
        for i, (top1, top5) in enumerate(top):
            values |= {f"test_top1_{i}": top1, f"test_top5_{i}": top5}
        return values

    def text(self, values):
        return f"cross-entropy {values['loss']:.4f}"

    def right(self, state, source, rows) -> np.ndarray:
        """Returns per cent answered right, [heads, 2]: top-1 and top-5."""
        found = self._inputs
        whole = Whole(source, found.config.data, rows, found.shorter_side)
        everything = self._variables, state.params, state.batch_stats
        top = stream(self._network.predict, everything, whole, mesh=self.mesh)
        return accuracies(np.concatenate(list(top)), np.asarray(source.labels[rows]))


def accuracies(top: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns per cent of labels [n] among the first and first five, [heads, 2].

    Args:
      top: predicted classes [n, heads, up to 5], the best first.
    """
    right = top.astype(np.int64) == labels[:, None, None]
    first, five = right[..., 0].mean(axis=0), right.any(axis=-1).mean(axis=0)
    return 100 * np.stack([first, five], axis=1)


class _Chosen:
    """Plans steps over some of the examples."""

    def __init__(self, kept, seed, batch_size):
        self._kept = kept
        self._planner = plan.Planner(
            seed=seed,
            examples=len(kept),
            batch_size=batch_size,
            views=1,
            numbers=draw.NUMBERS,
        )
        self.steps_per_epoch = self._planner.steps_per_epoch

    def __call__(self, step):
        indices, uniforms = self._planner(step)
        return plan.Plan(self._kept[indices], uniforms)


class _Network:
    """What learns: its first state, a step of it, and what it predicts."""

    def __init__(
        self, config: Evaluation, encoder: nn.Module, classes: int, epoch: int
    ):
        self._config, self._encoder = config, encoder
        self._classes, self._epoch = classes, epoch

    def _heads(self, see, variables, data, *, norm):
        """Returns parameters and statistics of heads on what `see` returns."""
        head = self._config.head
        images = jnp.zeros((2, data.image_size, data.image_size, len(data.mean)))
        return heads.init(
            jax.random.key(self._config.seed),
            {k: x.shape[1] for k, x in jax.eval_shape(see, variables, images).items()},
            heads=len(head.rates) * len(head.weight_decay),
            classes=self._classes,
            norm=norm,
        )

    def _sgd(self, state, grads, rates, decays):
        """Returns the rates' factor, and parameters and momenta after a step."""
        head, epochs = self._config.head, self._config.epochs
        factor = heads.factor(
            state.step // self._epoch, epochs=epochs, drops=head.drops
        )
        return factor, heads.sgd(
            state.params,
            state.opt_state,
            grads,
            rates=jax.tree.map(lambda r: factor * r, rates),
            decays=decays,
            momentum=head.momentum,
            nesterov=head.nesterov,
        )


class Frozen(_Network):
    """A bank of heads on an encoder that stays as it is."""

    def _features(self, variables, images):
        layers = self._config.head.layers
        return heads.features(self._encoder, variables, images, layers)

    def init(self, variables, *, config):
        norm = self._config.head.batch_norm
        params, stats = self._heads(self._features, variables, config.data, norm=norm)
        return _first(params, stats)

    def step(self, variables, state, images, labels):
        x = self._features(variables, images)

        def loss_fn(params):
            scores, stats = heads.logits(params, state.batch_stats, x, train=True)
            each = heads.losses(scores, labels)
            return jnp.sum(each), (each, stats)  # each head's gradient is its own

        grads, (each, stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        settings = heads.per_head(state.params, self._config.head)
        factor, updated = self._sgd(state, grads, *settings)
        old = state.params, state.opt_state
        (params, momenta), good = heads.keep_finite(each, updated, old)
        good = {layer: jnp.any(fine) for layer, fine in good.items()}
        stats = {
            layer: jax.tree.map(partial(jnp.where, good[layer]), stats[layer], known)
            for layer, known in state.batch_stats.items()
        }
        some = jnp.any(jnp.stack(list(good.values())))
        new = state.after(some, params, stats, momenta)
        return new, {"loss": jnp.nanmin(each), "rate_factor": factor, **new.counts()}

    def predict(self, everything, images):
        variables, params, stats = everything
        x = self._features(variables, images)
        return _top(heads.logits(params, stats, x, train=False)[0])


class Tuned(_Network):
    """One head on an encoder that learns too."""

    def _features(self, variables, images):
        y = self._encoder.apply(variables, images, train=False)
        return {"0": y.astype(jnp.float32)}

    def init(self, variables, *, config):
        head, _ = self._heads(self._features, variables, config.data, norm=False)
        params = {"encoder": variables["params"], "head": head}
        return _first(params, variables.get("batch_stats", {}))

    def step(self, variables, state, images, labels):
        del variables  # the state has its own
        head, encoder_rate = self._config.head, self._config.finetune.encoder_rate

        def loss_fn(params):
            own = {"params": params["encoder"], "batch_stats": state.batch_stats}
            y, new = self._encoder.apply(
                own, images, train=True, mutable=["batch_stats"]
            )
            x = {"0": y.astype(jnp.float32)}
            scores, _ = heads.logits(params["head"], {}, x, train=True)
            return heads.losses(scores, labels)[0], new.get("batch_stats", {})

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, stats), grads = grad_fn(state.params)
        rates = {"encoder": encoder_rate, "head": head.rates[0]}
        rates = {k: jax.tree.map(lambda _, r=r: r, grads[k]) for k, r in rates.items()}
        decays = jax.tree.map(lambda _: head.weight_decay[0], grads)
        factor, (params, momenta) = self._sgd(state, grads, rates, decays)
        norms = jnp.stack([loss, optax.tree.norm(grads), optax.tree.norm(params)])
        good = jnp.all(jnp.isfinite(norms))
        new = state.after(good, params, stats, momenta)
        return new, {"loss": loss, "rate_factor": factor, **new.counts()}

    def predict(self, everything, images):
        _, params, stats = everything
        variables = {"params": params["encoder"], "batch_stats": stats}
        x = self._features(variables, images)
        return _top(heads.logits(params["head"], {}, x, train=False)[0])


def _first(params, stats):
    momenta = jax.tree.map(jnp.zeros_like, params)
    return TrainState(jnp.zeros([], jnp.int32), params, stats, momenta)


def _top(scores):
    """Returns the best classes, [n, heads, up to 5]."""
    count = min(5, scores.shape[-1])
    return jnp.swapaxes(jax.lax.top_k(scores, count)[1], 0, 1)


def _maximum(workdir, chosen, epochs):
    """Returns the best top-1 of all epochs, and the best top-5, [2].

    None where some lines of the record are damaged.
    """
    names = (f"test_top1_{chosen}", f"test_top5_{chosen}")

    def has_both(line):
        return all(files.is_number(line.get(name)) for name in names)

    lines, _ = json_lines.read(workdir / "metrics.jsonl", has_both)
    if len(lines) < epochs:
        return None
    return np.array([max(line[name] for line in lines) for name in names])
