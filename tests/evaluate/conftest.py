"""Noisy images, and an encoder that has not been trained, for every evaluation."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.evaluations import CLASSES, SIZE

from vicreg_jax import config as configs
from vicreg_jax import models


@pytest.fixture(scope="module")
def trained():
    """An encoder with random weights, and a run's config that fits."""
    config = configs.parse(
        dict(data=dict(name="arrays", path="x", image_size=SIZE, mean=[0.4], std=[0.3]))
    )
    encoder = models.create("digits")
    images = jnp.zeros((2, SIZE, SIZE, 1))
    variables = encoder.init(jax.random.key(1), images, train=False)
    return config, encoder, variables


@pytest.fixture
def data(tmp_path):
    """Noisy images whose class is a bright row."""
    rng = np.random.default_rng(0)
    made = {}
    for part, n in (("", 52), ("test_", 30)):
        labels = np.arange(n) % CLASSES
        images = rng.integers(0, 150, (n, SIZE, SIZE, 1))
        images[np.arange(n), 2 * labels] += 105
        made |= {f"{part}images": images.astype(np.uint8), f"{part}labels": labels}
    np.savez(tmp_path / "data.npz", **made)
    return str(tmp_path / "data.npz")
