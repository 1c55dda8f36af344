"""Training with labels: linear heads on a frozen encoder, or the whole network."""

import json
import math
import signal
from contextlib import ExitStack, nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vicreg_jax import devices, log, sharding, workdirs
from vicreg_jax.checkpoint import Checkpoints
from vicreg_jax.data import batches, plan, views
from vicreg_jax.data.feed import Feed
from vicreg_jax.evaluate import heads
from vicreg_jax.evaluate.features import checksum, stream
from vicreg_jax.evaluate.inputs import Inputs, held_out
from vicreg_jax.protocol import Protocol
from vicreg_jax.state import TrainState
from vicreg_jax.stop import Stop
from vicreg_jax.watchdog import Watchdog

LINES = 50  # steps between two lines of metrics


class Outcome(NamedTuple):
    """Per cent of right answers of each head, and which head was chosen."""

    test: np.ndarray  # [heads, 2], top-1 and top-5
    chosen: int  # by the images held out, or the only one
    held_out: np.ndarray | None  # [heads, 2]
    maximum: np.ndarray | None  # [2] over epochs, of the chosen head


def fit(
    protocol: Protocol,
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
      ValueError: before anything is written, what does not fit together.
      FloatingPointError: losses or gradients stay not finite.
    """
    config, head = found.config, protocol.head
    bank = heads.combinations(head)
    share = head.held_out if len(bank) > 1 else 0.0
    kept, aside = found.kept, found.kept[:0]
    if share:
        labels = np.asarray(found.train.labels)
        kept, aside = held_out(found.kept, labels, share, protocol.seed)
    images = found.train
    planner = _Chosen(kept, protocol, config)
    epoch = planner.steps_per_epoch
    total = protocol.epochs * epoch
    mesh = devices.mesh(config.data.batch_size)
    whole, split = sharding.whole(mesh), sharding.split(mesh)
    views_of = batches.Batches(images, config, mesh, views=1)
    model = Frozen if protocol.task == "linear" else Tuned
    model = model(protocol, encoder, found.classes, epoch)
    begin = jax.jit(partial(model.init, config=config), out_shardings=whole)
    shapes = jax.eval_shape(begin, variables)

    @partial(
        jax.jit,
        in_shardings=(whole, whole, *views_of.sharding, split),
        out_shardings=(whole, whole),
        donate_argnums=1,
    )
    def step_fn(variables, state, resident, batch, labels):
        view = views_of.render(resident, batch)[:, 0]
        return model.step(variables, state, view, labels)

    def make(step):
        rows = sharding.rows(config.data.batch_size)
        batch = views_of.make(planner, step, rows)
        indices = images.chosen(planner(step).indices[rows])
        return batch, np.asarray(images.labels[indices], np.int32)

    def judge(state, source, rows):
        """Returns per cent right, [heads, 2]."""
        with watchdog.paused():
            top = stream(
                model.predict,
                (variables, state.params, state.batch_stats),
                source,
                config.data,
                shorter_side=found.shorter_side,
                rows=rows,
                mesh=mesh,
            )
            labels = np.asarray(source.labels[rows])
            return accuracies(np.concatenate(list(top)), labels)

    lead, together = jax.process_index() == 0, jax.process_count() > 1
    if lead:
        workdirs.write_config(workdir, protocol)
    with ExitStack() as closing:
        stop = closing.enter_context(Stop(together=together))
        facts = {"examples": len(kept), "encoder": checksum(variables)}
        checkpoints = Checkpoints(workdir.absolute() / "checkpoints", facts=facts)
        closing.callback(checkpoints.close)
        start, state = checkpoints.restore(shapes) or (0, None)
        state = begin(variables) if state is None else state
        variables = sharding.replicate(variables, mesh)
        writer = log.Writer(workdir, step=start) if lead else log.Silent()
        bar = log.Bar(total=total, done=start) if lead else log.Silent()
        stuck = workdir / f"stuck_{jax.process_index()}.txt"
        watchdog = Watchdog(protocol.guard.stuck_seconds, stuck)
        closing.callback(watchdog.close)
        closing.callback(writer.close)
        closing.callback(bar.close)
        closing.callback(workdirs.list_broken, images, workdir, bar.note)
        if start:
            bar.note(f"continuing {workdir} at step {start} of {total}")
        elif len(aside):  # a file that cannot be read is found now, not at the end
            bar.say("reading the images held out")
            judge(state, found.train, aside)
        if checkpoints.note:
            bar.note(checkpoints.note)
        bar.say("compiling")
        feed = Feed(make, range(start, total), sharding=split)
        resident = views_of.resident()
        tested = np.arange(len(found.test))
        # Unfinished collectives of several virtual CPU devices wait for each other's
        # threads.
        one_by_one = mesh.size > 1 and jax.default_backend() == "cpu"
        behind = None
        for done, made in feed:
            step, first = done + 1, done == start
            with watchdog.paused() if first else nullcontext():
                state, values = step_fn(variables, state, resident, *made)
                if first or one_by_one:
                    jax.block_until_ready(values)
            if behind:  # the host stays one step ahead, not more
                _need_finite(behind, done, protocol.guard.skipped_steps)
            behind = values
            watchdog.beat()
            bar.step(step)
            # Read once: it may arrive between two readings.
            stopped = checkpoints.preempted(step) if together else stop.signal
            last = step % epoch == 0
            if step % LINES == 0 or last:
                _need_finite(values, step, protocol.guard.skipped_steps)
                values = {name: float(x) for name, x in values.items()}
                values["epoch"] = step / epoch
                if last and head.test_every_epoch:
                    top = judge(state, found.test, tested)
                    for i, (top1, top5) in enumerate(top):
                        values |= {f"test_top1_{i}": top1, f"test_top5_{i}": top5}
                if values.pop("skipped_in_a_row"):
                    bar.note(f"step {step}: loss or gradient not finite; skipped")
                writer.write(
                    step, {k: x for k, x in values.items() if math.isfinite(x)}
                )
                bar.show(step, values, f"cross-entropy {values['loss']:.4f}")
            if last or stopped:
                with watchdog.paused():
                    checkpoints.save(step, state)
            if stopped:
                with watchdog.paused():
                    checkpoints.wait()
                bar.note(f"stopped at step {step} of {total}; the same command goes on")
                stop.signal = stop.signal or signal.SIGTERM  # of another process
                return None  # which nobody sees: Stop raises what ends the process
        watchdog.close()
        chosen, valid = 0, None
        if len(aside):
            bar.say("choosing on the images held out")
            valid = judge(state, found.train, aside)
            chosen = int(np.argmax(valid[:, 0]))  # the first of equals
        bar.say("testing")
        test = judge(state, found.test, tested)
        maximum = _maximum(workdir, chosen) if head.test_every_epoch and lead else None
    return Outcome(test, chosen, valid, maximum)


def accuracies(top: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Returns per cent of labels [n] among the first and first five, [heads, 2].

    Args:
      top: predicted classes [n, heads, up to 5], the best first.
    """
    right = top.astype(np.int64) == labels[:, None, None]
    first, five = right[..., 0].mean(axis=0), right.any(axis=-1).mean(axis=0)
    return 100 * np.stack([first, five], axis=1)


def _need_finite(values, step, limit):
    """Raises where too many steps in a row were skipped."""
    if int(values["skipped_in_a_row"]) >= limit:
        raise FloatingPointError(
            f"loss or gradient not finite at step {step}, {limit} steps in a row; the"
            " last checkpoint is from before; lower config.head.rates or"
            " config.finetune.encoder_rate in another --workdir"
        )


class _Chosen:
    """Plans steps over some of the examples."""

    def __init__(self, kept, protocol, config):
        self._kept = kept
        self._planner = plan.Planner(
            seed=protocol.seed,
            examples=len(kept),
            batch_size=config.data.batch_size,
            views=1,
            numbers=views.NUMBERS,
        )
        self.steps_per_epoch = self._planner.steps_per_epoch

    def __call__(self, step):
        indices, uniforms = self._planner(step)
        return plan.Plan(self._kept[indices], uniforms)


class Frozen:
    """A bank of heads on an encoder that stays as it is."""

    def __init__(self, protocol, encoder, classes, epoch):
        self._protocol, self._encoder = protocol, encoder
        self._classes, self._epoch = classes, epoch

    def _features(self, variables, images):
        layers = self._protocol.head.layers
        return heads.features(self._encoder, variables, images, layers)

    def init(self, variables, *, config):
        head, size = self._protocol.head, config.data.image_size
        images = jnp.zeros((2, size, size, len(config.data.mean)))
        seen = jax.eval_shape(self._features, variables, images)
        params, stats = heads.init(
            jax.random.key(self._protocol.seed),
            {layer: x.shape[1] for layer, x in seen.items()},
            heads=len(head.rates) * len(head.weight_decay),
            classes=self._classes,
            norm=head.batch_norm,
        )
        momenta = jax.tree.map(jnp.zeros_like, params)
        return TrainState(jnp.zeros([], jnp.int32), params, stats, momenta)

    def step(self, variables, state, images, labels):
        head = self._protocol.head
        x = self._features(variables, images)

        def loss_fn(params):
            scores, stats = heads.logits(params, state.batch_stats, x, train=True)
            each = heads.losses(scores, labels)
            return jnp.sum(each), (each, stats)  # each head's gradient is its own

        grads, (each, stats) = jax.grad(loss_fn, has_aux=True)(state.params)
        rate = _factor(self._protocol, state.step, self._epoch)
        rates, decays = heads.per_head(state.params, head)
        updated = heads.sgd(
            state.params,
            state.opt_state,
            grads,
            rates=jax.tree.map(lambda r: rate * r, rates),
            decays=decays,
            momentum=head.momentum,
            nesterov=head.nesterov,
        )
        old = state.params, state.opt_state
        (params, momenta), good = heads.keep_finite(each, updated, old)
        good = {layer: jnp.any(fine) for layer, fine in good.items()}
        stats = {
            layer: jax.tree.map(partial(jnp.where, good[layer]), stats[layer], known)
            for layer, known in state.batch_stats.items()
        }
        some = jnp.any(jnp.stack(list(good.values())))
        new = state.after(some, params, stats, momenta)
        return new, {"loss": jnp.nanmin(each), "rate_factor": rate, **new.counts()}

    def predict(self, everything, images):
        variables, params, stats = everything
        x = self._features(variables, images)
        scores, _ = heads.logits(params, stats, x, train=False)
        return _top(scores)


class Tuned:
    """One head on an encoder that learns too."""

    def __init__(self, protocol, encoder, classes, epoch):
        self._protocol, self._encoder = protocol, encoder
        self._classes, self._epoch = classes, epoch

    def init(self, variables, *, config):
        size = config.data.image_size
        images = jnp.zeros((2, size, size, len(config.data.mean)))
        seen = jax.eval_shape(
            partial(self._encoder.apply, train=False), variables, images
        )
        key = jax.random.key(self._protocol.seed)
        widths = {"0": seen.shape[1]}
        options = dict(heads=1, classes=self._classes, norm=False)
        head, _ = heads.init(key, widths, **options)
        params = {"encoder": variables["params"], "head": head}
        momenta = jax.tree.map(jnp.zeros_like, params)
        stats = variables.get("batch_stats", {})
        return TrainState(jnp.zeros([], jnp.int32), params, stats, momenta)

    def step(self, variables, state, images, labels):
        del variables  # the state has its own
        head, encoder_rate = self._protocol.head, self._protocol.finetune.encoder_rate

        def loss_fn(params):
            y, new = self._encoder.apply(
                {"params": params["encoder"], "batch_stats": state.batch_stats},
                images,
                train=True,
                mutable=["batch_stats"],
            )
            x = {"0": y.astype(jnp.float32)}
            scores, _ = heads.logits(params["head"], {}, x, train=True)
            return heads.losses(scores, labels)[0], new.get("batch_stats", {})

        grad_fn = jax.value_and_grad(loss_fn, has_aux=True)
        (loss, stats), grads = grad_fn(state.params)
        rate = _factor(self._protocol, state.step, self._epoch)
        each = {"encoder": encoder_rate, "head": head.rates[0]}
        params, momenta = heads.sgd(
            state.params,
            state.opt_state,
            grads,
            rates={
                name: jax.tree.map(lambda _, r=each[name]: rate * r, tree)
                for name, tree in state.params.items()
            },
            decays=jax.tree.map(lambda _: head.weight_decay[0], state.params),
            momentum=head.momentum,
            nesterov=head.nesterov,
        )
        norms = jnp.stack([loss, optax.tree.norm(grads), optax.tree.norm(params)])
        good = jnp.all(jnp.isfinite(norms))
        new = state.after(good, params, stats, momenta)
        return new, {"loss": loss, "rate_factor": rate, **new.counts()}

    def predict(self, everything, images):
        _, params, stats = everything
        variables = {"params": params["encoder"], "batch_stats": stats}
        y = self._encoder.apply(variables, images, train=False)
        x = {"0": y.astype(jnp.float32)}
        scores, _ = heads.logits(params["head"], {}, x, train=False)
        return _top(scores)


def _factor(protocol, step, epoch):
    done = step // epoch
    return heads.factor(done, epochs=protocol.epochs, drops=protocol.head.drops)


def _top(scores):
    """Returns the best classes, [n, heads, up to 5]."""
    count = min(5, scores.shape[-1])
    return jnp.swapaxes(jax.lax.top_k(scores, count)[1], 0, 1)


def _maximum(workdir, chosen):
    """Returns the best top-1 of any epoch, and the best top-5, [2]."""
    lines = (workdir / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in lines]
    names = (f"test_top1_{chosen}", f"test_top5_{chosen}")
    return np.array([max(x[name] for x in lines if name in x) for name in names])
