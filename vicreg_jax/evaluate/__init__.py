"""Judges encoders by their frozen representations."""

from vicreg_jax.evaluate.few_labels import few_labels, save, show

__all__ = ["few_labels", "save", "show"]
