"""Where numbers stop being finite: layer, rows, terms, gradients; it mends nothing."""

import functools
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
    rows = functools.partial(_rows, shape=views.shape[:2])
    found = rows(views)
    if found:
        return f"pixels of {found}"
    variables = {"params": params, **others}
    outputs, kept = method.forward(variables, views, key=key, capture=True)
    for layer, value, view in _in_order(kept.get("intermediates", {}), views.shape[1]):
        found = rows(_whole(value, len(views), method.module.microbatches), view)
        if found:
            return f"layer {layer}, {found}"
    terms = {name: float(x) for name, x in method.terms(outputs).items()}
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


def _in_order(tree, views, path=()):
    """Yields (name, output, view) of layers, about in the order of the computation.

    The view is None where the calls of a layer are not one for each view.
    """
    for name, value in tree.items():
        if name == "__call__":  # a tuple of the calls
            for call, output in enumerate(value):
                for leaf in jax.tree.leaves(output):
                    view = call if len(value) == views else None
                    yield "/".join(path) or "model", leaf, view
        elif isinstance(value, Mapping):
            yield from _in_order(value, views, (*path, name))


def _whole(x, n, parts):
    """Returns what an encoder has made of n rows part by part, as if of all at once."""
    if parts == 1 or x.shape[:2] != (parts, n // parts):
        return x
    return jnp.swapaxes(x, 0, 1).reshape(n, *x.shape[2:])


def _rows(x, view=None, *, shape):
    """Returns in words which view and rows of x are not finite, "" where all are.

    Args:
      x: of any shape; where it is that of all views, [n, v, ...], or of one, [n, ...],
        the words say so.
      view: of x, where it is known.
      shape: (n, v).
    """
    bad = ~np.asarray(jnp.isfinite(x))
    if not bad.any():
        return ""
    if view is None and bad.shape[:2] == shape:
        bad = bad.reshape(*shape, -1).any(axis=2)
        view = np.flatnonzero(bad.any(axis=0))[0]
        bad = bad[:, view]
    words = [] if view is None else [f"view {view + 1}"]
    if bad.shape[:1] == shape[:1]:
        rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
        words.append(f"batch positions {_few(rows.tolist())}")
    return ", ".join(words) or f"of shape {list(bad.shape)}"


def _good(x):
    return bool(jnp.all(jnp.isfinite(x)))


def _few(items):
    shown = ", ".join(map(str, items[:SHOWN]))
    return f"{shown} and {len(items) - SHOWN} more" if len(items) > SHOWN else shown
