"""Residual networks as PyTorch builds them, so that published weights load exactly."""

from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.convolutions import conv_general_dilated
from vicreg_jax.models.norm import BatchNorm

__all__ = ["LAYERS", "STEMS", "Block", "Layers", "ResNet", "convolution"]


class Layers(NamedTuple):
    """What tells the networks of this family apart."""

    blocks: tuple[int, ...]  # of the four stages
    bottleneck: bool  # or basic blocks
    groups: int = 1  # of the 3 x 3 convolutions of bottlenecks: ResNeXt
    inner: int = 1  # factor on their channels: wide ResNets, ResNeXt
    deep: bool = False  # stem of three convolutions, shortcuts that average: ResNet-D


LAYERS = {
    "resnet18": Layers((2, 2, 2, 2), False),
    "resnet34": Layers((3, 4, 6, 3), False),
    "resnet50": Layers((3, 4, 6, 3), True),
    "resnet101": Layers((3, 4, 23, 3), True),
    "resnet152": Layers((3, 8, 36, 3), True),
    "resnet200": Layers((3, 24, 36, 3), True),
    "wide_resnet50_2": Layers((3, 4, 6, 3), True, inner=2),
    "wide_resnet50_4": Layers((3, 4, 6, 3), True, inner=4),
    "wide_resnet101_2": Layers((3, 4, 23, 3), True, inner=2),
    "resnext50_32x4d": Layers((3, 4, 6, 3), True, groups=32, inner=2),
    "resnext101_32x8d": Layers((3, 4, 23, 3), True, groups=32, inner=4),
    "resnext101_32x16d": Layers((3, 4, 23, 3), True, groups=32, inner=8),
    "resnext101_64x4d": Layers((3, 4, 23, 3), True, groups=64, inner=4),
    "resnet18d": Layers((2, 2, 2, 2), False, deep=True),
    "resnet34d": Layers((3, 4, 6, 3), False, deep=True),
    "resnet50d": Layers((3, 4, 6, 3), True, deep=True),
    "resnet101d": Layers((3, 4, 23, 3), True, deep=True),
    "resnet152d": Layers((3, 8, 36, 3), True, deep=True),
    "resnet200d": Layers((3, 24, 36, 3), True, deep=True),
}

FAN_OUT = nn.initializers.variance_scaling(2.0, "fan_out", "normal")
TORCH_DEFAULT = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")
# name -> kernel, stride, padding and initialization of the first convolution
STEMS = {
    "imagenet": (7, 2, 3, FAN_OUT),
    "cifar": (3, 1, 1, FAN_OUT),
    "solo_learn": (3, 1, 2, TORCH_DEFAULT),
}


def convolution(
    features, kernel, stride=1, pad=None, *, groups=1, init=FAN_OUT, dtype, name
):
    """Returns a convolution without bias, padded evenly and initialized as in PyTorch.

    On even sizes XLA's "SAME" pads a strided convolution unevenly: other features.
    """
    pad = (kernel - 1) // 2 if pad is None else pad
    return nn.Conv(
        features,
        (kernel, kernel),
        strides=stride,
        padding=((pad, pad), (pad, pad)),
        feature_group_count=groups,
        use_bias=False,
        kernel_init=init,
        conv_general_dilated=conv_general_dilated,
        dtype=dtype,
        name=name,
    )


class Block(nn.Module):
    """A residual block: two 3 x 3 convolutions, or 1 x 1, 3 x 3 and 1 x 1 (bottleneck).

    With `zero_init` the scale of the last normalization starts at zero, so the block
    starts as identity.
    """

    features: int  # of the 3 x 3 convolutions, but for the factor `layers.inner`
    stride: int
    layers: Layers
    zero_init: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        conv, views = partial(convolution, dtype=self.dtype), x.ndim == 5
        layers, stride = Layers(*self.layers), self.stride
        if layers.bottleneck:
            out, inner = 4 * self.features, layers.inner * self.features
            shapes = [(inner, 1, 1, 1), (inner, 3, stride, layers.groups)]
            shapes.append((out, 1, 1, 1))
        else:
            out = self.features
            shapes = [(out, 3, stride, 1), (out, 3, 1, 1)]
        y = x
        for i, (features, kernel, step, groups) in enumerate(shapes, 1):
            y = conv(features, kernel, step, groups=groups, name=f"conv{i}")(y)
            last = i == len(shapes)
            zero = last and self.zero_init
            init = dict(scale_init=nn.initializers.zeros) if zero else {}
            y = BatchNorm(**init, name=f"bn{i}")(y, train=train, views=views)
            y = y if last else nn.relu(y)
        if stride > 1 or x.shape[-1] != out:
            if layers.deep and stride > 1:
                x, stride = _averaged(x), 1
            x = conv(out, 1, stride, name="downsample_conv")(x)
            x = BatchNorm(name="downsample_bn")(x, train=train, views=views)
        return nn.relu(x + y)


class ResNet(nn.Module):
    """Maps images [n, h, w, c] to representations [n, f] of the computation's dtype.

    And views [n, v, h, w, c] to [n, v, f], each view with its own BatchNorm statistics.

    f is 512 * width with basic blocks, 2048 * width with bottlenecks. Names of
    sub-modules are those of PyTorch with "_" for ".".

    Source: arXiv:1512.03385 in the variant of torchvision and facebookresearch/vicreg:
    stride in the 3 x 3 convolution, kaiming-normal (fan out) convolutions, and, as the
    latter has it, a zero-initialized last scale of each block (arXiv:1706.02677). Wide
    ResNets and ResNeXt as torchvision, ResNet-D (arXiv:1812.01187) as timm builds them.
    """

    layers: Layers = LAYERS["resnet50"]
    width: int = 1
    stem: str = "imagenet"  # or another of STEMS
    zero_init: bool = True
    dtype: jnp.dtype = jnp.float32
    takes_views = True

    def block_names(self) -> list[str]:
        """Returns the names of the residual blocks, in order."""
        blocks = Layers(*self.layers).blocks
        return [f"layer{i}_{j}" for i, n in enumerate(blocks, 1) for j in range(n)]

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        layers = Layers(*self.layers)
        features = 64 * self.width
        x = x.astype(self.dtype)
        if layers.deep:
            x = self._deep_stem(x, features, train)
        else:
            kernel, stride, pad, init = STEMS[self.stem]
            options = dict(init=init, dtype=self.dtype, name="conv1")
            x = convolution(features, kernel, stride, pad, **options)(x)
        x = nn.relu(BatchNorm(name="bn1")(x, train=train, views=x.ndim == 5))
        if self.stem == "imagenet":
            flat = x.reshape(-1, *x.shape[-3:])  # flax pads images of one axis alone
            flat = nn.max_pool(flat, (3, 3), (2, 2), padding=((1, 1), (1, 1)))
            x = flat.reshape(*x.shape[:-3], *flat.shape[1:])
        for i, blocks in enumerate(layers.blocks):
            for j in range(blocks):
                x = Block(
                    features=features * 2**i,
                    stride=2 if i > 0 and j == 0 else 1,
                    layers=layers,
                    zero_init=self.zero_init,
                    dtype=self.dtype,
                    name=f"layer{i + 1}_{j}",
                )(x, train=train)
        return jnp.mean(x, axis=(-3, -2))

    def _deep_stem(self, x, features, train):
        """Three convolutions; names are those in PyTorch's Sequential, "_" for "."."""
        conv = partial(convolution, dtype=self.dtype)
        for i, stride in ((0, 2), (3, 1)):
            x = conv(features // 2, 3, stride, name=f"conv1_{i}")(x)
            norm = BatchNorm(name=f"conv1_{i + 1}")
            x = nn.relu(norm(x, train=train, views=x.ndim == 5))
        return conv(features, 3, name="conv1_6")(x)


def _averaged(x):
    """Returns the means of 2 x 2 pixels; at an odd end of those that there are."""
    flat = x.reshape(-1, *x.shape[-3:])  # flax pads images of one axis alone
    height, width = flat.shape[1:3]
    ends = ((0, height % 2), (0, width % 2))
    flat = nn.avg_pool(flat, (2, 2), (2, 2), ends, count_include_pad=False)
    return flat.reshape(*x.shape[:-3], *flat.shape[1:])
