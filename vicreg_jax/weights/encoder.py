"""A trained encoder as one object; it trains none."""

from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax import models
from vicreg_jax.config import Config
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights.contents import normalization

__all__ = ["Encoder"]

SLACK = 0.5  # of pixels in [0, 1]: interpolation may overshoot


@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained encoder: a function of images, its parts, and where it comes from.

    Args:
      module: `module.apply(variables, normalized [n, h, w, c], train=False)` -> [n, f].
      variables: "params" and "batch_stats" of the module.
      mean, std: of the images that it takes, per channel, in [0, 1].
      image_size: height and width of the images that it was trained on, in pixels;
        None where nobody knows.
      expander: variables of the expander, where the source has one.
      config: of the run that trained it, where the source tells.
      step: of that run.
      source: the path that it was loaded from, or of its run.

    Raises:
      Refusal: mean, std and image size are not those of images.

    >>> class Mean(nn.Module):
    ...     def __call__(self, x, *, train):
    ...         return x.mean(axis=(1, 2))
    >>> encoder = Encoder(Mean(), {}, mean=[0.5], std=[0.25])
    >>> encoder(np.zeros([1, 8, 8, 1], np.uint8))
    Array([[-2.]], dtype=float32)
    """

    module: nn.Module
    variables: Mapping[str, Any] = field(repr=False)
    _: KW_ONLY
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int | None = None
    expander: Mapping[str, Any] | None = field(default=None, repr=False)
    config: Config | None = field(default=None, repr=False)
    step: int | None = None
    source: str = ""

    def __post_init__(self):
        mean, std = normalization(self.image_size, self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def known_size(self) -> int:
        """Returns the image size. Raises Refusal where nobody knows."""
        if self.image_size is None:
            stem = (models.spec(self.module) or {}).get("stem", "imagenet")
            small = f", and its stem {stem!r} is for small ones"
            raise Refusal(
                f"{self.source or 'the encoder'} does not say of which size its images"
                f" were{small if stem != 'imagenet' else ''}; give"
                " config.data.image_size, such as 32, for an export"
                " config.export.image_size, in Python dataclasses.replace(encoder,"
                " image_size=32)"
            )
        return self.image_size

    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Returns the representations of images, float32 [n, f], in inference mode.

        Args:
          images: uint8 or uint16 [n, h, w, c], or floats in [0, 1]. They are
            normalized here and seen as they are: not resized, not cropped.

        Raises:
          Refusal: arrays of another shape, type or range, such as normalized ones.
        """
        if not isinstance(images, jax.Array):
            images = np.asarray(images)
        shape, dtype = images.shape, images.dtype
        if len(shape) != 4 or shape[-1] != self.channels or 0 in shape[1:]:
            raise Refusal(
                f"expected images [n, h, w, {self.channels}]; got {list(shape)}"
            )
        whole = dtype in ("uint8", "uint16")
        if not whole and not jnp.issubdtype(dtype, jnp.floating):
            raise Refusal(
                f"expected images of uint8, uint16, or floats in [0, 1]; got {dtype}"
            )
        known = not whole and not isinstance(images, jax.core.Tracer)
        if known and images.size:
            low, high = float(images.min()), float(images.max())
            if not (-SLACK <= low and high <= 1 + SLACK):
                raise Refusal(
                    f"expected floats in [0, 1]; got {low:.3g} to {high:.3g}; give"
                    " uint8, divide by 255, or give normalized images to `apply`"
                )
        return self._represent(images)

    def apply(self, images: jax.Array) -> jax.Array:
        """Returns what the module makes of normalized images, in its own precision."""
        return self.module.apply(self.variables, images, train=False)

    @cached_property
    def _represent(self):
        @jax.jit
        def represent(variables, images):
            x = images.astype(jnp.float32)
            if jnp.issubdtype(images.dtype, jnp.integer):
                x = x / jnp.iinfo(images.dtype).max
            mean, std = jnp.asarray([self.mean, self.std], x.dtype)[:, None, None, None]
            y = self.module.apply(variables, (x - mean) / std, train=False)
            return y.astype(jnp.float32)

        with jax.ensure_compile_time_eval():  # the first call may be within a jit
            variables = jax.device_put(dict(self.variables))  # once, not at each call
        return partial(represent, variables)
