"""Judges encoders by their frozen representations."""

from vicreg_jax.evaluate.features import encode
from vicreg_jax.evaluate.probes import check, few_labels, gains, save, show

__all__ = ["check", "encode", "few_labels", "gains", "save", "show"]
