"""Pixel operations against Pillow's pictures, SciPy and NumPy."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import GOLDEN
from scipy import ndimage

from vicreg_jax.config import Config
from vicreg_jax.data import batches
from vicreg_jax.data.augment import draw, on_device
from vicreg_jax.devices import sharding

POLICY = batches.policies(Config())[1]._replace(
    rotation=20.0, shear=0.3, blur=0.5, solarize=0.5
)
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
    return on_device.as_float(jnp.asarray(golden["image"][None]))


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("crop", range(5))
def test_crop_and_resize_is_that_of_pillow(golden, crop, interpolation):
    *box, size = golden[f"crop{crop}/box"].tolist()
    how = dict(size=size, interpolation=interpolation)
    got = 255 * on_device.crop_resize(picture(golden), boxes(1, *box), **how)[0]
    if crop == 4:
        got = got[80:144]  # the rows of the largest that the file keeps
    # Found: mean 0.31, largest 1.07. Pillow rounds to 8 bits after each of its two
    # passes, half a level each, and the second pass may amplify the first's.
    differences = np.abs(np.asarray(got) - golden[f"crop{crop}/{interpolation}"])
    assert differences.mean() < HALF_A_LEVEL and differences.max() < 1.5


@pytest.mark.parametrize(
    ("name", "largest"),
    [
        # Pillow cuts fractions off; its mean grey is rounded.
        ("brightness/0.6", 1.0),
        ("brightness/1.4", 1.0),
        ("contrast/0.6", 1.5),
        ("contrast/1.4", 1.5),
        ("saturation/0.6", 1.5),
        ("saturation/1.4", 1.5),
        # Where two channels are nearly equal, the last bit of hue is worth 6 levels.
        ("hue/-0.1", 6.5),
        ("hue/0.05", 6.5),
        ("grayscale", 0.6),
        ("solarize/128", 0.01),
        # Pillow rounds to 8 bits after each of six passes.
        ("blur/0.1", 2.5),
        ("blur/1.0", 2.5),
        ("blur/2.0", 2.5),
    ],
)
def test_an_operation_is_that_of_pillow(golden, name, largest):
    operation, _, number = name.partition("/")
    apply = getattr(on_device, {"grayscale": "grey"}.get(operation, operation))
    flags = operation in ("grayscale", "solarize")
    parameter = jnp.asarray([True if flags else float(number)])
    got = 255 * np.asarray(apply(picture(golden), parameter)[0])
    differences = np.abs(got - golden[name])
    assert differences.mean() < HALF_A_LEVEL and differences.max() < largest


def test_a_chain_of_operations_is_that_of_pillow(golden):
    chain = dict(brightness=1.3, contrast=0.7, saturation=1.15, hue=0.06, sigma=1.2)
    v = view(1)._replace(
        order=jnp.arange(4)[None], **{k: jnp.asarray([x]) for k, x in chain.items()}
    )
    x = on_device.blur(on_device.jitter(picture(golden), v), v.sigma)
    got = 255 * np.asarray(on_device.solarize(x, jnp.asarray([True]))[0])
    differences = np.abs(got - golden["chain"])
    # Found: 1.10 and 3.1. Pillow is half a level darker after each of six operations.
    assert differences.mean() < 1.5 and differences.max() < 4


def test_a_crop_of_its_own_size_is_the_crop():
    images = on_device.as_float(jnp.asarray(noise()))
    got = on_device.crop_resize(images, boxes(4, 3, 5, 8, 8), size=8)
    # Weights of 1 and 0; their division costs a rounding.
    np.testing.assert_allclose(got, images[:, 3:11, 5:13], atol=1e-6)


def test_every_example_has_its_own_box():
    images = on_device.as_float(jnp.asarray(noise(n=2)))
    box = jnp.asarray([[0, 0, 8, 8], [4, 8, 8, 8]], jnp.float32)
    got = on_device.crop_resize(images, box, size=8)
    # As above.
    np.testing.assert_allclose(got[0], images[0, :8, :8], atol=1e-6)
    np.testing.assert_allclose(got[1], images[1, 4:, 8:], atol=1e-6)


def test_flip_mirrors_left_to_right_where_the_flag_is_true():
    images = jnp.asarray(noise(n=2))
    got = on_device.flip(images, jnp.asarray([True, False]))
    np.testing.assert_array_equal(got[0], np.fliplr(images[0]))
    np.testing.assert_array_equal(got[1], images[1])


def test_unturned_warp_of_the_whole_image_is_the_image():
    images = on_device.as_float(jnp.asarray(noise(height=9, width=9)))
    zero = jnp.zeros(4)
    got = on_device.warp(images, boxes(4, 0, 0, 9, 9), zero, zero, size=9)
    # Coordinates near 9 are off by an ulp of 1e-6, and interpolation passes that on.
    np.testing.assert_allclose(got, images, atol=5e-6)


@pytest.mark.parametrize("quarter", [-1, 1, 2])
def test_a_positive_rotation_turns_counterclockwise(quarter):
    images = on_device.as_float(jnp.asarray(noise(height=8, width=8)))
    angle = jnp.full(4, quarter * np.pi / 2, jnp.float32)
    got = on_device.warp(images, boxes(4, 0, 0, 8, 8), angle, jnp.zeros(4), size=8)
    want = np.rot90(images, quarter, axes=(1, 2))
    # cos(pi / 2) is -4e-8 in float32: as above.
    np.testing.assert_allclose(got, want, atol=5e-6)


def test_a_positive_shear_moves_the_lower_half_to_the_left():
    column = np.zeros((1, 9, 9, 1), np.uint8)
    column[:, :, 4] = 255
    images = on_device.as_float(jnp.asarray(column))
    got = on_device.warp(
        images, boxes(1, 0, 0, 9, 9), jnp.zeros(1), jnp.ones(1), size=9
    )
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
    got = on_device.warp(
        on_device.as_float(jnp.asarray(images)),
        *(jnp.asarray(x, jnp.float32) for x in (box, rotation, shear)),
        size=7,
    )
    want = [
        warp_of_scipy(*each, 7)
        for each in zip(images, box, rotation, shear, strict=True)
    ]
    # Float32 coordinates up to 16 are off by 2e-6; a pixel and the next differ by 1.
    np.testing.assert_allclose(got, np.stack(want), atol=1e-5)


def test_jitter_applies_the_operations_in_the_drawn_order():
    images = on_device.as_float(jnp.asarray(noise(n=24)))
    rng = np.random.default_rng(1)
    factors = jnp.asarray(rng.uniform(0.5, 1.5, (3, 24)).astype(np.float32))
    shift = jnp.asarray(rng.uniform(-0.1, 0.1, 24).astype(np.float32))
    names = ("brightness", "contrast", "saturation", "hue")
    drawn = dict(zip(names, (*factors, shift), strict=True))
    v = view(24)._replace(order=jnp.asarray(draw.ORDERS), **drawn)
    got = on_device.jitter(images, v)
    for i, order in enumerate(draw.ORDERS.tolist()):
        want = images[i : i + 1]
        for name in (names[k] for k in order):
            want = getattr(on_device, name)(want, drawn[name][i : i + 1])
        # The same operations, summed by other kernels; 8-bit hue could jump, it does
        # not for these numbers.
        np.testing.assert_allclose(got[i], want[0], atol=1e-5)


def test_an_image_that_is_not_jittered_is_left_alone():
    images = on_device.as_float(jnp.asarray(noise(n=4)))
    one, zero = jnp.ones(4), jnp.zeros(4)
    v = view(4)._replace(brightness=one, contrast=one, saturation=one, hue=zero)
    np.testing.assert_array_equal(on_device.jitter(images, v), images)
    np.testing.assert_array_equal(on_device.blur(images, zero), images)


def test_hue_keeps_grey_and_turns_red_to_green_in_a_third_of_the_circle():
    row = jnp.asarray([[1.0, 0.0, 0.0], [0.4, 0.4, 0.4], [0.0, 0.0, 0.0]])
    turned = on_device.hue(row[None, None], jnp.asarray([1 / 3]))[0, 0]
    want = [[0.0, 1.0, 0.0], [0.4, 0.4, 0.4], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(turned, want, atol=1e-6)  # 85 of 255 is a third


def test_luma_of_a_grey_image_is_the_image():
    images = on_device.as_float(jnp.asarray(noise(channels=1)))
    assert on_device.luma(images) is images


def test_normalize_is_per_channel():
    images = on_device.as_float(jnp.asarray(noise()))
    mean, std = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)
    want = (np.asarray(images, np.float64) - mean) / std
    # Float32 of values up to 3.
    np.testing.assert_allclose(
        on_device.normalize(images, mean=mean, std=std), want, atol=1e-6
    )


def test_as_float_maps_0_to_255_onto_0_to_1():
    got = on_device.as_float(jnp.arange(256, dtype=jnp.uint8))
    assert got.dtype == jnp.float32
    # One rounding of float32.
    np.testing.assert_allclose(got, np.arange(256) / 255, rtol=1e-7)


def view(n, seed=0):
    u = np.random.default_rng(seed).random((n, 1, draw.NUMBERS), np.float32)
    found = draw.parameters(u, np.array([12, 16]), [POLICY])
    return draw.Parameters(*(jnp.asarray(x[:, 0]) for x in found))


@pytest.mark.parametrize("affine", [False, True])
@pytest.mark.parametrize("channels", [1, 3])
def test_render_is_its_parts_in_turn_jitted_or_sharded(mesh, affine, channels):
    # Hue is cut to 8 bits: there a rounding may grow to a level, and through contrast
    # reach the whole image.
    images, v = jnp.asarray(noise(n=16, channels=channels)), view(16)
    v = v._replace(hue=jnp.zeros(16))
    x = on_device.as_float(images)
    if affine:
        x = on_device.warp(x, v.box, v.rotation, v.shear, size=10)
    else:
        x = on_device.crop_resize(x, v.box, size=10)
    x = on_device.grey(on_device.jitter(on_device.flip(x, v.flip), v), v.grey)
    want = on_device.solarize(on_device.blur(x, v.sigma), v.solarize)
    assert want.min() >= 0 and want.max() <= 1

    policy = POLICY if affine else POLICY._replace(rotation=0.0, shear=0.0)
    render = partial(on_device.render, size=10, policy=policy)
    split = jax.device_put((images, v), sharding.split(mesh))
    for got in (
        render(images, v),
        jax.jit(render)(images, v),
        jax.jit(render)(*split),
    ):
        assert got.shape == (16, 10, 10, channels) and got.dtype == jnp.float32
        # Fused operations round otherwise, also the coordinates up to 16 of a warp;
        # now and then that solarizes a pixel.
        differences = np.abs(np.asarray(got) - want)
        assert np.mean(differences > 1e-5) < 0.01


def test_what_a_policy_never_does_is_not_compiled():
    still = POLICY._replace(
        **dict(flip=0.0, rotation=0.0, shear=0.0, jitter=0.0, grey=0.0, blur=0.0),
        solarize=0.0,
    )
    images, v = jnp.asarray(noise(n=2)), view(2)

    def equations(policy):
        f = partial(on_device.render, size=10, policy=policy)
        return len(jax.make_jaxpr(f)(images, v).eqns)

    assert equations(still) < equations(POLICY) / 3


@pytest.mark.parametrize("channels", [1, 3])
def test_one_image_after_the_other_gives_what_all_at_once_give(channels):
    images, v = jnp.asarray(noise(n=24, channels=channels)), view(24)
    still = jnp.arange(24) % 4 == 0  # as if no jitter was drawn for these
    factors = {
        name: jnp.where(still, 1, getattr(v, name))
        for name in ("brightness", "contrast", "saturation")
    }
    v = v._replace(**factors, hue=jnp.where(still, 0, v.hue))
    render = partial(on_device.render, size=10, policy=POLICY)
    want = jax.jit(render)(images, v)
    got = jax.jit(partial(render, in_turn=True))(images, v)
    differences = np.abs(np.asarray(got) - want)
    # Rounding; where hue is cut to 8 bits or a pixel is solarized, it may show.
    assert np.mean(differences > 1e-5) < 0.01
    assert np.mean(differences) < 1e-4


@pytest.mark.parametrize("in_turn", [False, True])
def test_a_view_for_which_nothing_was_drawn_is_the_image(in_turn):
    images = jnp.asarray(noise(n=3, height=12, width=12))
    n, zeros, ones = 3, jnp.zeros(3), jnp.ones(3)
    no = zeros.astype(bool)
    v = draw.Parameters(
        box=boxes(n, 0.0, 0.0, 12.0, 12.0),
        **dict(flip=no, rotation=zeros, shear=zeros, brightness=ones, contrast=ones),
        **dict(saturation=ones, hue=zeros, grey=no, sigma=zeros, solarize=no),
        order=jnp.tile(jnp.arange(4)[None], (n, 1)),
    )
    policy = POLICY._replace(rotation=0.0, shear=0.0)
    got = on_device.render(images, v, size=12, policy=policy, in_turn=in_turn)
    np.testing.assert_allclose(got, on_device.as_float(images), atol=1e-6)
