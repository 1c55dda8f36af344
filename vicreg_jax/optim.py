"""Optimizers and schedules of the published recipes, composed from optax."""

import re
from collections.abc import Iterable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from vicreg_jax.refusals import Refusal

__all__ = [
    "adamw",
    "lars",
    "layerwise",
    "matrices",
    "rising",
    "sgd",
    "slowed",
    "warmup_cosine",
]

TOKENS = ("cls_token", "pos_embed")  # parameters of a ViT
# Names of what is in an encoder: stage (if it has them) and number of a block; what
# leads to a stage of a ConvNeXt, like its first block; what comes after all blocks.
BLOCK = re.compile(r"(?:stages_(\d+)_)?blocks_(\d+)|layer(\d+)_(\d+)")
BETWEEN = re.compile(r"stages_(\d+)_downsample_\d")
LAST = ("norm", "fc_norm", "head_norm")


def lars(
    learning_rate: optax.ScalarOrSchedule,
    *,
    weight_decay: float,
    momentum: float = 0.9,
    trust_coefficient: float = 1e-3,
    clip: bool = False,
) -> optax.GradientTransformation:
    """Returns LARS as VICReg, Barlow Twins and BYOL use it.

    Weight decay is added to the gradient, the sum is scaled by the trust ratio
    trust_coefficient * |p| / |g + weight_decay * p|, then come momentum and, last, the
    learning rate. `optax.lars` applies the rate before the momentum, which is another
    optimizer wherever the rate changes. Tensors of one dimension (biases, BatchNorm)
    get neither decay nor trust ratio, see `matrices`; the ratio is 1 where either norm
    is zero.

    Args:
      learning_rate: float, or a schedule of the step.
      weight_decay, momentum, trust_coefficient: as above.
      clip: the variant of the CIFAR recipes (LARC; solo-learn): the ratio is
        trust_coefficient * |p| / (|g| + weight_decay * |p|), and where it exceeds the
        learning rate the update is scaled by 1 instead of ratio / rate, so that the
        rate becomes an upper bound of the local one.

    Source: arXiv:1708.03888; facebookresearch/vicreg main_vicreg.py; for `clip`
    NVIDIA Apex LARC and solo-learn's LARS (with clip_lr).

    Example:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> tx = lars(0.1, weight_decay=1e-6)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(*(f"{updates[name].max():.4f}" for name in ("kernel", "bias")))
      -0.0001 -0.1000
    """
    if clip:
        scale = _larc(learning_rate, weight_decay, trust_coefficient)
        steps = [optax.masked(scale, matrices)]
    else:
        ratio = optax.scale_by_trust_ratio(trust_coefficient=trust_coefficient)
        steps = [
            optax.add_decayed_weights(weight_decay, mask=matrices),
            optax.masked(ratio, matrices),
        ]
    return optax.chain(
        *steps, optax.trace(momentum), optax.scale_by_learning_rate(learning_rate)
    )


def adamw(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float
) -> optax.GradientTransformation:
    """Returns optax's AdamW; only `matrices` get weight decay.

    Example:
      >>> params = {"kernel": jnp.ones((2, 2)), "bias": jnp.ones(2)}
      >>> zeros = {"kernel": jnp.zeros((2, 2)), "bias": jnp.zeros(2)}
      >>> tx = adamw(0.1, weight_decay=0.5)
      >>> with jax.numpy_dtype_promotion("standard"):  # optax counts in integers
      ...     updates, state = tx.update(zeros, tx.init(params), params)
      >>> print(*(f"{updates[name].max():.4f}" for name in ("kernel", "bias")))
      -0.0500 -0.0000
    """
    return optax.adamw(learning_rate, weight_decay=weight_decay, mask=matrices)


def sgd(
    learning_rate: optax.ScalarOrSchedule, *, weight_decay: float, momentum: float = 0.9
) -> optax.GradientTransformation:
    """Returns PyTorch's SGD: weight decay of all tensors, momentum, learning rate.

    Example:
      >>> params, tx = jnp.ones(2), sgd(0.1, weight_decay=0.5)
      >>> updates, state = tx.update(jnp.zeros(2), tx.init(params), params)
      >>> print(updates)
      [-0.05 -0.05]
    """
    return optax.chain(
        optax.add_decayed_weights(weight_decay),
        optax.trace(momentum),
        optax.scale_by_learning_rate(learning_rate),
    )


def slowed(
    tx: optax.GradientTransformation, part: str, *, scale: float, frozen: int = 0
) -> optax.GradientTransformation:
    """Returns `tx` with smaller updates of one part of the parameters.

    Args:
      part: its name in the mapping of parameters, such as "encoder".
      scale: factor on its updates, so on its learning rate.
      frozen: steps, from the first on, in which it does not move.

    Example:
      >>> params = {"encoder": jnp.ones(1), "expander": jnp.ones(1)}
      >>> tx = slowed(optax.sgd(1.0), "encoder", scale=0.5)
      >>> updates, state = tx.update(params, tx.init(params), params)
      >>> print(updates["encoder"], updates["expander"])
      [-0.5] [-1.]
    """

    def factor(step):
        return jnp.where(step < frozen, 0.0, scale)

    def of_part(params):
        own = {name: name == part for name in params}
        return {
            name: jax.tree.map(lambda _, x=x: x, params[name])
            for name, x in own.items()
        }

    return optax.chain(tx, optax.masked(optax.scale_by_schedule(factor), of_part))


def layerwise(
    tx: optax.GradientTransformation, part: str, *, decay: float
) -> optax.GradientTransformation:
    """Returns `tx` with updates of one part that shrink towards its input.

    The learning rate of a block is decay times that of the block above it. The last
    block has decay times the rate of what follows it (a ViT's last norm, the expander),
    the first layer decay times that of the first block.

    Args:
      part: its name in the mapping of parameters: a ResNet, ViT or ConvNeXt.
      decay: in (0, 1].

    Raises:
      Refusal: by `init`, if the part has no blocks of such names.

    Source: arXiv:2106.08254; a group of timm's for each block.
    """

    def update(updates, state, params=None):
        above = _above(updates[part])
        scaled = {
            name: jax.tree.map(lambda x, by=decay ** above[name]: x * by, tree)
            for name, tree in updates[part].items()
        }
        return {**updates, part: scaled}, state

    def init(params):
        _above(params.get(part, ()))  # encoders without parameters have no part
        return optax.EmptyState()

    return optax.chain(tx, optax.GradientTransformation(init, update))


def _above(names: Iterable[str]) -> dict[str, int]:
    """Returns how many layers lie above each, with one for all that follows blocks."""
    places = {}
    for name in names:
        if found := BLOCK.fullmatch(name):
            places[name] = tuple(int(x) for x in found.groups() if x)
        elif found := BETWEEN.fullmatch(name):
            places[name] = int(found[1]), 0
    order = sorted(set(places.values()))
    if not order:
        listed = ", ".join(sorted(names)) or "no layers"
        raise Refusal(
            f"an encoder of {listed} has no blocks that layer-wise decay knows; give"
            " a ResNet, ViT or ConvNeXt, or no optimizer.layer_decay"
        )
    first = len(order) + 1
    above = {name: len(order) - order.index(place) for name, place in places.items()}
    return {x: 0 if x in LAST else above.get(x, first) for x in names}


def rising(start: float, steps: int) -> optax.Schedule:
    """Returns a schedule from `start` at step 0 to 1 at step `steps`, along a cosine.

    Source: arXiv:2006.07733, sec. 3.2, for the momentum of BYOL's target.

    Example:
      >>> share = rising(0.9, 10)
      >>> print(*(f"{share(step):.3f}" for step in (0, 5, 10)))
      0.900 0.950 1.000
    """
    falling = optax.cosine_decay_schedule(1 - start, steps)
    return lambda step: 1 - falling(jnp.asarray(step, jnp.float32))


def matrices(params: optax.Params) -> optax.Params:
    """Returns a tree of booleans: true where a tensor has more than one dimension.

    False of the class token and the position embeddings of a ViT, which are decayed no
    more than biases.
    """

    def one(path, p):
        return p.ndim > 1 and not (path and getattr(path[-1], "key", "") in TOKENS)

    return jax.tree_util.tree_map_with_path(one, params)


def warmup_cosine(
    *,
    base_lr: float,
    batch_size: int,
    epochs: float,
    steps_per_epoch: int,
    warmup_epochs: float = 10,
    warmup_start: float = 0.0,
    end_scale: float = 1e-3,
) -> optax.Schedule:
    """Returns the published schedule: a linear warm-up, then half a cosine.

    The peak is base_lr * batch_size / 256, the end end_scale times the peak. (The
    paper's text prints an end of 0.002; the authors' code has 0.001 of the peak, 0.0016
    at batch 2048, which we follow.)

    Args:
      base_lr: learning rate for a batch of 256.
      batch_size: global batch.
      epochs, warmup_epochs: in epochs of steps_per_epoch steps each.
      warmup_start: learning rate of the first step; the authors' is zero.

    Raises:
      ValueError: the warm-up is not shorter than the run, or starts above the peak.

    Source: arXiv:2105.04906, sec. 4.2; facebookresearch/vicreg adjust_learning_rate.

    Example:
      >>> schedule = warmup_cosine(
      ...     base_lr=0.2, batch_size=2048, epochs=100, steps_per_epoch=625
      ... )
      >>> print(*(f"{schedule(625 * epoch):.4f}" for epoch in (0, 5, 10, 55, 100)))
      0.0000 0.8000 1.6000 0.8008 0.0016
    """
    peak = base_lr * batch_size / 256
    warmup, total = warmup_epochs * steps_per_epoch, epochs * steps_per_epoch
    if steps_per_epoch < 1 or batch_size < 1:
        raise ValueError(
            "steps_per_epoch and batch_size are at least 1; got"
            f" {steps_per_epoch} and {batch_size}"
        )
    if not 0 <= warmup < total:
        raise ValueError(
            f"the warm-up must be shorter than the run; got {warmup_epochs} of"
            f" {epochs} epochs"
        )
    if not 0 <= warmup_start <= peak:
        raise ValueError(
            f"the warm-up must start between 0 and the peak, {peak:g}; warmup_start is"
            f" {warmup_start:g}"
        )
    schedule = optax.warmup_cosine_decay_schedule(
        warmup_start, peak, warmup, total, end_scale * peak
    )
    # Strict promotion lets no integer count meet a float.
    return lambda step: schedule(jnp.asarray(step).astype(float))


class _LarcState(NamedTuple):
    step: jax.Array  # int32 []


def _larc(learning_rate, weight_decay, trust_coefficient):
    """Adds weight decay and scales each update by min(trust ratio / rate, 1)."""

    def init(params):
        del params
        return _LarcState(jnp.zeros([], jnp.int32))

    def update(grads, state, params=None):
        if params is None:
            raise ValueError("LARS needs them: update(grads, state, params)")
        rate = learning_rate(state.step) if callable(learning_rate) else learning_rate

        def one(g, p):
            g_norm, p_norm = jnp.linalg.norm(g), jnp.linalg.norm(p)
            ratio = trust_coefficient * p_norm / (g_norm + weight_decay * p_norm + 1e-8)
            # Dividing by the larger keeps the first step of a warm-up, rate 0, finite.
            local = ratio / jnp.maximum(jnp.asarray(rate, g.dtype), ratio)
            usable = (g_norm > 0) & (p_norm > 0)
            return jnp.where(usable, local * (g + weight_decay * p), g)

        return jax.tree.map(one, grads, params), _LarcState(state.step + 1)

    return optax.GradientTransformation(init, update)
