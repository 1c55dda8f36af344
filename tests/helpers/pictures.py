"""Pictures in folders, and the views that sources make of them."""

import numpy as np
from PIL import Image

from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import How

POLICY = batches.policies(Config())[1]._replace(blur=0.5)


def picture(seed, height, width):
    """A smooth colour picture, so that resizing is about shapes and not noise."""
    small = np.random.default_rng(seed).integers(0, 256, (5, 6, 3), np.uint8)
    return Image.fromarray(small).resize((width, height), Image.Resampling.BICUBIC)


def pictures(root, classes=("b", "a"), each=4, ending="png"):
    for c, name in enumerate(classes):
        (root / name).mkdir(parents=True)
        for i in range(each):
            image = picture(10 * c + i, 40 + 3 * i, 60 - 5 * i)
            image.save(root / name / f"{i}.{ending}")
    return root


def uniforms(b, seed=0):
    return plan.uniforms(seed, 0, (b, 2, draw.NUMBERS))


def assert_same_views(got, want):
    indices, numbers = np.array([7, 0, 3, 11, 3]), uniforms(5)
    got = got.views(indices, numbers, [POLICY] * 2, How("crops", 16))
    want = want.views(indices, numbers, [POLICY] * 2, How("crops", 16))
    np.testing.assert_array_equal(got[0], want[0])
    for x, y in zip(got[1], want[1], strict=True):
        np.testing.assert_array_equal(x, y)
