"""Encoders and heads: Linen modules, no losses, no training.

An encoder is any Linen module with `apply(variables, images [n, h, w, c], train=bool)`
-> representations [n, f]. Those here also take views [n, v, h, w, c] in one pass, and
say so by `takes_views`.
"""

from typing import Any

import flax.linen as nn
import jax.numpy as jnp

from vicreg_jax.models.digits import DigitsEncoder
from vicreg_jax.models.heads import Expander, JointEmbedding
from vicreg_jax.models.norm import BatchNorm
from vicreg_jax.models.resnet import LAYERS, STEMS, Layers, ResNet
from vicreg_jax.refusals import Refusal

__all__ = [
    "ENCODERS",
    "BatchNorm",
    "Expander",
    "JointEmbedding",
    "ResNet",
    "create",
    "spec",
]

ENCODERS = ("digits", *LAYERS)


def create(
    name: str,
    *,
    width: int = 1,
    stem: str = "imagenet",
    zero_init_residual: bool = True,
    dtype: jnp.dtype | str = jnp.float32,
) -> nn.Module:
    """Returns an encoder by name.

    Args:
      name: of `ENCODERS`: "resnet18" to "resnet200", "wide_resnet50_2" and so on as
        torchvision and timm name them; or "digits", a small network for pictures of
        8 x 8 to 32 x 32.
      width: factor on all channels; 2 gives the published resnet50x2.
      stem: of a ResNet, "imagenet" (7 x 7 of stride 2 and max-pooling), "cifar" (3 x 3
        of stride 1), or "solo_learn", that library's for CIFAR (padding 2, so that
        32 x 32 become 34 x 34, and PyTorch's default initialization); "digits" and
        ResNet-D ("resnet50d") have but one.
      zero_init_residual: of a ResNet: the scale of the last normalization of each
        residual block starts at zero, as in the authors' code.
      dtype: of the computation; parameters and statistics are float32 in any case.

    Raises:
      ValueError: a name, width or stem that there is not.

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
    dtype = jnp.dtype(dtype)
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
    names = []
    if type(module) is DigitsEncoder:
        names, options = ["digits"], {}
    elif type(module) is ResNet:
        own = Layers(*module.layers)
        names = [name for name, layers in LAYERS.items() if layers == own]
        options = {"stem": module.stem, "zero_init_residual": module.zero_init}
    if not names:
        return None
    dtype = jnp.dtype(module.dtype).name
    return {"name": names[0], "width": module.width, **options, "dtype": dtype}
