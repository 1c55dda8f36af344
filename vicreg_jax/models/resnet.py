"""Residual networks as PyTorch builds them, so that published weights load exactly."""

from functools import partial

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.norm import BatchNorm

__all__ = ["LAYERS", "STEMS", "Block", "ResNet", "convolution"]

# name -> blocks of the four stages, bottleneck or basic block
LAYERS = {
    "resnet18": ((2, 2, 2, 2), False),
    "resnet34": ((3, 4, 6, 3), False),
    "resnet50": ((3, 4, 6, 3), True),
    "resnet101": ((3, 4, 23, 3), True),
    "resnet152": ((3, 8, 36, 3), True),
    "resnet200": ((3, 24, 36, 3), True),
}


FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
TORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# name -> kernel, stride, padding and initialization of the first convolution
STEMS = {
    "imagenet": (7, 2, 3, FAN_OUT),
    "cifar": (3, 1, 1, FAN_OUT),
    "solo_learn": (3, 1, 2, TORCH_DEFAULT),
}


def convolution(features, kernel, stride=1, pad=None, *, init=FAN_OUT, dtype, name):
    """Returns a convolution without bias, padded evenly and initialized as in PyTorch.

    On even sizes XLA's "SAME" pads a strided convolution unevenly: other features.
    """
    pad = (kernel - 1) // 2 if pad is None else pad
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        use_bias=False,
        kernel_init=init,
        dtype=dtype,
        name=name,
    )


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 (bottleneck).

    With `zero_init` the scale of the last normalization starts at zero, so the block
    starts as identity.
    """

    features: int  # of the 3 x 3 convolutions
    stride: int
    bottleneck: bool
    zero_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv, views = partial(convolution, dtype=self.dtype), x.ndim == 5
        if self.bottleneck:
            out = 4 * self.features
            shapes = [(self.features, 1, 1), (self.features, 3, self.stride)]
            shapes.append((out, 1, 1))
        else:
            out = self.features
            shapes = [(out, 3, self.stride), (out, 3, 1)]
        y = x
        for i, (features, kernel, stride) in enumerate(shapes, 1):
            y = conv(features, kernel, stride, name=f"conv{i}")(y)
            last = i == len(shapes)
            zero = last and self.zero_init
            init = dict(scale_init=nn.initializers.zeros) if zero else {}
            y = BatchNorm(**init, name=f"bn{i}")(y, train=train, views=views)
            y = y if last else nn.relu(y)
        if self.stride > 1 or x.shape[-1] != out:
            x = conv(out, 1, self.stride, name="downsample_conv")(x)
            x = BatchNorm(name="downsample_bn")(x, train=train, views=views)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Maps images [n, h, w, c] to representations [n, f] of the computation's dtype.

    And views [n, v, h, w, c] to [n, v, f], each view with its own BatchNorm statistics.

    f is 512 * width with basic blocks, 2048 * width with bottlenecks. Names of
    sub-modules are those of PyTorch with "_" for ".".

    Source: arXiv:1512.03385 in the variant of torchvision and facebookresearch/vicreg:
    stride in the 3 x 3 convolution, kaiming-normal (fan out) convolutions, and, as the
    latter has it, a zero-initialized last scale of each block (arXiv:1706.02677).
    """

    layers: tuple[tuple[int, ...], bool] = LAYERS["resnet50"]
    width: int = 1
    stem: str = "imagenet"  # or another of STEMS
    zero_init: bool = True
    dtype: jnp.dtype = jnp.float32
    takes_views = True

    def block_names(self) -> list[str]:
        """Returns the names of the residual blocks, in order."""
        stages, _ = self.layers
        return [f"layer{i}_{j}" for i, n in enumerate(stages, 1) for j in range(n)]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        stages, bottleneck = self.layers
        features = 64 * self.width
        conv = partial(convolution, dtype=self.dtype)
        x = x.astype(self.dtype)
        kernel, stride, pad, init = STEMS[self.stem]
        x = conv(features, kernel, stride, pad, init=init, name="conv1")(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, views=x.ndim == 5))
        if self.stem == "imagenet":
            flat = x.reshape(-1, *x.shape[-3:])  # flax pads images of one axis alone
            flat = nn.max_pool(flat, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
            x = flat.reshape(*x.shape[:-3], *flat.shape[1:])
        for i, blocks in enumerate(stages):
            for j in range(blocks):
                x = Block(
                    features=features * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    bottleneck=bottleneck,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    name=f"layer{i + 1}_{j}",
                )(x, train=train)
        return jnp.mean(x, axis=(-3, -2))
