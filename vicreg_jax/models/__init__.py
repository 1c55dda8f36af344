"""Encoders and heads: Linen modules, no losses, no training.

An encoder is any Linen module with `apply(variables, images [n, h, w, c], train=bool)`
-> representations [n, f]. Those here also take views [n, v, h, w, c] in one pass, and
say so by `takes_views`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vicreg_jax.models.convnext import CONVNEXTS, ConvNext, Stages
from vicreg_jax.models.digits import DigitsEncoder
from vicreg_jax.models.heads import Expander, JointEmbedding
from vicreg_jax.models.norm import BatchNorm
from vicreg_jax.models.resnet import LAYERS, STEMS, Layers, ResNet
from vicreg_jax.models.vit import POOLS, VITS, Shape, VisionTransformer
from vicreg_jax.refusals import Refusal

__all__ = [
    "ENCODERS",
    "BatchNorm",
    "ConvNext",
    "Expander",
    "JointEmbedding",
    "ResNet",
    "VisionTransformer",
    "create",
    "spec",
]

ENCODERS = ("digits", *LAYERS, *VITS, *CONVNEXTS)


def create(
    name: str,
    *,
    width: int = 1,
    stem: str = "imagenet",
    zero_init_residual: bool = True,
    pool: str = "token",
    dtype: jnp.dtype | str = jnp.float32,
) -> nn.Module:
    """Returns an encoder by name.

    Args:
      name: of `ENCODERS`: "resnet18" to "resnet200", "wide_resnet50_2" and so on as
        torchvision and timm name them; "vit_small_patch16", also base and large, of
        patch 4, 8, 14 or 16; "convnext_tiny", small, base; or "digits", a small network
        for pictures of 8 x 8 to 32 x 32.
      width: factor on all channels; 2 gives the published resnet50x2. ViT and ConvNeXt
        have widths of their own, by name.
      stem: of a ResNet, "imagenet" (7 x 7 of stride 2 and max-pooling), "cifar" (3 x 3
        of stride 1), or "solo_learn", that library's for CIFAR (padding 2, so that
        32 x 32 become 34 x 34, and PyTorch's default initialization); the others and
        ResNet-D ("resnet50d") have but one.
      zero_init_residual: of a ResNet: the scale of the last normalization of each
        residual block starts at zero, as in the authors' code.
      pool: of a ViT, what represents an image: the class "token", or the "mean" of the
        patches.
      dtype: of the computation; parameters and statistics are float32 in any case.

    Raises:
      ValueError: a name, width, stem or pool that there is not.

    >>> import jax
    >>> encoder, images = create("digits"), jnp.zeros((2, 8, 8, 1))
    >>> variables = encoder.init(jax.random.key(0), images, train=False)
    >>> encoder.apply(variables, images, train=False).shape
    (2, 64)
    """
    if name not in ENCODERS:
        raise Refusal(f"no encoder {name!r}; there are {', '.join(ENCODERS)}")
    if width < 1 or width != int(width):
        raise Refusal(f"the width is a whole number of at least 1; got {width}")
    if stem not in STEMS:
        raise Refusal(f"no stem {stem!r}; there are {', '.join(STEMS)}")
    if pool not in POOLS:
        raise Refusal(f"no pool {pool!r}; there are {', '.join(POOLS)}")
    dtype = jnp.dtype(dtype)
    if pool != "token" and name not in VITS:
        raise Refusal(
            f"{name} has no class token, so there is no pool to choose; got {pool!r}:"
            " leave it out"
        )
    if name in VITS or name in CONVNEXTS:
        if width != 1 or stem != "imagenet":
            raise Refusal(
                f"{name} has the width and the stem of its name; got width {width},"
                f" stem {stem!r}: leave them out, or take another of"
                f" {', '.join(VITS if name in VITS else CONVNEXTS)}"
            )
        if name in CONVNEXTS:
            return ConvNext(CONVNEXTS[name], dtype=dtype)
        return VisionTransformer(VITS[name], pool=pool, dtype=dtype)
    if name != "digits" and LAYERS[name].deep and stem != "imagenet":
        raise Refusal(
            f"{name} has a stem of its own, of three convolutions; got the stem"
            f" {stem!r}: leave it out, or take {name.removesuffix('d')}"
        )
    if name == "digits":
        return DigitsEncoder(width=width, dtype=dtype)
    return ResNet(
        LAYERS[name], width=width, stem=stem, zero_init=zero_init_residual, dtype=dtype
    )


def spec(module: nn.Module) -> dict[str, Any] | None:
    """Returns the arguments of `create` that make this module, as JSON.

    None for a module of the user's own, of whatever class.

    >>> spec(create("digits", width=2))
    {'name': 'digits', 'width': 2, 'dtype': 'float32'}
    """
    names, options = [], {}
    if type(module) is DigitsEncoder:
        names = ["digits"]
    elif type(module) is ResNet:
        names = [x for x, own in LAYERS.items() if own == Layers(*module.layers)]
        options = {"stem": module.stem, "zero_init_residual": module.zero_init}
    elif type(module) is VisionTransformer:
        names = [x for x, own in VITS.items() if own == Shape(*module.shape)]
        options = {"pool": module.pool}
    elif type(module) is ConvNext:
        names = [x for x, own in CONVNEXTS.items() if own == Stages(*module.stages)]
    if not names:
        return None
    width, dtype = getattr(module, "width", 1), jnp.dtype(module.dtype).name
    return {"name": names[0], "width": width, **options, "dtype": dtype}
