"""A ViT and a ConvNeXt in float64 NumPy, of tensors by timm's names."""

import numpy as np
from scipy.special import erf

__all__ = ["numpy_convnext", "numpy_vit"]


def numpy_vit(tensors, images, *, heads, pool):
    """Returns the representations [n, f] of images [n, h, w, c]."""
    net = _Layers(tensors)
    x = _strided(net, "patch_embed.proj", images)
    x = x.reshape(len(x), -1, x.shape[-1])
    token = np.broadcast_to(net.t["cls_token"], (len(x), 1, x.shape[-1]))
    x = np.concatenate([token, x], axis=1) + net.t["pos_embed"]
    for i in range(sum(name.endswith("qkv.weight") for name in tensors)):
        y = net.linear(f"blocks.{i}.attn.qkv", net.norm(f"blocks.{i}.norm1", x))
        q, k, v = np.moveaxis(y.reshape(*y.shape[:2], 3, heads, -1), 2, 0)
        logits = np.einsum("nqhd,nkhd->nhqk", q, k) / np.sqrt(q.shape[-1])
        shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
        shares /= shares.sum(axis=-1, keepdims=True)
        y = np.einsum("nhqk,nkhd->nqhd", shares, v).reshape(x.shape)
        x = x + net.linear(f"blocks.{i}.attn.proj", y)
        x = x + net.perceptron(f"blocks.{i}", net.norm(f"blocks.{i}.norm2", x))
    if pool == "mean":
        return net.norm("fc_norm", x[:, 1:].mean(axis=1))
    return net.norm("norm", x)[:, 0]


def numpy_convnext(tensors, images, blocks):
    """Returns the representations [n, f] of images [n, h, w, c]."""
    net = _Layers(tensors)
    x = net.norm("stem.1", _strided(net, "stem.0", images))
    for i, count in enumerate(blocks):
        if i:
            x = net.norm(f"stages.{i}.downsample.0", x)
            x = _strided(net, f"stages.{i}.downsample.1", x)
        for j in range(count):
            name = f"stages.{i}.blocks.{j}"
            y = net.norm(f"{name}.norm", _depthwise(net, f"{name}.conv_dw", x))
            x = x + net.t[f"{name}.gamma"] * net.perceptron(name, y)
    return net.norm("head.norm", x.mean(axis=(1, 2)))


class _Layers:
    def __init__(self, tensors):
        self.t = {name: np.asarray(x, np.float64) for name, x in tensors.items()}

    def linear(self, name, x):
        return x @ self.t[f"{name}.weight"].T + self.t[f"{name}.bias"]

    def norm(self, name, x):
        x = x - x.mean(axis=-1, keepdims=True)
        x = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-6)
        return x * self.t[f"{name}.weight"] + self.t[f"{name}.bias"]

    def perceptron(self, name, x):
        x = self.linear(f"{name}.mlp.fc1", x)
        return self.linear(f"{name}.mlp.fc2", x * (1 + erf(x / np.sqrt(2))) / 2)


def _strided(net, name, x):
    """A convolution whose stride is its kernel: a product for each patch."""
    kernel = net.t[f"{name}.weight"]
    out, channels, size, _ = kernel.shape
    n, height, width, _ = x.shape
    x = x.reshape(n, height // size, size, width // size, size, channels)
    return np.einsum("nhiwjc,ocij->nhwo", x, kernel) + net.t[f"{name}.bias"]


def _depthwise(net, name, x):
    kernel, (_, height, width, _) = net.t[f"{name}.weight"], x.shape
    x = np.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)))
    return net.t[f"{name}.bias"] + sum(
        kernel[:, 0, i, j] * x[:, i : i + height, j : j + width]
        for i in range(7)
        for j in range(7)
    )
