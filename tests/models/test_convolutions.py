"""The weight gradient in parts against that of jax's own convolution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vicreg_jax.devices import sharding
from vicreg_jax.models import convolutions

CASES = [
    # rows, size, channels, features, kernel, stride
    (64, 16, 3, 4, 3, 1),
    (72, 32, 4, 6, 3, 2),
    (40, 33, 2, 3, 3, 1),
    (256, 8, 4, 4, 3, 1),
    (64, 32, 3, 4, 7, 2),
    (64, 16, 4, 4, 1, 1),
    (17, 32, 3, 4, 3, 1),  # a prime number of images stays whole
]


def options(kernel, stride):
    pad = (kernel - 1) // 2
    return dict(
        window_strides=(stride, stride),
        padding=((pad, pad), (pad, pad)),
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
    )


def drawn(rows, size, channels, features, kernel, dtype=np.float64):
    rng = np.random.default_rng(0)
    images = rng.normal(size=(rows, size, size, channels))
    kernels = rng.normal(size=(kernel, kernel, channels, features))
    return jnp.asarray(images, dtype), jnp.asarray(kernels, dtype)


def gradients(conv, images, kernels, **how):
    def loss(images, kernels):
        return jnp.sum(jnp.sin(conv(images, kernels, **how)))

    return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(images, kernels)


@pytest.mark.parametrize("case", CASES, ids=str)
def test_value_and_gradients_are_those_of_jax(case, float64):
    *shape, stride = case
    given = drawn(*shape)
    how = options(shape[-1], stride)
    found = gradients(convolutions.conv_general_dilated, *given, **how)
    want = gradients(jax.lax.conv_general_dilated, *given, **how)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)


def test_large_batches_are_divided_and_small_ones_are_not():
    parts = convolutions._parts
    like = jax.ShapeDtypeStruct
    for rows, size, want in ((128, 32, 16), (128, 16, 16), (128, 8, 1), (256, 8, 8)):
        assert parts(jnp.zeros((rows, 1)), like((rows, size, size, 1), float)) == want
    assert parts(jnp.zeros((4096, 1)), like((4096, 32, 32, 1), float)) == 32
    assert parts(jnp.zeros((15, 1)), like((15, 64, 64, 1), float)) == 1


def convolutions_of(function, platform, *given):
    lowered = jax.jit(function).trace(*given).lower(lowering_platforms=(platform,))
    return lowered.as_text().count("stablehlo.convolution")


def test_accelerators_get_what_they_would_without_it():
    images, kernels = drawn(64, 16, 3, 4, 3, np.float32)

    def gradient(conv):
        def loss(kernels):
            return jnp.sum(conv(images, kernels, **options(3, 1)) ** 2)

        return jax.grad(loss)

    own, plain = (
        gradient(x)
        for x in (convolutions.conv_general_dilated, jax.lax.conv_general_dilated)
    )
    assert convolutions_of(plain, "cpu", kernels) == 2
    assert convolutions_of(own, "cpu", kernels) == 1 + 8
    for platform in ("tpu", "cuda"):
        assert convolutions_of(own, platform, kernels) == 2


def test_eight_devices_add_what_one_adds_and_send_the_sums_alone(mesh, float64):
    images, kernels = drawn(1024, 16, 3, 4, 3)
    how = options(3, 1)
    want = gradients(convolutions.conv_general_dilated, images, kernels, **how)
    split = jax.device_put(images, sharding.split(mesh))
    whole = jax.device_put(kernels, sharding.whole(mesh))
    found = gradients(convolutions.conv_general_dilated, split, whole, **how)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(want), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-9, atol=1e-9)

    def loss(kernels, images):
        return jnp.sum(convolutions.conv_general_dilated(images, kernels, **how) ** 2)

    text = jax.jit(jax.grad(loss)).lower(whole, split).compile().as_text()
    for collective in ("all-gather", "all-to-all", "collective-permute"):
        assert collective not in text
