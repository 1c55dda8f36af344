"""From a config to the parts of a run; refuses what cannot work before it compiles."""

import functools
import inspect
import math
from collections.abc import Callable
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import optax
from flax.errors import FlaxError

from vicreg_jax import methods, models, optim
from vicreg_jax.config import Config
from vicreg_jax.data import held_out, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.batches import views_like
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.source import Source, Splits, as_source
from vicreg_jax.data.sources.huggingface import is_dataset, of_dataset
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.data.streams import Stream, is_stream
from vicreg_jax.methods import Method
from vicreg_jax.refusals import Refusal, one_line
from vicreg_jax.run.state import TrainState
from vicreg_jax.train import start
from vicreg_jax.weights import Encoder
from vicreg_jax.weights.contents import part

__all__ = [
    "check_encoder",
    "check_loss",
    "check_microbatches",
    "encoder_variables",
    "images",
    "initializer",
    "method",
    "names",
    "optimizer",
    "planner",
    "trained",
]


def images(config: Config, given: Any, cache: IndexCache | None = None) -> Splits:
    """Returns the training images: the config's, or what the user gives instead.

    With config.data.held_out the test split is what was held out of them.
    """
    if given is None:
        return load_splits(config.data, seed=config.seed, cache=cache)
    if is_stream(given):
        folder = cache and cache.folder
        source = Stream(given, examples=config.data.examples, folder=folder)
    elif is_dataset(given):
        source = of_dataset(given)
    else:
        source = as_source(given)
    share = config.data.held_out
    return held_out.split(source, share, config.seed) if share else Splits(source, None)


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
    tx = _optimizer(options, schedule)
    if options.layer_decay < 1:
        tx = optim.layerwise(tx, "encoder", decay=options.layer_decay)
    if options.encoder_scale == 1 and not options.frozen_epochs:
        return schedule, tx
    frozen = math.ceil(options.frozen_epochs * steps_per_epoch)
    scale = options.encoder_scale
    return schedule, optim.slowed(tx, "encoder", scale=scale, frozen=frozen)


def _optimizer(options, schedule):
    if options.name == "adamw":
        return optim.adamw(schedule, weight_decay=options.weight_decay)
    if options.name == "sgd":
        return optim.sgd(
            schedule, weight_decay=options.weight_decay, momentum=options.momentum
        )
    return optim.lars(
        schedule,
        weight_decay=options.weight_decay,
        momentum=options.momentum,
        trust_coefficient=options.trust_coefficient,
        clip=options.clip,
    )


def method(
    config: Config, encoder: nn.Module | None, made: Callable[..., Method] | None
) -> Method:
    """Returns the method on its encoder and expander, the config's or those given.

    Args:
      encoder: instead of config.model.encoder.
      made: instead of config.method: (encoder, expander, weights) -> method.

    Raises:
      Refusal: what is given is no encoder, or makes no method.
    """
    dtype = jnp.dtype(config.model.dtype)
    if encoder is None:
        encoder = models.create(**config.model.spec())
    if not isinstance(encoder, nn.Module):
        raise Refusal(
            f"encoder={encoder!r} is no Linen module; give an object such as"
            " models.create('resnet18'), or a name as config.model.encoder"
        )
    parts = encoder, models.Expander(**config.model.head(), dtype=dtype), config.loss
    options = {"predictor": _predictor(config)} if config.model.predictor else {}
    options |= {} if config.stop_gradient else {"stop_gradient": False}
    if config.model.second_encoder:
        options["second"] = _second(config)
    options |= {"frozen_norm": True} if config.model.frozen_norm else {}
    microbatches = config.model.microbatches
    options |= {"microbatches": microbatches} if microbatches > 1 else {}
    made = made or methods.named(config.method)
    found = made(*parts, **options) if _takes(made, parts, options) else None
    if not isinstance(found, Method):
        raise Refusal(
            f"method={made!r} makes no method; expected a subclass of methods.Method,"
            " or a function (encoder, expander, weights) that returns such an object,"
            " or a name as config.method"
        )
    return found


def check_microbatches(config: Config, devices: int) -> None:
    """Raises Refusal where a device's rows cannot be divided into microbatches."""
    parts, rows = config.model.microbatches, config.data.batch_size // devices
    if rows % parts:
        near = max(x for x in range(1, parts) if rows % x == 0)
        raise Refusal(
            f"config.model.microbatches ({parts}) must divide the {rows} images of a"
            f" device; use {near}, or another config.data.batch_size"
        )


def _second(config):
    """Returns encoder and expander of the second branch."""
    model, dtype = config.model, jnp.dtype(config.model.dtype)
    head = model.head() | {"widths": model.second_expander or model.expander}
    encoder = models.create(**model.spec() | {"name": model.second_encoder})
    return encoder, models.Expander(**head, dtype=dtype)


def _predictor(config):
    return models.Expander(
        (*config.model.predictor, config.model.expander[-1]),
        bias=True,
        hidden_norm=config.model.expander_norm,
        dtype=jnp.dtype(config.model.dtype),
    )


def _takes(function, arguments, options):
    try:
        inspect.signature(function).bind(*arguments, **options)
    except TypeError:  # no function, or of other arguments
        return False
    return True


def check_loss(method: Method, state: TrainState, config: Config) -> None:
    """Raises Refusal where the terms of a method are not what a step can add up.

    Args:
      state: shapes suffice.
    """
    views = views_like(config, config.data.batch_size)
    objective = functools.partial(method.objective, key=jax.random.key(0))
    jax.eval_shape(objective, state.params, state.others(), views)


def names(method: Method, given: Callable[..., Method] | None) -> dict[str, Any]:
    """Returns what a config says of its method: its name, and the weights in full."""
    name = {"method": type(method).__name__} if given else {}
    return {"loss": dict(method.weights), **name}


def check_encoder(method: Method, config: Config) -> int:
    """Returns f of the representations [n, f].

    Raises:
      Refusal: an encoder of the user's own does not fit in.
    """
    size, channels = config.data.image_size, len(config.data.mean)
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    key = jax.random.key(0)

    def representation(x):
        return method.encoder.init_with_output(key, x, train=False)[0]

    try:
        shape = jax.eval_shape(representation, images).shape
    except TypeError as error:
        raise Refusal(
            "the encoder is called as encoder(images [n, h, w, c], train=bool); it"
            f" says: {one_line(error, 200)}"
        ) from error
    if len(shape) != 2 or shape[0] != 2:
        raise Refusal(
            f"the encoder must return [n, f]; for {images.shape} it returns {shape}"
        )
    if config.data.local_views:
        _check_local(method.encoder, config)
    return shape[1]


def _check_local(encoder, config):
    """Raises Refusal where the local views are no images of an encoder."""
    data, key = config.data, jax.random.key(0)
    images = [
        jnp.zeros((2, x, x, len(data.mean))) for x in (data.sizes[0], data.sizes[-1])
    ]

    def see(large, small):
        variables = encoder.init(key, large, train=False)
        return encoder.apply(variables, small, train=False)

    try:
        jax.eval_shape(see, *images)
    except (FlaxError, TypeError, ValueError) as error:
        raise Refusal(
            f"the encoder sees images of {data.sizes[0]} pixels and no local views of"
            f" {data.sizes[-1]}; set config.data.local_views to 0. It says:"
            f" {one_line(error, 200)}"
        ) from error


def planner(config: Config, source: Source) -> plan.Planner | plan.InOrder:
    """Returns the plan of a run over these images."""
    kind = plan.InOrder if source.in_order else plan.Planner
    return kind(
        seed=config.seed,
        examples=len(source),
        batch_size=config.data.batch_size,
        views=config.data.views,
        local_views=config.data.local_views,
        numbers=draw.NUMBERS,
    )


def initializer(
    method: Method, tx: optax.GradientTransformation, config: Config
) -> Callable[..., TrainState]:
    """Returns a function (parts to start from, by default none) -> state of step 0."""
    size, channels = config.data.image_size, len(config.data.mean)
    shape = (2, config.data.views, size, size, channels)

    def init(parts=None):
        variables = method.init(jax.random.key(config.seed), jnp.zeros(shape))
        variables = start.placed(variables, parts) if parts else variables
        params = variables["params"]
        return TrainState(
            step=jnp.zeros([], jnp.int32),
            params=params,
            batch_stats=variables.get("batch_stats", {}),
            opt_state=tx.init(params),
            target=variables.get("target", ()),
        )

    return init


def encoder_variables(state: TrainState) -> dict[str, Any]:
    """Returns what `encoder.apply` takes."""
    return {
        "params": state.params.get("encoder", {}),
        "batch_stats": state.batch_stats.get("encoder", {}),
    }


def trained(
    method: Method, state: TrainState, config: Config, *, source: str
) -> Encoder:
    """Returns the encoder of a state as those see it who use it."""
    variables = {"params": state.params, "batch_stats": state.batch_stats}
    return Encoder(
        method.encoder,
        encoder_variables(state),
        mean=config.data.mean,
        std=config.data.std,
        image_size=config.data.image_size,
        expander=part(variables, "expander"),
        config=config,
        step=int(state.step),
        source=source,
    )
