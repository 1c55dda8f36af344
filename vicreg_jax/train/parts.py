"""From a config to the parts of a run; refuses what cannot work before it compiles."""

import logging
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh

from vicreg_jax import models, optim, sharding
from vicreg_jax.config import Config
from vicreg_jax.data import pixels, plan, sources, views
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.state import TrainState


def mesh(config: Config) -> Mesh:
    """Returns the mesh of all devices, over which the batch can be divided."""
    backend = _backend()
    if jax.process_count() > 1:
        raise ValueError(
            f"a run is one process so far; jax.distributed has {jax.process_count()}"
        )
    if backend == "cpu" and jax.config.jax_platforms != "cpu":
        _refuse_idle_gpu()
    found = sharding.data_mesh()
    size, devices = config.data.batch_size, found.size
    if size % devices:
        below = size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise ValueError(
            f"config.data.batch_size {size} cannot be divided over {devices} devices;"
            f" use {near}"
        )
    return found


def _backend():
    """Starts jax, with what it says about devices in one line."""
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would announce the GPU that it does not use
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        wanted = jax.config.jax_platforms
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"jax cannot start JAX_PLATFORMS={wanted}: {reason}"
        ) from error
    finally:
        logger.setLevel(level)


def _refuse_idle_gpu():
    """Raises where there is an NVIDIA GPU and jax would train on the CPU instead."""
    if not shutil.which("nvidia-smi"):
        return
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return
    gpus = [line for line in listing.stdout.splitlines() if line.startswith("GPU")]
    if listing.returncode == 0 and gpus:
        raise ValueError(
            f"nvidia-smi sees {len(gpus)} GPU(s) and jax none; run: pip install"
            ' "vicreg_jax[cuda]", or set JAX_PLATFORMS=cpu to train on the CPU'
        )


def images(config: Config) -> np.ndarray | Encoded:
    """Returns the images of the training split."""
    return sources.load(config.data, seed=config.seed).train.images


def check_images(images: Any, config: Config) -> None:
    """Raises ValueError where the images are not what the config describes."""
    if isinstance(images, Encoded):
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


def check_model(module: models.JointEmbedding, config: Config) -> None:
    """Raises ValueError where an encoder of the user's own does not fit in."""
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


def policies(config: Config) -> list[views.Policy]:
    """Returns the augmentations of the first and the second view."""
    shared = asdict(config.augment)
    pairs = {name: shared.pop(name) for name in ("blur", "solarize")}
    return [
        views.Policy(**shared, **{name: pair[i] for name, pair in pairs.items()})
        for i in range(2)
    ]


def is_small(images: Any) -> bool:
    """Tells whether every device can hold all images: arrays of at most 1 GiB."""
    return isinstance(images, np.ndarray) and images.nbytes <= 2**30


def canvas(images: Any, config: Config) -> int:
    """Returns height and width of what encoded images are put on, uncropped, or 0.

    Decoding leaves the host more time if the accelerator does the resizing. Rotation
    and shear would show what surrounds a crop, so their images are cropped on the host.
    """
    resize, policy = config.data.resize, config.augment
    if resize == "auto":
        resize = "host" if jax.default_backend() == "cpu" else "device"
    encoded = isinstance(images, Encoded)
    if not encoded or resize == "host" or policy.rotation or policy.shear:
        return 0
    return images.canvas(config.data.image_size)


def batch(
    planner: plan.Planner,
    images: Any,
    config: Config,
    step: int,
    *,
    rows: slice,
    canvas: int = 0,
) -> tuple[np.ndarray, views.Parameters]:
    """Returns the host's part of a step: what to see, and augmentation parameters.

    That is the indices of images that the device holds, else images or crops of them.

    Args:
      rows: of the global batch, those that this host prepares. They do not depend on
        what other hosts do.
      canvas: see `Encoded.views`.
    """
    indices, uniforms = (x[rows] for x in planner(step))
    data = config.data
    if isinstance(images, Encoded):
        return images.views(
            indices,
            uniforms,
            policies(config),
            size=data.image_size,
            channels=len(data.mean),
            canvas=canvas,
        )
    held = is_small(images)
    chosen = indices.astype(np.int32) if held else images[indices]
    sizes = np.array((images if held else chosen).shape[1:3])
    return chosen, views.parameters(uniforms, sizes, policies(config))


def render(
    batch: tuple[Any, ...],
    *,
    config: Config,
    in_turn: bool = False,
    shape: tuple[int, ...] = (),
) -> tuple[jax.Array, ...]:
    """Returns the device's part: two normalized views of each image of a batch.

    Args:
      batch: (images, parameters), or (all images [n, h * w * c], indices, parameters).
      in_turn: see `pixels.recolour`.
      shape: [h, w, c] of the images, where all of them are given.
    """
    *given, parameters = batch
    if len(given) == 2:
        everything, indices = given
        images = everything[indices].reshape(len(indices), *shape)
    else:
        (images,) = given
    data = config.data
    result = []
    for i, policy in enumerate(policies(config)):
        view = jax.tree.map(lambda x, i=i: x[:, i], parameters)
        if images.ndim == 5:  # crops [b, v, size, size, c]
            pictures = pixels.render_crops(
                images[:, i], view, policy=policy, in_turn=in_turn
            )
        else:
            pictures = pixels.render(
                images, view, size=data.image_size, policy=policy, in_turn=in_turn
            )
        result.append(pixels.normalize(pictures, mean=data.mean, std=data.std))
    return tuple(result)
