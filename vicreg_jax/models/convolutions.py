"""Convolutions whose weight gradient a CPU computes fast; elsewhere they are jax's."""

import math
from typing import Any

import jax
from jax import export, lax

__all__ = ["conv_general_dilated"]

# Of the weight gradient of 3 x 3 kernels XLA makes on a CPU one convolution whose
# kernel is the whole batch, and gets slower the larger that is: 64 channels at
# 32 x 32, 128 images: 6 GFLOP/s, by 8 images at a time 34 to 51 (benchmarks.step).
IMAGES, PIXELS, PARTS = 8, 2048, 32  # of a part at least; parts at most
WORTH = 16_384  # pixels of a batch; for less the compiling takes longer than it saves


def conv_general_dilated(
    lhs: jax.Array, rhs: jax.Array, *args: Any, **options: Any
) -> jax.Array:
    """Returns what `jax.lax.conv_general_dilated` does of NHWC images, HWIO kernels.

    Compiled for a CPU, the gradient of the kernel is a sum over parts of the batch.

    Args:
      lhs: images [n, h, w, c]. rhs: kernel [kh, kw, c, f].
      *args, **options: those of that function.
    """

    def conv(lhs, rhs):
        return lax.conv_general_dilated(lhs, rhs, *args, **options)

    parts = _parts(lhs, jax.eval_shape(conv, lhs, rhs))
    if math.prod(rhs.shape[:2]) == 1 or parts < 2:
        return conv(lhs, rhs)

    def gradient(lhs, rhs, g):
        return jax.vjp(lambda kernel: conv(lhs, kernel), rhs)[1](g)[0]

    def in_parts(lhs, rhs, g):
        # Rows that lie together are of one device: it has some of each part.
        lhs, g = (x.reshape(len(x) // parts, parts, *x.shape[1:]) for x in (lhs, g))
        return sum(gradient(lhs[:, i], rhs, g[:, i]) for i in range(parts))

    @jax.custom_vjp
    def convolved(lhs, rhs):
        return conv(lhs, rhs)

    def forward(lhs, rhs):
        return conv(lhs, rhs), (lhs, rhs)

    def backward(kept, g):
        lhs, rhs = kept
        of_images = jax.vjp(lambda images: conv(images, rhs), lhs)[1](g)[0]
        of_kernel = lax.platform_dependent(lhs, rhs, g, cpu=in_parts, default=gradient)
        return of_images, of_kernel

    convolved.defvjp(forward, backward)
    return convolved(lhs, rhs)


def _parts(images: Any, made: Any) -> int:
    """Returns into how many parts a batch is divided."""
    if any(export.is_symbolic_dim(x) for x in made.shape):
        return 1  # of an export for any batch, which has no gradient
    mesh = getattr(jax.typeof(images).sharding, "mesh", None)
    rows = len(images) // max(mesh.size if mesh and not mesh.empty else 1, 1)
    pixels = math.prod(made.shape[1:3])
    if rows * pixels < WORTH:
        return 1
    least = max(IMAGES, PIXELS // pixels)
    most = min(rows // least, PARTS)
    return next((x for x in range(most, 1, -1) if rows % x == 0), 1)
