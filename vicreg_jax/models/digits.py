"""A small encoder for pictures of a few pixels, such as handwritten digits."""

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.norm import BatchNorm
from vicreg_jax.models.resnet import convolution


class DigitsEncoder(nn.Module):
    """Maps images [n, h, w, c] to representations [n, 128 * width].

    Three 3 x 3 convolutions, 2 x 2 average pooling before the last, and the mean over
    what is left of the image.
    """

    width: int = 1
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        x = x.astype(self.dtype)
        for i, features in enumerate((32, 64, 128)):
            if i == 2:
                x = nn.avg_pool(x, (2, 2), (2, 2))
            conv = convolution(
                features * self.width, 3, dtype=self.dtype, name=f"conv{i}"
            )
            x = nn.relu(BatchNorm(name=f"bn{i}")(conv(x), train=train))
        return jnp.mean(x, axis=(1, 2))
