"""Encoders as objects and as files: loaded, converted, exported; nothing is trained."""

from vicreg_jax.weights.encoder import Encoder
from vicreg_jax.weights.loading import load
from vicreg_jax.weights.torch_names import from_torch, to_torch

__all__ = ["Encoder", "from_torch", "load", "to_torch"]
