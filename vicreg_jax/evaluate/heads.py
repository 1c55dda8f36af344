"""Banks of linear classifiers on frozen features, trained at once; no data, no files.

The heads of a bank see the same features and their gradients do not meet, so that one
pass of the encoder serves all learning rates, weight decays and layers.
"""

import itertools
from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax

from vicreg_jax.config.evaluation import Head
from vicreg_jax.data.labels import NO_LABEL
from vicreg_jax.refusals import Refusal

__all__ = [
    "combinations",
    "factor",
    "features",
    "init",
    "keep_finite",
    "logits",
    "losses",
    "per_head",
    "sgd",
]

EPS, DECAY = 1e-5, 0.9  # of BatchNorm, as in PyTorch


def combinations(head: Head) -> list[tuple[int, float, float]]:
    """Returns (layer, rate, weight decay) of each head, in the order of the logits.

    Layers come as the keys of a tree do, whatever their order in `head`.
    """
    layers = sorted(head.layers, key=str)
    return list(itertools.product(layers, head.rates, head.weight_decay))


def features(
    encoder: nn.Module,
    variables: Mapping[str, Any],
    images: jax.Array,
    layers: tuple[int, ...],
) -> dict[str, jax.Array]:
    """Returns what the heads see, "0" -> float32 [n, f] and so on, in inference mode.

    Layer 0 is the representation; layer k the outputs of the last k residual blocks,
    averaged over the image and joined. An encoder that has blocks tells their names in
    order, `encoder.block_names()`.

    Raises:
      Refusal: the encoder has fewer residual blocks.
    """
    names = encoder.block_names() if hasattr(encoder, "block_names") else []
    if len(names) < max(layers):
        raise Refusal(
            f"config.head.layers asks for the last {max(layers)} residual blocks; the"
            f" encoder has {len(names)}; use 0, its representation"
        )
    output, kept = encoder.apply(
        variables,
        images,
        train=False,
        capture_intermediates=lambda module, _: module.name in names,
        mutable=["intermediates"],
    )
    found = kept.get("intermediates", {})
    pooled = [jnp.mean(found[name]["__call__"][0], axis=(1, 2)) for name in names]
    result = {}
    for k in layers:
        x = output if k == 0 else jnp.concatenate(pooled[-k:], axis=1)
        result[str(k)] = x.astype(jnp.float32)
    return result


def init(
    key: jax.Array, widths: Mapping[str, int], *, heads: int, classes: int, norm: bool
) -> tuple[dict, dict]:
    """Returns parameters and running statistics of `heads` heads on each layer.

    Weights are normal with standard deviation 0.01, biases zero, as in the authors'
    evaluation. All heads of a layer start alike, so that only their settings tell them
    apart.
    """
    params, stats = {}, {}
    for i, (layer, f) in enumerate(widths.items()):
        kernel = 0.01 * jax.random.normal(jax.random.fold_in(key, i), (f, classes))
        params[layer] = {
            "kernel": jnp.tile(kernel[None], (heads, 1, 1)),
            "bias": jnp.zeros((heads, classes)),
        }
        if norm:
            params[layer] |= {
                "norm_scale": jnp.ones((heads, f)),
                "norm_bias": jnp.zeros((heads, f)),
            }
            stats[layer] = {"mean": jnp.zeros(f), "var": jnp.ones(f)}
    return params, stats


def logits(
    params: dict, stats: dict, x: Mapping[str, jax.Array], *, train: bool
) -> tuple[jax.Array, dict]:
    """Returns float32 [heads of all layers, n, classes], and updated statistics."""
    found, updated = [], {}
    for layer, p in params.items():
        z, kernel, bias = x[layer], p["kernel"], p["bias"]
        if layer in stats:
            known, n = stats[layer], len(z)
            now = {"mean": jnp.mean(z, 0), "var": jnp.var(z, 0)} if train else known
            z = (z - now["mean"][None]) / jnp.sqrt(now["var"] + EPS)[None]
            if train:  # the running variance is the unbiased one, as in PyTorch
                now["var"] *= n / max(n - 1, 1)
                updated[layer] = {
                    k: DECAY * known[k] + (1 - DECAY) * now[k] for k in known
                }
            # Scale and bias of each head, folded into its linear layer.
            bias = bias + jnp.einsum("hf,hfc->hc", p["norm_bias"], kernel)
            kernel = p["norm_scale"][..., None] * kernel
        scores = jnp.einsum("nf,hfc->hnc", z, kernel, preferred_element_type="float32")
        found.append(scores + bias[:, None])
    return jnp.concatenate(found), updated or stats


def losses(scores: jax.Array, labels: jax.Array) -> jax.Array:
    """Returns the mean cross-entropy of each head, [heads], of scores [heads, n, c].

    Images without a label (-1) do not count.
    """
    labels = jnp.broadcast_to(labels, scores.shape[:2])
    known = labels != NO_LABEL
    numbers = jnp.where(known, labels, 0)
    each = optax.softmax_cross_entropy_with_integer_labels(scores, numbers)
    count = jnp.maximum(jnp.sum(known, axis=1), 1).astype(each.dtype)
    return jnp.sum(each, axis=1, where=known) / count


def sgd(
    params: Any,
    momenta: Any,
    grads: Any,
    *,
    rates: Any,
    decays: Any,
    momentum: float,
    nesterov: bool,
) -> tuple[Any, Any]:
    """Returns parameters and momenta after a step of SGD as PyTorch's.

    Weight decay is added to the gradient, the rate applies after the momentum.

    Args:
      rates, decays: trees like `params`, of arrays that broadcast against its leaves.
    """
    grads = jax.tree.map(lambda g, p, d: g + d * p, grads, params, decays)
    trace = optax.trace(momentum, nesterov)
    steps, state = trace.update(grads, optax.TraceState(momenta))
    params = jax.tree.map(lambda p, s, r: p - r * s, params, steps, rates)
    return params, state.trace


def keep_finite(
    each: jax.Array, new: tuple[dict, dict], old: tuple[dict, dict]
) -> tuple[tuple[dict, dict], dict[str, jax.Array]]:
    """Returns `new` of the heads that stay finite and `old` of others; and which.

    A head whose rate is too high does not stop the others.

    Args:
      each: losses, [heads of all layers].
      new, old: parameters and momenta, {layer: leaves [heads, ...]} each.

    Returns:
      such a pair, and {layer: bool [heads]}.
    """
    kept, good, start = ({}, {}), {}, 0
    for layer in new[0]:
        leaves = jax.tree.leaves((new[0][layer], new[1][layer]))
        fine = jnp.isfinite(each[start : start + len(leaves[0])])
        for x in leaves:
            fine &= jnp.all(jnp.isfinite(x), axis=tuple(range(1, x.ndim)))
        for a, b, out in zip(new, old, kept, strict=True):
            choose = partial(_choose, fine)
            out[layer] = jax.tree.map(choose, a[layer], b[layer])
        good[layer], start = fine, start + len(fine)
    return kept, good


def per_head(params: dict, head: Head) -> tuple[dict, dict]:
    """Returns trees like `params` of each head's learning rate and weight decay."""
    pairs = np.array([*itertools.product(head.rates, head.weight_decay)], np.float32)
    return tuple(
        jax.tree.map(partial(_beside, jnp.asarray(values)), params)
        for values in pairs.T
    )


def factor(epoch: jax.Array, *, epochs: int, drops: tuple[int, ...]) -> jax.Array:
    """Returns what the learning rate of an epoch, from 0 on, is multiplied by.

    Half a cosine to zero, by the epoch, as in the authors' evaluation; or a tenth after
    each of the epochs `drops`.
    """
    schedule = optax.cosine_decay_schedule(1.0, epochs)
    if drops:
        schedule = optax.piecewise_constant_schedule(1.0, dict.fromkeys(drops, 0.1))
    return schedule(jnp.asarray(epoch, jnp.float32))


def _beside(values, leaf):
    """Returns values [heads] as they broadcast against a leaf [heads, ...]."""
    return values.reshape(-1, *[1] * (leaf.ndim - 1))


def _choose(fine, new, old):
    return jnp.where(_beside(fine, new), new, old)
