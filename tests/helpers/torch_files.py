"""Tensors under PyTorch's names, and files of them."""

import zlib
from math import prod

import jax
import numpy as np
import pytest

from vicreg_jax import models
from vicreg_jax.weights import contents, torch_names

NO_TORCH = "PyTorch (the extra torch) is not installed"


def by_rule(name, shape):
    """A PyTorch tensor drawn from its own name, see golden/README.md."""
    v = np.random.default_rng(zlib.crc32(name.encode())).standard_normal(shape)
    if name.endswith("num_batches_tracked"):
        return np.zeros([], np.int64)
    if name.endswith("running_var"):
        return np.exp(0.1 * v)
    if name.endswith(("running_mean", "bias")):
        return 0.1 * v
    return 1 + 0.1 * v if len(shape) == 1 else v * np.sqrt(2 / prod(shape[1:]))


def shapes_of(module):
    """The state dict of a module, of zeros that occupy nothing."""
    shapes = contents.abstract(module, size=64, channels=3)
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    return torch_names.torch_views(zeros)


def drawn(module):
    """The state dict of a module in float32, drawn from the tensors' names."""
    tensors = {k: by_rule(k, v.shape) for k, v in shapes_of(module).items()}
    return {k: v if v.ndim == 0 else np.float32(v) for k, v in tensors.items()}


def saved(path, content):
    """Writes NumPy arrays as tensors, wherever they are in `content`."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    arrays = jax.tree.map(lambda x: torch.tensor(np.array(x)), content)
    torch.save(arrays, path)
    return path


def official(prefix="module."):
    """The authors' checkpoint: encoder and projector under "model", and more."""
    encoder = models.create("resnet18")
    module = models.JointEmbedding(encoder, models.Expander((32, 32, 16)))
    state_dict = drawn(module)
    model = {f"{prefix}{name}": value for name, value in state_dict.items()}
    return encoder, state_dict, {"epoch": 7, "model": model, "optimizer": {}}
