"""Vision transformers as timm builds them, so that published weights load exactly."""

import math
from functools import partial
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from vicreg_jax.models.norm import LayerNorm
from vicreg_jax.models.resnet import TORCH_DEFAULT
from vicreg_jax.refusals import Refusal

__all__ = ["POOLS", "VITS", "Shape", "VisionTransformer", "resized"]


class Shape(NamedTuple):
    """What tells the transformers of this family apart."""

    width: int  # of a token, and of the representation
    depth: int
    heads: int
    patch: int  # its height and width in pixels


SIZES = {"small": (384, 12, 6), "base": (768, 12, 12), "large": (1024, 24, 16)}
VITS = {
    f"vit_{size}_patch{patch}": Shape(*numbers, patch)
    for size, numbers in SIZES.items()
    for patch in (4, 8, 14, 16)
}
POOLS = ("token", "mean")

NORMAL = nn.initializers.normal(0.02)  # published as truncated, at 100 deviations


class Block(nn.Module):
    """Self-attention and a perceptron, each on normalized tokens and added to them."""

    heads: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dense = partial(nn.Dense, kernel_init=NORMAL, dtype=self.dtype)
        n, tokens, width = x.shape
        y = dense(3 * width, name="attn_qkv")(LayerNorm(name="norm1")(x))
        y = y.reshape(n, tokens, 3, self.heads, width // self.heads)
        y = _attention(*jnp.unstack(y, axis=2)).reshape(x.shape)
        x = x + dense(width, name="attn_proj")(y)
        y = dense(4 * width, name="mlp_fc1")(LayerNorm(name="norm2")(x))
        return x + dense(width, name="mlp_fc2")(nn.gelu(y, approximate=False))


class VisionTransformer(nn.Module):
    """Maps images [n, h, w, c] to representations [n, f] of the computation's dtype.

    And views [n, v, h, w, c] to [n, v, f]. h and w are multiples of the patch. Names of
    sub-modules are those of timm with "_" for ".".

    The position embeddings have the image size of `init`; for another they are
    interpolated, see `resized`.

    With the pool "token" the representation is the class token after a LayerNorm, with
    "mean" the mean of the patches, then a LayerNorm (timm's global_pool="avg").

    Raises:
      Refusal: the image is not divisible into patches.

    Source: arXiv:2010.11929 in the variant of timm, with its initialization: normal,
    0.02, for matrices and positions; PyTorch's own for the patches; a class token of
    1e-6.
    """

    shape: Shape = VITS["vit_small_patch16"]
    pool: str = "token"  # or another of POOLS
    dtype: jnp.dtype = jnp.float32
    takes_views = True

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
        width, depth, heads, patch = self.shape
        *batch, height, across, channels = x.shape
        if height % patch or across % patch:
            raise Refusal(
                f"images of {height} x {across} pixels do not divide into patches of"
                f" {patch}; give a multiple of {patch} as config.data.image_size, or"
                " take an encoder of another patch"
            )
        bound = (patch * patch * channels) ** -0.5
        x = nn.Conv(
            width,
            (patch, patch),
            strides=patch,
            padding="VALID",
            kernel_init=TORCH_DEFAULT,
            bias_init=lambda *key: jax.random.uniform(*key, -bound, bound),
            dtype=self.dtype,
            name="patch_embed_proj",
        )(x.astype(self.dtype).reshape(-1, height, across, channels))
        n, *grid, _ = x.shape
        x = x.reshape(n, math.prod(grid), width)
        token = self.param("cls_token", nn.initializers.normal(1e-6), (1, 1, width))
        token = jnp.broadcast_to(token.astype(x.dtype), (n, 1, width))
        x = jnp.concatenate([token, x], axis=1) + self._positions(grid).astype(x.dtype)
        for i in range(depth):
            x = Block(heads, self.dtype, name=f"blocks_{i}")(x)
        if self.pool == "token":
            y = LayerNorm(name="norm")(x[:, 0])
        else:
            y = LayerNorm(name="fc_norm")(jnp.mean(x[:, 1:], axis=1))
        return y.reshape(*batch, width)

    def _positions(self, grid):
        """Returns the embeddings [1, 1 + h w, f] of the class token and the patches."""
        if self.has_variable("params", "pos_embed"):  # perhaps of another grid
            return resized(self.get_variable("params", "pos_embed"), grid)
        return self.param("pos_embed", NORMAL, (1, 1 + math.prod(grid), self.shape[0]))


def _attention(q, k, v):
    """Returns values [n, t, heads, d] weighted by softmax(q k' / sqrt(d)).

    Logits are float32 or wider. jax.nn.dot_product_attention fails under strict dtype
    promotion in float64, and its softmax is float32.
    """
    if q.dtype != jnp.float64:
        q, k = q.astype(jnp.float32), k.astype(jnp.float32)
    logits = jnp.einsum("nqhd,nkhd->nhqk", q * q.shape[-1] ** -0.5, k)
    shares = jax.nn.softmax(logits, axis=-1).astype(v.dtype)
    return jnp.einsum("nhqk,nkhd->nqhd", shares, v)


def resized(positions: jax.Array, grid: tuple[int, int]) -> jax.Array:
    """Returns position embeddings [1, 1 + h w, f] for another grid of patches.

    Bicubic and antialiased as timm does it, in float32; the first, of the class token,
    stays.

    Args:
      positions: [1, 1 + s s, f], of a square grid unless it is that wanted.
      grid: h and w, in patches.
    """
    *_, count, width = positions.shape
    if count - 1 == math.prod(grid):
        return positions
    side = math.isqrt(count - 1)
    old = positions[0, 1:].reshape(side, side, width).astype(jnp.float32)
    new = jax.image.resize(old, (*grid, width), "cubic", antialias=True)
    new = new.reshape(1, -1, width).astype(positions.dtype)
    return jnp.concatenate([positions[:, :1], new], axis=1)
