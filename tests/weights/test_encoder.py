"""The encoder as one object: what it takes, what it computes, what it refuses."""

import functools
from dataclasses import replace

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import yaml

from vicreg_jax import config, models
from vicreg_jax.evaluate import heads
from vicreg_jax.models.resnet import LAYERS
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import Encoder

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.25, 0.3)


class Flatten(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        assert not train
        return x.reshape(len(x), -1)


@functools.cache
def digits(**options):
    module = models.create("digits", **options)
    init = jax.jit(lambda: module.init(jax.random.key(0), IMAGES / 255.0, train=False))
    return Encoder(module, init(), mean=MEAN, std=STD, image_size=8)


IMAGES = np.random.default_rng(0).integers(0, 256, (5, 8, 8, 3), np.uint8)
FLAT = Encoder(Flatten(), {}, mean=MEAN, std=STD)


@pytest.mark.parametrize(
    "images",
    [
        IMAGES,
        jnp.asarray(IMAGES),
        IMAGES.astype(np.uint16) * 257,  # 65535 is 255 of them
        IMAGES / 255,
        np.float32(IMAGES / 255),
    ],
    ids=["uint8", "jax", "uint16", "float64", "float32"],
)
def test_images_are_normalized_as_the_encoder_wants_them(images):
    want = ((IMAGES / 255 - MEAN) / STD).reshape(5, -1)
    got = FLAT(images)
    assert isinstance(got, jax.Array) and got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)  # float32, values to 4


def test_half_precision_comes_in_and_never_out():
    half = jnp.asarray(IMAGES / 255, jnp.bfloat16)
    got = FLAT(half)
    want = ((np.asarray(half, np.float64) - MEAN) / STD).reshape(5, -1)
    assert got.dtype == jnp.float32
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)
    encoder = digits(dtype=jnp.bfloat16)
    assert encoder(IMAGES).dtype == jnp.float32
    normalized = jnp.asarray((IMAGES / 255 - MEAN) / STD, jnp.float32)
    assert encoder.apply(normalized).dtype == jnp.bfloat16


def test_features_are_those_of_the_module_in_inference_mode():
    encoder = digits()
    normalized = jnp.asarray((IMAGES / 255 - MEAN) / STD, jnp.float32)
    want = encoder.module.apply(encoder.variables, normalized, train=False)
    np.testing.assert_array_equal(encoder.apply(normalized), want)
    # Sums in another order: compiled, and normalized in float32.
    chex.assert_trees_all_close(encoder(IMAGES), want, rtol=1e-4, atol=1e-6)


def test_it_is_compiled_once_and_may_be_called_within_a_jit(monkeypatch):
    traced = []
    monkeypatch.setattr(
        Flatten, "__call__", lambda self, x, *, train: traced.append(0) or x[:, 0, 0]
    )
    encoder = replace(FLAT)  # compiles anew
    within = jax.jit(lambda x: encoder(x))(IMAGES)
    for _ in range(3):
        np.testing.assert_array_equal(encoder(IMAGES), within)
    assert len(traced) <= 2
    other = replace(encoder, mean=(0.0,) * 3, std=(1.0,) * 3)
    np.testing.assert_allclose(other(IMAGES), IMAGES[:, 0, 0] / 255.0, atol=1e-7)


@pytest.mark.parametrize(
    "images, message",
    [
        (IMAGES[0], r"expected images \[n, h, w, 3\]; got \[8, 8, 3\]"),
        (IMAGES.transpose(0, 3, 1, 2), r"\[n, h, w, 3\]; got \[5, 3, 8, 8\]"),
        (IMAGES[..., :1], r"\[n, h, w, 3\]; got \[5, 8, 8, 1\]"),
        (IMAGES.astype(np.int32), r"uint16, or floats in \[0, 1\]; got int32"),
        (IMAGES > 9, r"uint16, or floats in \[0, 1\]; got bool"),
        (IMAGES.astype(np.float32), r"in \[0, 1\]; got 0 to 255; give uint8"),
        ((IMAGES / 255 - MEAN) / STD, r"in \[0, 1\]; got -2.5 to .*normalized images"),
        (np.full((1, 8, 8, 3), np.nan), r"in \[0, 1\]; got nan to nan"),
    ],
)
def test_what_are_no_such_images_is_refused(images, message):
    with pytest.raises(Refusal, match=message) as error:
        FLAT(images)
    assert "\n" not in str(error.value)


def test_interpolation_may_overshoot_and_no_images_have_no_features():
    assert FLAT(np.full((1, 8, 8, 3), 1.1)).shape == (1, 192)
    assert digits()(IMAGES[:0]).shape == (0, 64)


@pytest.mark.parametrize(
    "wrong",
    [
        dict(mean=(0.5, np.nan, 0.5)),
        dict(std=(0.2, 0.0, 0.2)),
        dict(std=(0.2,)),
        dict(mean=(), std=()),
        dict(mean="abc"),
        dict(mean=None),
        dict(image_size=0),
        dict(image_size=7.5),
        dict(image_size="8"),
    ],
)
def test_what_normalizes_no_images_is_refused(wrong):
    with pytest.raises(Refusal, match="expected image_size >= 1 and one mean and std"):
        replace(FLAT, **wrong)


def test_its_picture_is_short():
    assert len(repr(digits())) < 500


# What a module is


SPECS = [
    {"name": name, "width": width, "dtype": dtype} | options
    for name in models.ENCODERS
    for width in ((1, 2) if name == "digits" or name in LAYERS else (1,))
    for dtype in ("float32", "bfloat16")
    for options in (
        [{"pool": pool} for pool in ("token", "mean")]
        if name.startswith("vit")
        else [{}]
        if name not in LAYERS
        else [
            {"stem": stem, "zero_init_residual": zero}
            for stem in ("imagenet", "cifar", "solo_learn")
            if stem == "imagenet" or not name.endswith("d")  # ResNet-D has its own
            for zero in (True, False)
        ]
    )
]


def test_a_module_tells_the_arguments_that_make_it():
    for spec in SPECS:
        module = models.create(**spec)
        assert models.spec(module) == spec
        assert models.create(**models.spec(module)) == module
        assert yaml.safe_load(str(spec)) == spec  # as a file keeps it


def test_a_module_of_ones_own_has_no_spec():
    class Mine(models.ResNet):
        pass

    for module in (Flatten(), Mine(), models.ResNet(((1, 1, 1, 1), True))):
        assert models.spec(module) is None


def test_the_config_of_a_run_tells_its_module():
    model = config.parse({"model": {"encoder": "resnet18", "stem": "cifar"}}).model
    want = {"name": "resnet18", "stem": "cifar", "width": 1, "dtype": "float32"}
    want["zero_init_residual"] = True
    assert model.spec() == want | {"pool": "token"}
    assert models.spec(models.create(**model.spec())) == want


@pytest.mark.parametrize("name", ["resnet18", "resnet200"])
def test_residual_blocks_are_told_in_order(name):
    module = models.create(name)
    shapes = jax.eval_shape(
        lambda x: module.init(jax.random.key(0), x, train=False),
        jax.ShapeDtypeStruct((1, 64, 64, 3), jnp.float32),
    )
    names = module.block_names()
    assert set(names) == set(shapes["params"]) - {"conv1", "bn1"}
    assert names[:2] == ["layer1_0", "layer1_1"]
    order = [tuple(map(int, x.removeprefix("layer").split("_"))) for x in names]
    assert order == sorted(order)


def test_heads_see_the_last_blocks_of_whoever_has_some():
    class Blocks(nn.Module):
        def block_names(self):
            return ["second", "first"]

        @nn.compact
        def __call__(self, x, *, train):
            for name in ("second", "other", "first"):
                x = nn.Dense(4, name=name)(x)
            return jnp.max(x, axis=(1, 2))

    module, images = Blocks(), jnp.ones((2, 8, 8, 3))
    variables = module.init(jax.random.key(0), images, train=False)
    seen = heads.features(module, variables, images, (0, 1, 2))
    widths = {layer: x.shape[1] for layer, x in seen.items()}
    assert widths == {"0": 4, "1": 4, "2": 8}
    np.testing.assert_allclose(seen["0"], seen["1"], rtol=1e-5)  # of equal pixels
    np.testing.assert_array_equal(seen["2"][:, 4:], seen["1"])
    with pytest.raises(ValueError, match="the last 3 residual .*the encoder has 2"):
        heads.features(module, variables, images, (3,))
