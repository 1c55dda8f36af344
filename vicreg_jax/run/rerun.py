"""Whether two results of one computation are equal to the bit; it computes none."""

from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["differences"]

SHOWN = 3  # names


def differences(first: Any, second: Any) -> str:
    """Returns the names of arrays that differ in a bit, "" where none does.

    Of trees of arrays of the same shapes, such as what a step returns.
    """
    leaves = jax.tree_util.tree_leaves_with_path(first)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/") for path, _ in leaves
    ]
    values = [leaf for _, leaf in leaves]
    found = jax.device_get(_differ(values, jax.tree.leaves(second)))
    wrong = [name for name, differs in zip(names, found, strict=True) if differs]
    more = f" and {len(wrong) - SHOWN} more" if len(wrong) > SHOWN else ""
    return ", ".join(wrong[:SHOWN]) + more


@jax.jit
def _differ(first, second):
    return [jnp.any(_bits(a) != _bits(b)) for a, b in zip(first, second, strict=True)]


def _bits(x):
    if jax.dtypes.issubdtype(x.dtype, jax.dtypes.prng_key):
        x = jax.random.key_data(x)
    if x.dtype == jnp.bool_ or jnp.issubdtype(x.dtype, jnp.integer):
        return x
    return jax.lax.bitcast_convert_type(x, jnp.dtype(f"uint{8 * x.dtype.itemsize}"))
