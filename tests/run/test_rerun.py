"""Two results of one step: equal to the bit, or the arrays that are not, by name."""

import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax.run import rerun


def tree():
    key = jax.random.key(0)
    return {
        "params": {
            "kernel": jax.random.normal(key, (7, 5)),
            "half": jnp.ones(9, jnp.bfloat16),
        },
        "step": jnp.int32(7),
        "good": jnp.array([True, False]),
        "nothing": jnp.zeros((0, 3)),
        "key": key,
        "odd": jnp.array([jnp.nan, jnp.inf, -0.0]),
    }


def test_what_is_equal_has_no_differences_whatever_it_is():
    assert rerun.differences(tree(), tree()) == ""


def test_zeros_of_two_signs_and_numbers_that_are_none_are_told_apart():
    other = tree() | {"odd": jnp.array([jnp.nan, jnp.inf, 0.0])}
    assert rerun.differences(tree(), other) == "odd"
    other = tree() | {"key": jax.random.key(1), "good": jnp.array([True, True])}
    assert rerun.differences(tree(), other) == "good, key"


def test_each_of_two_hundred_flipped_bits_is_found():
    rng, first = np.random.default_rng(0), tree()
    leaves, structure = jax.tree.flatten(first)
    names = [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(first)
    ]
    some = [
        i
        for i, x in enumerate(leaves)
        if x.size
        and x.dtype != jnp.bool_
        and not jnp.issubdtype(x.dtype, jax.dtypes.prng_key)
    ]
    for _ in range(200):
        i = int(rng.choice(some))
        flipped = np.array(leaves[i])
        held = flipped.reshape(-1).view(np.uint8)
        held[rng.integers(held.size)] ^= np.uint8(1 << rng.integers(8))
        second = [jnp.asarray(flipped) if j == i else x for j, x in enumerate(leaves)]
        assert rerun.differences(first, structure.unflatten(second)) == names[i]
