"""Encoders with drawn variables, and files written of them."""

from dataclasses import replace
from math import prod

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vicreg_jax import config, models
from vicreg_jax.weights import Encoder, contents, export

MEAN, STD = config.Data().mean, config.Data().std


def encoder(module, *, size=32, run=None):
    """A module with variables that are drawn as if it were trained."""
    rng = np.random.default_rng(0)

    def draw(name, like):
        v = rng.standard_normal(like.shape)
        kind = name.rpartition("/")[2]
        scale = np.sqrt(2 / prod(like.shape[:-1])) if kind == "kernel" else 0.1
        shift = 1 if kind == "scale" else 0
        return np.asarray(
            np.exp(v * 0.1) if kind == "var" else shift + scale * v
        ).astype(like.dtype)

    shapes = flatten_dict(contents.abstract(module, size=size, channels=3), sep="/")
    variables = {name: draw(name, like) for name, like in shapes.items()}
    variables = unflatten_dict(variables, sep="/")
    return Encoder(
        module,
        variables,
        mean=MEAN,
        std=STD,
        image_size=size,
        config=run,
        step=12,
        source="runs/mine",
    )


def digits(**options):
    return encoder(models.create("digits", **options), size=8)


def written(given, folder, *formats, size=32):
    return export.write(replace(given, image_size=size), folder, formats=formats)


def images(n, size):
    return np.random.default_rng(1).standard_normal((n, size, size, 3), np.float32)
