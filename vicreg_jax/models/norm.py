"""Batch normalization with PyTorch's running statistics, for any float dtype."""

import flax.linen as nn
import jax
import jax.numpy as jnp


class BatchNorm(nn.Module):
    """Normalizes the last axis by its mean and variance over all other axes.

    Under jit the statistics are those of the global batch; one call sees one view, so
    two views have their own statistics. They are computed in float32 (float64 stays)
    and so is the normalization; the result has the dtype of the input.

    Unlike Flax's own, the running variance is the unbiased one, as PyTorch keeps it (a
    batch is normalized with the biased one in both), and half precision passes under
    strict dtype promotion.
    """

    momentum: float = 0.9  # of the running statistics; PyTorch calls 1 - this momentum
    epsilon: float = 1e-5
    scale_init: nn.initializers.Initializer = nn.initializers.ones

    @nn.compact
    def __call__(self, x: jax.Array, *, train: bool) -> jax.Array:
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
            axes = tuple(range(x.ndim - 1))
            n = x.size // x.shape[-1]
            mean = jnp.mean(x, axes)
            # One pass over x: the two sums share one all-reduce on a mesh.
            var = jnp.maximum(jnp.mean(x**2, axes) - mean**2, 0)
            if not self.is_initializing():
                unbiased = var * (n / max(n - 1, 1))
                for old, new in ((running_mean, mean), (running_var, unbiased)):
                    new = new.astype(old.value.dtype)
                    old.value = self.momentum * old.value + (1 - self.momentum) * new
        else:
            mean, var = running_mean.value, running_var.value
        scale, bias, mean, var = (v.astype(x.dtype) for v in (scale, bias, mean, var))
        factor = scale * jax.lax.rsqrt(var + self.epsilon)
        broadcast = (1,) * (x.ndim - 1) + shape
        y = x * factor.reshape(broadcast)
        return (y + (bias - mean * factor).reshape(broadcast)).astype(dtype)
