"""Judges encoders by their frozen representations."""

from vicreg_jax.evaluate.probes import few_labels, gains, save, show

__all__ = ["few_labels", "gains", "save", "show"]
