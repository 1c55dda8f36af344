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
    method: Method,
    params: Any,
    others: Mapping[str, Any],
    views: jax.Array | tuple[jax.Array, jax.Array],
) -> str:
    """Returns in words what is not finite first in a step with these parameters.

    Args:
      params, others: the variables, as `Method.objective` takes them.
      views: see `Method.forward`.
    """
    key, parts = jax.random.key(0), jax.tree.leaves(views)
    sizes = [part.shape[1] for part in parts]
    for part, seen in zip(parts, _seen(len(parts), sizes), strict=True):
        if found := _rows(part, seen, len(part)):
            return f"pixels of {found}"
    variables = {"params": params, **others}
    outputs, kept = method.forward(variables, views, key=key, capture=True)
    n, microbatches = len(parts[0]), method.module.microbatches
    for layer, value, seen in _in_order(kept.get("intermediates", {}), sizes):
        if found := _rows(_whole(value, n, microbatches), seen, n):
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


def _in_order(tree, sizes, path=()):
    """Yields (name, output, views) of layers, about in the order of the computation."""
    for name, value in tree.items():
        if name == "__call__":  # a tuple of the calls
            for seen, output in zip(_seen(len(value), sizes), value, strict=True):
                for leaf in jax.tree.leaves(output):
                    yield "/".join(path) or "model", leaf, seen
        elif isinstance(value, Mapping):
            yield from _in_order(value, sizes, (*path, name))


def _whole(x, n, parts):
    """Returns what an encoder has made of n rows part by part, as if of all at once."""
    if parts == 1 or x.shape[:2] != (parts, n // parts):
        return x
    return jnp.swapaxes(x, 0, 1).reshape(n, *x.shape[2:])


def _seen(calls, sizes):
    """Returns which views each call of a layer sees, as far as their number tells.

    Args:
      sizes: how many views there are of each height and width.
    """
    total = sum(sizes)
    if calls == total:
        return [range(i, i + 1) for i in range(total)]
    if calls == len(sizes):
        ends = np.cumsum(sizes).tolist()
        return [range(end - v, end) for end, v in zip(ends, sizes, strict=True)]
    return [range(total)] * calls


def _rows(x, seen, n):
    """Returns in words which view and rows of x are not finite, "" where all are.

    Args:
      x: of any shape; where it is that of all views, [n, v, ...], or of one, [n, ...],
        the words say so.
      seen: the views of x.
    """
    bad = ~np.asarray(jnp.isfinite(x))
    if not bad.any():
        return ""
    if bad.shape[:2] == (n, len(seen)):
        bad = bad.reshape(n, len(seen), -1).any(axis=2)
        at = np.flatnonzero(bad.any(axis=0))[0]
        bad, seen = bad[:, at], seen[at : at + 1]
    words = [f"view {seen[0] + 1}"] if len(seen) == 1 else []
    if bad.shape[:1] == (n,):
        rows = np.flatnonzero(bad.reshape(len(bad), -1).any(axis=1))
        words.append(f"batch positions {_few(rows.tolist())}")
    return ", ".join(words) or f"of shape {list(bad.shape)}"


def _good(x):
    return bool(jnp.all(jnp.isfinite(x)))


def _few(items):
    shown = ", ".join(map(str, items[:SHOWN]))
    return f"{shown} and {len(items) - SHOWN} more" if len(items) > SHOWN else shown
