"""Where numbers stop being finite: layer, rows, terms, gradients; it mends nothing."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax.methods import Method

__all__ = ["explain"]

SHOWN = 5  # names or rows in a message


def explain(
    method: Method, params: Any, others: Mapping[str, Any], views: jax.Array
) -> str:
    """Returns in words what is not finite first in a step with these parameters.

    Args:
      params, others: the variables, as `Method.objective` takes them.
      views: [n, v, h, w, c].
    """
    key = jax.random.key(0)
    found = _rows(views)
    if found:
        return f"pixels of {found}"
    variables = {"params": params, **others}
    outputs, kept = method.forward(variables, views, key=key, capture=True)
    for layer, value, view in _in_order(kept["intermediates"]):
        found = _rows(value, view)
        if found:
            return f"layer {layer}, {found}"
    terms = {name: float(x) for name, x in method.loss(outputs).items()}
    bad = [f"{name} ({value})" for name, value in terms.items() if not _good(value)]
    if bad:
        return f"term {_few(bad)} of the loss"
    gradient = jax.grad(method.objective, has_aux=True)
    grads, _ = jax.jit(gradient)(params, others, views, key=key)
    bad = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, leaf in jax.tree_util.tree_leaves_with_path(grads)
        if not _good(leaf)
    ]
    if bad:
        return f"gradient of {_few(bad)}"
    return "the update, or a norm: loss and gradient of this batch are finite"


def _in_order(tree, path=()):
    """Yields (name, output, view) of layers, about in the order of the computation.

    The view is None where the output is that of all views, [n, v, ...].
    """
    for name, value in tree.items():
        if name == "__call__":  # a tuple of one call, or of one for each view
            for view, output in enumerate(value):
                for leaf in jax.tree.leaves(output):
                    yield "/".join(path) or "model", leaf, view if value[1:] else None
        elif isinstance(value, Mapping):
            yield from _in_order(value, (*path, name))


def _rows(x, view=None):
    """Returns in words which view and rows of x are not finite, "" where all are.

    Args:
      x: [n, v, ...] of all views, or [n, ...] of the one given.
    """
    x = x.reshape(*x.shape[:2], -1) if view is None else x.reshape(len(x), 1, -1)
    bad = ~np.asarray(jnp.all(jnp.isfinite(x), axis=2))  # [n, v]
    if not bad.any():
        return ""
    first = np.flatnonzero(bad.any(axis=0))[0]
    rows = _few(np.flatnonzero(bad[:, first]).tolist())
    return f"view {(view or first) + 1}, batch positions {rows}"


def _good(x):
    return bool(jnp.all(jnp.isfinite(x)))


def _few(items):
    shown = ", ".join(map(str, items[:SHOWN]))
    return f"{shown} and {len(items) - SHOWN} more" if len(items) > SHOWN else shown
