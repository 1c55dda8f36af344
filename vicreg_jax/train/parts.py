"""From a config to the parts of a run; refuses what cannot work before it compiles."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax

from vicreg_jax import models, optim
from vicreg_jax.config import Config
from vicreg_jax.data.source import Source, as_source
from vicreg_jax.data.sources import load_splits
from vicreg_jax.state import TrainState

AT_ONCE = 8  # steps of one dispatch


def images(config: Config, given: Any) -> Source:
    """Returns the training images: the config's, or what the user gives instead."""
    if given is not None:
        return as_source(given)
    return load_splits(config.data, seed=config.seed).train


def at_once(config: Config, *, held: bool) -> int:
    """Returns how many steps one dispatch takes: several where the host need not care.

    That is where the devices hold the images; and on accelerators, as a CPU has nothing
    to gain and compiles twice.
    """
    if jax.default_backend() == "cpu" or config.evaluate.probe:
        return 1
    return AT_ONCE if held else 1


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
        encoder = models.create(
            config.model.encoder,
            width=config.model.width,
            stem=config.model.stem,
            zero_init_residual=config.model.zero_init_residual,
            dtype=dtype,
        )
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
