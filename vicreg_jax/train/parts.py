"""From a config to the parts of a run; refuses what cannot work before it compiles."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vicreg_jax import models, optim
from vicreg_jax.config import Config
from vicreg_jax.data import batches, sources
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.state import TrainState
from vicreg_jax.weights import Encoder, part

AT_ONCE = 8  # steps of one dispatch


def examples(config: Config, source: Any) -> sources.Examples:
    """Returns the training split, or what the user gives instead."""
    if source is None:
        return sources.load(config.data, seed=config.seed).train
    if isinstance(source, sources.Examples):
        return source
    return sources.Examples(source, getattr(source, "labels", None))


def check_images(images: Any, config: Config) -> None:
    """Raises ValueError where the images are not what the config describes."""
    if isinstance(images, Encoded):
        images.broken_at_most = config.guard.broken_images
        images.check()
        return
    sample = images[np.arange(1)]
    shape, dtype = sample.shape, sample.dtype
    channels = len(config.data.mean)
    if len(shape) != 4 or shape[-1] != channels or dtype != np.uint8:
        raise ValueError(
            f"expected images of uint8 [n, h, w, {channels}], as config.data.mean has"
            f" {channels} channel(s); got {dtype} {(len(images), *shape[1:])}"
        )


def at_once(images: Any, config: Config) -> int:
    """Returns how many steps one dispatch takes: several where the host need not care.

    That is where the device holds the images; and on accelerators, as a CPU has nothing
    to gain and compiles twice.
    """
    if jax.default_backend() == "cpu" or config.evaluate.probe:
        return 1
    return AT_ONCE if batches.is_small(images) else 1


def spans(start: int, stop: int, *, most: int, ends: Sequence[int]) -> Iterator[range]:
    """Yields the steps from `start` to `stop` in spans of `most`, or of one.

    No span has a multiple of one of `ends` inside, only at its end, nor step 1. Where a
    span begins it depends on nothing before, so a continued run has the same ones.
    """
    while start < stop:
        last = min(stop, *(start + end - start % end for end in ends))
        whole = start > 0 and start + most <= last
        yield range(start, start + (most if whole else 1))
        start += most if whole else 1


def optimizer(
    config: Config, steps_per_epoch: int
) -> tuple[optax.Schedule, optax.GradientTransformation]:
    """Returns the learning rate and the optimizer of the config."""
    options = config.optimizer
    schedule = optim.warmup_cosine(
        base_lr=options.base_lr,
        batch_size=config.data.batch_size,
        epochs=config.epochs,
        steps_per_epoch=steps_per_epoch,
        warmup_epochs=options.warmup_epochs,
        warmup_start=options.warmup_start,
        end_scale=options.end_scale,
    )
    if options.name == "adamw":
        return schedule, optim.adamw(schedule, weight_decay=options.weight_decay)
    return schedule, optim.lars(
        schedule,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        trust_coefficient=options.trust_coefficient,
        clip=options.clip,
    )


def model(config: Config, encoder: nn.Module | None) -> models.JointEmbedding:
    """Returns the encoder, the config's or the one given, with its expander."""
    dtype = jnp.dtype(config.model.dtype)
    if encoder is None:
        encoder = models.create(**config.model.spec())
    expander = models.Expander(
        config.model.expander, bias=config.model.expander_bias, dtype=dtype
    )
    return models.JointEmbedding(encoder, expander)


def check_model(module: models.JointEmbedding, config: Config) -> int:
    """Returns f of the representations [n, f].

    Raises:
      ValueError: an encoder of the user's own does not fit in.
    """
    size, channels = config.data.image_size, len(config.data.mean)
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    key = jax.random.key(0)

    def representation(x):
        return module.init_with_output(key, x, train=False)[0][0]

    try:
        shape = jax.eval_shape(representation, images).shape
    except TypeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            "the encoder is called as encoder(images [n, h, w, c], train=bool); it"
            f" says: {reason}"
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise ValueError(
            f"the encoder must return [n, f]; for {images.shape} it returns {shape}"
        )
    return shape[1]


def initializer(
    model: nn.Module, tx: optax.GradientTransformation, config: Config
) -> Callable[[], TrainState]:
    """Returns a function of no arguments that makes the state of step 0."""
    size, channels = config.data.image_size, len(config.data.mean)

    def init():
        images = jnp.zeros((2, size, size, channels))
        variables = model.init(jax.random.key(config.seed), images, train=False)
        params = variables["params"]
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
        )

    return init


def encoder_variables(state: TrainState) -> dict[str, Any]:
    """Returns what `encoder.apply` takes."""
    return {
        "params": state.params.get("encoder", {}),
        "batch_stats": state.batch_stats.get("encoder", {}),
    }


def trained(
    module: models.JointEmbedding, state: TrainState, config: Config, *, source: str
) -> Encoder:
    """Returns the encoder of a state as those see it who use it."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Encoder(
        module.encoder,
        encoder_variables(state),
        mean=config.data.mean,
        std=config.data.std,
        image_size=config.data.image_size,
        expander=part(variables, "expander"),
        config=config,
        step=int(state.step),
        source=source,
    )
