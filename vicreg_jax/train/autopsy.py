"""Where numbers stop being finite: layer, rows, terms, gradients; it mends nothing."""

from collections.abc import Mapping, Sequence
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax import losses

SHOWN = 5  # names or rows in a message


def autopsy(
    model: nn.Module,
    params: Any,
    batch_stats: Any,
    images: Sequence[jax.Array],
    weights: Mapping[str, float],
) -> str:
    """Returns in words what is not finite first in a step with these parameters.

    Args:
      model: images -> (representation, embedding).
      images: of the views, [n, h, w, c] each.
      weights: of the fields of `losses.VicregTerms`.
    """
    views = ("first", "second")
    outputs = []
    for name, view in zip(views, images, strict=True):
        rows = _rows(view)
        if rows:
            return f"pixels of the {name} view, batch positions {_few(rows)}"
        (_, z), kept = model.apply(
            {"params": params, "batch_stats": batch_stats},
            view,
            train=True,
            capture_intermediates=True,
            mutable=["batch_stats", "intermediates"],
            rngs={"dropout": jax.random.key(0)},
        )
        for layer, value in _in_order(kept["intermediates"]):
            rows = _rows(value)
            if rows:
                return f"layer {layer} of the {name} view, batch positions {_few(rows)}"
        outputs.append(z)
    terms = losses.vicreg(*outputs)
    terms = {name: float(getattr(terms, name)) for name in weights}
    bad = [f"{name} ({value})" for name, value in terms.items() if not _good(value)]
    if bad:
        return f"term {_few(bad)} of the loss"

    def loss_fn(params):
        zs = [
            model.apply(
                {"params": params, "batch_stats": batch_stats},
                view,
                train=True,
                mutable=["batch_stats"],
                rngs={"dropout": jax.random.key(0)},
            )[0][1]
            for view in images
        ]
        terms = losses.vicreg(*zs)
        return sum(weights[name] * getattr(terms, name) for name in weights)

    grads = jax.jit(jax.grad(loss_fn))(params)
    found = jax.tree_util.tree_leaves_with_path(grads)
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in found
        if not _good(leaf)
    ]
    if bad:
        return f"gradient of {_few(bad)}"
    return "the update, or a norm: loss and gradient of this batch are finite"


def _in_order(tree, path=()):
    """Yields names and outputs of layers, about in the order of the computation."""
    for name, value in tree.items():
        if name == "__call__":
            for leaf in jax.tree.leaves(value):
                yield "/".join(path) or "model", leaf
        elif isinstance(value, Mapping):
            yield from _in_order(value, (*path, name))


def _rows(x):
    x = jnp.atleast_1d(x)
    good = jnp.all(jnp.isfinite(x.reshape(len(x), -1)), axis=1)
    return np.flatnonzero(~np.asarray(good)).tolist()


def _good(x):
    return bool(jnp.all(jnp.isfinite(x)))


def _few(items):
    shown = ", ".join(map(str, items[:SHOWN]))
    return f"{shown} and {len(items) - SHOWN} more" if len(items) > SHOWN else shown
