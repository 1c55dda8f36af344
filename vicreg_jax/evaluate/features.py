"""Frozen representations of whole images: no crops, no gradients."""

from collections.abc import Mapping
from functools import partial
from typing import Any

import flax.linen as nn
import jax
import numpy as np

from vicreg_jax.config import Data
from vicreg_jax.data import pixels

BATCH = 256


def encode(
    encoder: nn.Module, variables: Mapping[str, Any], images: np.ndarray, data: Data
) -> np.ndarray:
    """Returns float32 [n, f]: the representations of uint8 images [n, h, w, c]."""
    apply = jax.jit(partial(_apply, encoder, data=data))
    parts = []
    for start in range(0, len(images), BATCH):
        batch = images[start : start + BATCH]
        padding = [(0, BATCH - len(batch))] + [(0, 0)] * 3  # one shape, one compilation
        parts.append(np.asarray(apply(variables, np.pad(batch, padding)))[: len(batch)])
    return np.concatenate(parts).astype(np.float32)


def _apply(encoder, variables, images, *, data):
    n, height, width = images.shape[:3]
    box = np.tile(np.array([0, 0, height, width], np.float32), (n, 1))
    views = pixels.crop_resize(pixels.as_float(images), box, size=data.image_size)
    views = pixels.normalize(views, mean=data.mean, std=data.std)
    return encoder.apply(variables, views, train=False)
