"""Normalizations with PyTorch's numbers, for any float dtype."""

import math

import flax.linen as nn
import jax
import jax.numpy as jnp

__all__ = ["BatchNorm", "LayerNorm"]


class BatchNorm(nn.Module):
    """Normalizes the last axis by its mean and variance over all other axes.

    Under jit the statistics are those of the global batch. With `views`, axis 1 is that
    of views: each has its own statistics in training, and the running ones follow in
    the order of the views, as if each had had a pass of its own. Statistics are
    computed in float32 (float64 stays) and so is the normalization; the result has the
    dtype of the input.

    Unlike Flax's own, the running variance is the unbiased one, as PyTorch keeps it (a
    batch is normalized with the biased one in both), and half precision passes under
    strict dtype promotion.
    """

    momentum: float = 0.9  # of the running statistics; PyTorch calls 1 - this momentum
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool, views: bool = False) -> jax.Array:
        shape = (x.shape[-1],)
        dtype = x.dtype
        if dtype != jnp.float64:
            x = x.astype(jnp.float32)
        scale = self.param("scale", self.scale_init, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        running_mean = self.variable(
            "batch_stats", "mean", jnp.zeros, shape, jnp.float32
        )
        running_var = self.variable("batch_stats", "var", jnp.ones, shape, jnp.float32)
        if train:
            kept = (1, x.ndim - 1) if views else (x.ndim - 1,)
            axes = tuple(i for i in range(x.ndim) if i not in kept)
            n = x.size // math.prod(x.shape[i] for i in kept)
            mean = jnp.mean(x, axes)  # [c], or [v, c]
            # One pass over x: the two sums share one all-reduce on a mesh.
            var = jnp.maximum(jnp.mean(x**2, axes) - mean**2, 0)
            if not self.is_initializing():
                unbiased = var * (n / max(n - 1, 1))
                for old, new in ((running_mean, mean), (running_var, unbiased)):
                    new = new.astype(old.value.dtype)
                    for one in jnp.unstack(new) if views else [new]:
                        old.value = (
                            self.momentum * old.value + (1 - self.momentum) * one
                        )
        else:
            kept = (x.ndim - 1,)
            mean, var = running_mean.value, running_var.value
        scale, bias, mean, var = (v.astype(x.dtype) for v in (scale, bias, mean, var))
        scale, bias = (v.reshape([1] * (mean.ndim - 1) + [-1]) for v in (scale, bias))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        broadcast = [size if i in kept else 1 for i, size in enumerate(x.shape)]
        y = x * factor.reshape(broadcast)
        return (y + (bias - mean * factor).reshape(broadcast)).astype(dtype)


class LayerNorm(nn.Module):
    """Normalizes the last axis of each row by its own mean and (biased) variance.

    Computed in float32 (float64 stays), in two passes; the result has the dtype of the
    input, which Flax's own refuses in half precision under strict dtype promotion.
    """

    epsilon: float = 1e-6  # timm's and torchvision's

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        dtype = x.dtype
        if dtype != jnp.float64:
            x = x.astype(jnp.float32)
        shape = (x.shape[-1],)
        scale = self.param("scale", nn.initializers.ones, shape, jnp.float32)
        bias = self.param("bias", nn.initializers.zeros, shape, jnp.float32)
        broadcast = [1] * (x.ndim - 1) + [-1]
        scale, bias = (v.astype(x.dtype).reshape(broadcast) for v in (scale, bias))
        x = x - jnp.mean(x, axis=-1, keepdims=True)
        variance = jnp.mean(x**2, axis=-1, keepdims=True)
        y = x * jax.lax.rsqrt(variance + self.epsilon)
        return (y * scale + bias).astype(dtype)
