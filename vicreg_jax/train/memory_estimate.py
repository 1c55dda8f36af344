"""How much memory a step needs on a device: an estimate before anything compiles."""

import os
from functools import partial
from typing import NamedTuple

import jax
import numpy as np
from jax.extend.core import jaxprs_in_params

from vicreg_jax.config import Config
from vicreg_jax.data.batches import views_like
from vicreg_jax.devices import found
from vicreg_jax.methods import Method
from vicreg_jax.refusals import Refusal
from vicreg_jax.run.state import TrainState

__all__ = ["Need", "check", "estimate", "limit"]


class Need(NamedTuple):
    """Bytes on each device, and in words what they are for."""

    least: float
    likely: float
    words: str


def estimate(
    method: Method,
    state: TrainState,
    config: Config,
    devices: int,
    *,
    canvas: int = 0,
) -> Need:
    """Returns what a step needs: state, gradients and activations of all views.

    The backward pass needs the result of every convolution and matrix product, or what
    was normalized from it; usually both are kept. (In float32, compiled for a CPU,
    temporary memory is 1.8 to 2.8 times those results, besides the gradients.)

    Args:
      method: what is trained.
      state: shapes suffice, perhaps with shardings that divide it.
      devices: over which the batch is divided.
      canvas: height and width of images that are yet to be cropped, or 0.
    """
    rows = config.data.batch_size // devices
    views = views_like(config, rows)
    variables = {"params": state.params, **state.others()}
    forward = partial(method.forward, key=jax.random.key(0))
    products = _products(jax.make_jaxpr(forward)(variables, views).jaxpr)
    parts = config.model.microbatches
    if parts > 1:  # of the encoder nothing is kept but a part
        part = views_like(config, rows // parts)
        alone = method.module.clone(microbatches=1)
        encode = partial(
            alone.apply, train=True, mutable=["batch_stats"], method="encode"
        )
        products += _products(jax.make_jaxpr(encode)(variables, part).jaxpr)
    held, gradients = _own(state), _own(state.params)
    views = _bytes(views) + rows * canvas**2 * len(config.data.mean)
    fixed = held + gradients
    words = (
        f"config.data.batch_size {config.data.batch_size} and config.model.expander"
        f" {config.model.expander} on {devices} device(s): {fixed / 1e9:.1f} GB of"
        " parameters, gradients and optimizer, and"
        f" {(products + views) / 1e9:.1f} to {(2 * products + views) / 1e9:.1f} GB of"
        f" activations of {rows} images on each"
    )
    least = held + views + products
    return Need(least, least + gradients + products, words)


def check(need: Need, limit: float | None) -> str:
    """Returns a warning where the memory of a device may not suffice, else "".

    Args:
      limit: bytes of a device, None where that is not known.

    Raises:
      Refusal: it cannot suffice.
    """
    if limit is None or need.likely <= limit:
        return ""
    advice = (
        f"{need.words}; a device has {limit / 1e9:.1f} GB. Raise model.microbatches,"
        " lower data.batch_size, take a narrower model.expander or encoder, or more"
        " devices"
    )
    if need.least > limit:
        raise Refusal(f"out of memory before it begins: {advice}")
    return f"memory may not suffice: {advice}"


def limit() -> float | None:
    """Returns the bytes of one device, None where that is not known."""
    stats = found.memory_stats()
    if "bytes_limit" in stats:
        return stats["bytes_limit"]
    platform = jax.local_devices()[0].platform
    if platform != "cpu" or "SC_PHYS_PAGES" not in os.sysconf_names:
        return None
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return memory / jax.local_device_count()  # the devices of a CPU share it


def _bytes(tree):
    leaves = jax.tree.leaves(tree)
    return sum(np.prod(x.shape, dtype=float) * x.dtype.itemsize for x in leaves)


def _own(tree):
    """Returns the bytes of a tree on each device, as its shardings divide it."""

    def one(x):
        place = getattr(x, "sharding", None)
        shape = place.shard_shape(x.shape) if place else x.shape
        return np.prod(shape, dtype=float) * x.dtype.itemsize

    return sum(map(one, jax.tree.leaves(tree)))


def _products(jaxpr):
    """Returns the bytes of all results of convolutions and matrix products."""
    total = 0.0
    for equation in jaxpr.eqns:
        name, params = equation.primitive.name, equation.params
        if name in ("conv_general_dilated", "dot_general"):
            total += _bytes([v.aval for v in equation.outvars])
        if name != "remat2":  # computes its inside once more, to keep nothing of it
            inner = sum(_products(x) for x in jaxprs_in_params(params))
            total += inner * (params["length"] if name == "scan" else 1)
    return total
