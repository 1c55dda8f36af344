"""Pixel operations against Pillow's pictures, SciPy and NumPy."""

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import ndimage

from vicreg_jax import sharding
from vicreg_jax.config import Augment
from vicreg_jax.data import pixels, views

GOLDEN = Path(__file__).parent / "golden"
HALF_A_LEVEL = 0.5  # of 255: what rounding to 8 bits may do to a pixel


@pytest.fixture(scope="module")
def golden():
    return np.load(GOLDEN / "augment.npz")


def noise(n=4, height=12, width=16, channels=3, seed=0):
    shape = (n, height, width, channels)
    return np.random.default_rng(seed).integers(0, 256, shape, np.uint8)


def boxes(n, *box):
    return jnp.tile(jnp.asarray([box], jnp.float32), (n, 1))


def picture(golden):
    return pixels.as_float(jnp.asarray(golden["image"][None]))


@pytest.mark.parametrize("crop", range(5))
def test_crop_and_resize_is_that_of_pillow(golden, crop):
    *box, size = golden[f"crop{crop}/box"].tolist()
    got = 255 * pixels.crop_resize(picture(golden), boxes(1, *box), size=size)[0]
    if crop == 4:
        got = got[80:144]  # the rows of the largest that the file keeps
    # Found: mean 0.31, largest 1.07. Pillow rounds to 8 bits after each of its two
    # passes, half a level each, and the second pass may amplify the first's.
    differences = np.abs(np.asarray(got) - golden[f"crop{crop}/bicubic"])
    assert differences.mean() < HALF_A_LEVEL and differences.max() < 1.5


@pytest.mark.parametrize("operation", ["brightness", "contrast"])
@pytest.mark.parametrize("factor", ["0.6", "1.4"])
def test_brightness_and_contrast_are_those_of_pillow(golden, operation, factor):
    apply = {"brightness": pixels.brightness, "contrast": pixels.contrast}[operation]
    got = 255 * apply(picture(golden), jnp.asarray([factor], jnp.float32))[0]
    differences = np.asarray(got) - golden[f"{operation}/{factor}"]
    # Pillow cuts fractions off, so ours is up to 1 brighter; its mean grey is rounded.
    assert np.abs(differences).mean() < HALF_A_LEVEL
    assert differences.min() > -0.5 and differences.max() < 1.5


def test_a_crop_of_its_own_size_is_the_crop():
    images = pixels.as_float(jnp.asarray(noise()))
    got = pixels.crop_resize(images, boxes(4, 3, 5, 8, 8), size=8)
    # Weights of 1 and 0; their division costs a rounding.
    np.testing.assert_allclose(got, images[:, 3:11, 5:13], atol=1e-6)


def test_every_example_has_its_own_box():
    images = pixels.as_float(jnp.asarray(noise(n=2)))
    box = jnp.asarray([[0, 0, 8, 8], [4, 8, 8, 8]], jnp.float32)
    got = pixels.crop_resize(images, box, size=8)
    # As above.
    np.testing.assert_allclose(got[0], images[0, :8, :8], atol=1e-6)
    np.testing.assert_allclose(got[1], images[1, 4:, 8:], atol=1e-6)


def test_flip_mirrors_left_to_right_where_the_flag_is_true():
    images = jnp.asarray(noise(n=2))
    got = pixels.flip(images, jnp.asarray([True, False]))
    np.testing.assert_array_equal(got[0], np.fliplr(images[0]))
    np.testing.assert_array_equal(got[1], images[1])


def test_unturned_warp_of_the_whole_image_is_the_image():
    images = pixels.as_float(jnp.asarray(noise(height=9, width=9)))
    zero = jnp.zeros(4)
    got = pixels.warp(images, boxes(4, 0, 0, 9, 9), zero, zero, size=9)
    # Coordinates near 9 are off by an ulp of 1e-6, and interpolation passes that on.
    np.testing.assert_allclose(got, images, atol=5e-6)


@pytest.mark.parametrize("quarter", [-1, 1, 2])
def test_a_positive_rotation_turns_counterclockwise(quarter):
    images = pixels.as_float(jnp.asarray(noise(height=8, width=8)))
    angle = jnp.full(4, quarter * np.pi / 2, jnp.float32)
    got = pixels.warp(images, boxes(4, 0, 0, 8, 8), angle, jnp.zeros(4), size=8)
    want = np.rot90(images, quarter, axes=(1, 2))
    # cos(pi / 2) is -4e-8 in float32: as above.
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_a_positive_shear_moves_the_lower_half_to_the_left():
    column = np.zeros((1, 9, 9, 1), np.uint8)
    column[:, :, 4] = 255
    images = pixels.as_float(jnp.asarray(column))
    got = pixels.warp(images, boxes(1, 0, 0, 9, 9), jnp.zeros(1), jnp.ones(1), size=9)
    # As above.
    np.testing.assert_allclose(got[0, :, :, 0], np.fliplr(np.eye(9)), atol=5e-6)


def warp_of_scipy(image, box, rotation, shear, size):
    """The same map as matrices, in float64; black beyond the edges."""
    top, left, height, width = box
    grid = (np.arange(size) + 0.5) / size - 0.5
    y, x = np.meshgrid(height * grid, width * grid, indexing="ij")
    cos, sin = np.cos(rotation), np.sin(rotation)
    turn = np.array([[cos, sin], [-sin, cos]])  # of (y, x), counterclockwise seen
    slant = np.array([[1, 0], [shear, 1]])
    centre = np.array([top + height / 2 - 0.5, left + width / 2 - 0.5])
    points = np.tensordot(turn @ slant, np.stack([y, x]), 1) + centre[:, None, None]
    channels = [
        ndimage.map_coordinates(c, points, order=1, mode="grid-constant")
        for c in np.moveaxis(image.astype(np.float64) / 255, -1, 0)
    ]
    return np.stack(channels, axis=-1)


def test_warp_is_that_of_scipy():
    images, rng = noise(n=16), np.random.default_rng(1)
    box = np.stack([rng.uniform(-2, 8, 16) for _ in range(4)], axis=1) + [0, 0, 3, 3]
    rotation, shear = rng.uniform(-3, 3, 16), rng.uniform(-1, 1, 16)
    got = pixels.warp(
        pixels.as_float(jnp.asarray(images)),
        *(jnp.asarray(x, jnp.float32) for x in (box, rotation, shear)),
        size=7,
    )
    want = [
        warp_of_scipy(*each, 7)
        for each in zip(images, box, rotation, shear, strict=True)
    ]
    # Float32 coordinates up to 16 are off by 2e-6; a pixel and the next differ by 1.
    np.testing.assert_allclose(got, np.stack(want), atol=1e-5)


def test_jitter_applies_brightness_and_contrast_in_the_drawn_order():
    images = noise(n=24)
    factors = np.random.default_rng(1).uniform(0.5, 1.5, (2, 24)).astype(np.float32)
    got = pixels.jitter(
        pixels.as_float(jnp.asarray(images)), *map(jnp.asarray, factors), views.ORDERS
    )

    def brightness(x, factor):
        return np.clip(x * factor, 0, 1)

    def contrast(x, factor):
        grey = np.mean(x @ [0.299, 0.587, 0.114])
        return np.clip(grey + factor * (x - grey), 0, 1)

    for i, order in enumerate(views.ORDERS.tolist()):
        want = images[i] / 255
        for operation in order:
            if operation < 2:  # saturation and hue, 2 and 3, are not drawn yet
                want = (brightness, contrast)[operation](want, factors[operation, i])
        # Float32 against float64, values up to 1.5 before clipping.
        np.testing.assert_allclose(got[i], want, atol=1e-6)


def test_luma_of_a_grey_image_is_the_image():
    images = pixels.as_float(jnp.asarray(noise(channels=1)))
    assert pixels.luma(images) is images


def test_normalize_is_per_channel():
    images = pixels.as_float(jnp.asarray(noise()))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    want = (np.asarray(images, np.float64) - mean) / std
    # Float32 of values up to 3.
    np.testing.assert_allclose(
        pixels.normalize(images, mean=mean, std=std), want, atol=1e-6
    )


def test_as_float_maps_0_to_255_onto_0_to_1():
    got = pixels.as_float(jnp.arange(256, dtype=jnp.uint8))
    assert got.dtype == jnp.float32
    # One rounding of float32.
    np.testing.assert_allclose(got, np.arange(256) / 255, rtol=1e-7)


def view(n, seed=0):
    defaults = {name: getattr(Augment(), name) for name in views.Policy._fields}
    policy = views.Policy(**defaults)._replace(rotation=20.0, shear=0.3)
    u = np.random.default_rng(seed).random((n, 1, views.NUMBERS), np.float32)
    found = views.parameters(u, np.array([12, 16]), [policy])
    return views.Parameters(*(jnp.asarray(x[:, 0]) for x in found))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_render_is_its_parts_in_turn_jitted_or_sharded(mesh, affine, channels):
    images, v = jnp.asarray(noise(n=16, channels=channels)), view(16)
    x = pixels.as_float(images)
    if affine:
        x = pixels.warp(x, v.box, v.rotation, v.shear, size=10)
    else:
        x = pixels.crop_resize(x, v.box, size=10)
    want = pixels.jitter(pixels.flip(x, v.flip), v.brightness, v.contrast, v.order)
    assert want.min() >= 0 and want.max() <= 1

    render = partial(pixels.render, size=10, affine=affine)
    split = jax.device_put((images, v), sharding.split(mesh))
    for got in (
        render(images, v),
        jax.jit(render)(images, v),
        jax.jit(render)(*split),
    ):
        assert got.shape == (16, 10, 10, channels) and got.dtype == jnp.float32
        # Fused operations round otherwise, also the coordinates up to 16 of a warp.
        np.testing.assert_allclose(got, want, atol=1e-5)
