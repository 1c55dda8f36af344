"""The report of a run: one HTML page and its figures; it runs no encoder."""

from vicreg_jax.report.read import Gallery
from vicreg_jax.report.write import check_installed, write

__all__ = ["Gallery", "check_installed", "write"]
