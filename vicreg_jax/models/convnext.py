"""ConvNeXt as PyTorch builds it, so that published weights load exactly."""

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.norm import LayerNorm
from vicreg_jax.refusals import Refusal

__all__ = ["CONVNEXTS", "ConvNext", "Stages"]


class Stages(NamedTuple):
    """What tells the networks of this family apart, stage by stage."""

    blocks: tuple[int, ...]
    widths: tuple[int, ...]


CONVNEXTS = {
    "convnext_tiny": Stages((3, 3, 9, 3), (96, 192, 384, 768)),
    "convnext_small": Stages((3, 3, 27, 3), (96, 192, 384, 768)),
    "convnext_base": Stages((3, 3, 27, 3), (128, 256, 512, 1024)),
}

NORMAL = nn.initializers.normal(0.02)  # published as truncated, at 100 deviations


def _convolution(features, kernel, stride, pad=0, *, groups=1, dtype, name):
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        kernel_init=NORMAL,
        dtype=dtype,
        name=name,
    )


class Block(nn.Module):
    """A 7 x 7 convolution of each channel, a perceptron of each pixel, and their scale.

    The scale starts at 1e-6, so the block starts as identity.
    """

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        y = _convolution(
            width, 7, 1, 3, groups=width, dtype=self.dtype, name="conv_dw"
        )(x)
        y = LayerNorm(name="norm")(y)
        for i, features in ((1, 4 * width), (2, width)):
            y = nn.Dense(
                features, kernel_init=NORMAL, dtype=self.dtype, name=f"mlp_fc{i}"
            )(y)
            y = nn.gelu(y, approximate=False) if i == 1 else y
        gamma = self.param("gamma", nn.initializers.constant(1e-6), (width,))
        return x + y * gamma.astype(y.dtype).reshape(1, 1, 1, width)


class ConvNext(nn.Module):
    """Maps images [n, h, w, c] to representations [n, f] of the computation's dtype.

    And views [n, v, h, w, c] to [n, v, f]. f is 768, of "base" 1024. Names of
    sub-modules are those of timm with "_" for ".".

    Raises:
      Refusal: images of less than 32 x 32 pixels, of which nothing would be left.

    Source: arXiv:2201.03545 with its initialization (weights normal, 0.02), as timm and
    torchvision build it: the mean over pixels, then a LayerNorm.
    """

    stages: Stages = CONVNEXTS["convnext_tiny"]
    dtype: jnp.dtype = jnp.float32
    takes_views = True

    def block_names(self) -> list[str]:
        """Returns the names of the residual blocks, in order."""
        blocks = Stages(*self.stages).blocks
        return [
            f"stages_{i}_blocks_{j}" for i, n in enumerate(blocks) for j in range(n)
        ]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        *batch, height, across, channels = x.shape
        if min(height, across) < 32:
            raise Refusal(
                f"a ConvNeXt needs images of 32 x 32 pixels or more; got {height} x"
                f" {across}: raise config.data.image_size"
            )
        x = x.astype(self.dtype).reshape(-1, height, across, channels)
        for i, (blocks, width) in enumerate(zip(*self.stages, strict=True)):
            if i == 0:
                x = _convolution(width, 4, 4, dtype=self.dtype, name="stem_0")(x)
                x = LayerNorm(name="stem_1")(x)
            else:
                place = f"stages_{i}_downsample"
                x = LayerNorm(name=f"{place}_0")(x)
                x = _convolution(width, 2, 2, dtype=self.dtype, name=f"{place}_1")(x)
            for j in range(blocks):
                x = Block(self.dtype, name=f"stages_{i}_blocks_{j}")(x)
        y = LayerNorm(name="head_norm")(jnp.mean(x, axis=(1, 2)))
        return y.reshape(*batch, y.shape[-1])
