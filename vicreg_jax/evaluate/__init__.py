"""Judges encoders by their frozen representations."""

from vicreg_jax.evaluate.features import encode
from vicreg_jax.evaluate.probes import (
    check,
    check_installed,
    few_labels,
    gains,
    save,
    show,
)

__all__ = [
    "check",
    "check_installed",
    "encode",
    "few_labels",
    "gains",
    "save",
    "show",
]
