"""A small encoder for pictures of a few pixels, such as handwritten digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.norm import BatchNorm
from vicreg_jax.models.resnet import convolution

__all__ = ["DigitsEncoder"]


class DigitsEncoder(nn.Module):
    """Maps images [n, h, w, c] to representations [n, 64 * width].

    Five 3 x 3 convolutions, with 2 x 2 average pooling after the third, and the mean
    over what is left of the image. h and w are at least 2. Views [n, v, h, w, c] become
    [n, v, 64 * width], each view with its own BatchNorm statistics.
    """

    width: int = 1
    dtype: jnp.dtype = jnp.float32
    takes_views = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x, views = x.astype(self.dtype), x.ndim == 5
        for i, features in enumerate((32, 32, 32, 64, 64), 1):
            features *= self.width
            x = convolution(features, 3, dtype=self.dtype, name=f"conv{i}")(x)
            x = nn.relu(BatchNorm(name=f"bn{i}")(x, train=train, views=views))
            if i == 3:
                x = nn.pool(x, 0.0, jax.lax.add, (2, 2), (2, 2), "VALID") / 4
        return jnp.mean(x, axis=(-3, -2))
