"""Features of augmented views, against views made one image at a time."""

import jax
import numpy as np
import pytest
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax.data import plan
from vicreg_jax.data.augment import draw, on_device
from vicreg_jax.data.batches import policies
from vicreg_jax.data.source import as_source
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate.augmented import augmented_features

N, SIZE = 150, 8  # more images than a batch of 128 has


def config(**augment):
    data = dict(name="arrays", path="x", image_size=SIZE, mean=[0.5], std=[0.25])
    return configs.parse(dict(seed=3, data=data, augment=augment))


def apply(variables, seen):
    return seen.reshape(len(seen), -1) @ variables


@pytest.fixture(scope="module")
def variables():
    return np.random.default_rng(0).normal(size=(SIZE * SIZE, 5)).astype(np.float32)


@pytest.fixture(scope="module")
def images():
    return np.random.default_rng(1).integers(0, 256, (N, 12, 12, 1)).astype(np.uint8)


def found(images, variables, given, *, rows=None, count=5, devices=8, **how):
    rows = np.arange(N) if rows is None else rows
    mesh = sharding.data_mesh(jax.devices()[:devices])
    how = dict(rows=rows, count=count, mesh=mesh, **how)
    return augmented_features(apply, variables, as_source(images), given, **how)


def test_each_view_is_augmented_by_its_own_numbers(images, variables):
    given, told = config(grey=0.0, jitter=0.0), []
    got = found(images, variables, given, progress=told.append)
    assert got.shape == (N, 5, 5) and got.dtype == np.float32
    assert told == [256 * i for i in range(1, 7)]  # 3 pairs of 2 batches
    for image, view in ((0, 0), (7, 1), (127, 4), (128, 2), (149, 3)):
        pair, block = view // 2, image // 128
        numbers = plan.uniforms(3, 2 * pair + block, (128, 2, draw.NUMBERS))
        row = image % 128
        one = draw.parameters(
            numbers[row : row + 1], np.array([12, 12]), policies(given)
        )
        own = jax.tree.map(lambda x, v=view % 2: x[:, v], one)
        seen = on_device.render(
            images[image : image + 1],
            own,
            size=SIZE,
            policy=policies(given)[view % 2],
        )
        seen = on_device.normalize(seen, mean=(0.5,), std=(0.25,))
        want = np.asarray(apply(variables, seen))[0]
        np.testing.assert_allclose(got[image, view], want, rtol=0, atol=1e-3)
    # No two views alike.
    assert len(np.unique(got.reshape(-1, 5), axis=0)) == N * 5


def test_one_device_sees_what_eight_see(images, variables):
    rows = np.array([5, 0, 149])
    one, eight = (
        found(images, variables, config(), rows=rows, count=4, devices=n)
        for n in (1, 8)
    )
    np.testing.assert_allclose(one, eight, rtol=0, atol=1e-3)


def test_image_files_are_seen_like_arrays_that_need_no_crop(variables, tmp_path):
    rng = np.random.default_rng(2)
    plain = dict(crop_scale=(1.0, 1.0), crop_ratio=(1.0, 1.0), flip=0.0)
    plain |= dict(jitter=0.0, grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0))
    arrays = rng.integers(0, 256, (4, SIZE, SIZE, 1)).astype(np.uint8)
    (tmp_path / "a").mkdir()
    for i, x in enumerate(arrays):
        Image.fromarray(x[..., 0]).save(tmp_path / "a" / f"{i}.png")
    rows = np.arange(4)
    a = found(arrays, variables, config(**plain), rows=rows)
    b = found(open_folder(tmp_path), variables, config(**plain), rows=rows)
    np.testing.assert_allclose(a, b, rtol=0, atol=1e-3)
    np.testing.assert_array_equal(a, np.repeat(a[:, :1], 5, axis=1))


def test_what_the_data_does_not_allow_is_refused(images, variables):
    with pytest.raises(ValueError, match="colour 'host' is for image files"):
        found(images, variables, config(colour="host"))
