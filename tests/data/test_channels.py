"""Images of 16 bits and of 1 to 16 channels, against float64 NumPy; what needs RGB."""

import jax.numpy as jnp
import numpy as np
import pytest

from vicreg_jax import config as configs
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw, on_device
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal

PLAIN = dict(saturation=0.0, hue=0.0, grey=0.0)


def noise(channels, dtype, n=8, side=6):
    most = np.iinfo(dtype).max
    rng = np.random.default_rng(channels)
    return rng.integers(0, most, (n, side, side, channels), dtype, endpoint=True)


def parsed(channels, **augment):
    mean, std = [0.25] * channels, [0.5] * channels
    data = dict(batch_size=8, image_size=6, mean=mean, std=std)
    return configs.parse(dict(data=data, augment=PLAIN | augment))


def rendered(images, config):
    made = batches.Batches(Arrays(images), config, sharding.data_mesh())
    numbers = plan.uniforms(0, 0, (8, 2, draw.NUMBERS))
    planned = plan.Plan(np.arange(8), numbers)
    batch = made.make(lambda step: planned, 0, slice(None))
    return np.asarray(made.render(made.resident(), batch))


WHOLE = dict(crop_scale=[1.0, 1.0], crop_ratio=[1.0, 1.0], flip=0.0, jitter=0.0)
WHOLE |= dict(blur=[0.0, 0.0], solarize=[0.0, 0.0])


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("channels", [1, 2, 4, 16])
def test_an_image_is_its_share_of_the_whole_range_normalized(channels, dtype):
    images = noise(channels, dtype)
    got = rendered(images, parsed(channels, **WHOLE))
    want = (images / float(np.iinfo(dtype).max) - 0.25) / 0.5
    for view in (got[:, 0], got[:, 1]):
        # Found: 5e-7; float32 of numbers up to 1.5.
        np.testing.assert_allclose(view, want, rtol=0, atol=2e-6)


def test_16_bits_of_8_are_the_8_bits():
    images = noise(4, np.uint8)
    deep = images.astype(np.uint16) * 257  # the same shares
    config = parsed(4)
    a, b = rendered(images, config), rendered(deep, config)
    # The same shares, each rounded to float32; std 0.5 doubles what differs.
    np.testing.assert_allclose(a, b, rtol=0, atol=2e-5)


def test_arrays_of_16_bits_are_read_and_seen_by_evaluations_as_they_are(tmp_path):
    images = noise(4, np.uint16)
    np.savez(tmp_path / "a.npz", images=images)
    found = open_arrays(str(tmp_path / "a.npz")).train
    assert found.channels == 4 and found.array.dtype == np.uint16
    seen = found.centres(np.array([3, 1]), size=6, shorter=6, channels=4)
    np.testing.assert_array_equal(seen, images[[3, 1]])


def test_contrast_of_other_channels_is_about_the_mean_of_each():
    x = on_device.as_float(jnp.asarray(noise(5, np.uint16)))
    got = on_device.contrast(x, jnp.full(8, 0.5))
    x = np.asarray(x, np.float64)
    want = 0.5 * x + 0.5 * x.mean(axis=(1, 2), keepdims=True)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-6)


@pytest.mark.parametrize("name", ["saturation", "hue", "grey"])
def test_what_needs_rgb_is_refused_by_name(name):
    with pytest.raises(Refusal, match=f"augment.{name} need RGB, .* has 4 channels"):
        parsed(4, **{name: 0.1})
    parsed(3, **{name: 0.1}), parsed(1, **{name: 0.1})
    if name != "grey":  # nothing is jittered
        parsed(4, jitter=0.0, **{name: 0.1})


def test_image_files_of_four_channels_are_refused():
    with pytest.raises(Refusal, match="files are read as RGB or grey; 4 channels"):
        ImageFiles(lambda i: b"", ["a"]).how(parsed(4), accelerator=False)


def test_other_types_and_channels_are_refused():
    with pytest.raises(Refusal, match=r"uint8 or uint16 .*; got int32"):
        Arrays(noise(4, np.int32))
    with pytest.raises(Refusal, match=r"has 4 channel\(s\); got uint16 \(8, 6, 6, 2\)"):
        rendered(noise(2, np.uint16), parsed(4))
