"""The report of a run: one HTML page and its figures; it runs no encoder."""

from vicreg_jax.report.page import check_installed, write
from vicreg_jax.report.read import Gallery

__all__ = ["Gallery", "check_installed", "write"]
