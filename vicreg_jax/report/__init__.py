"""Pages of runs and figures in notebooks; it runs no encoder."""

from vicreg_jax.report.inline import show
from vicreg_jax.report.page import check_installed, write
from vicreg_jax.report.read import Gallery

__all__ = ["Gallery", "check_installed", "compare", "show", "write"]


def __getattr__(name):
    if name == "compare":  # it needs matplotlib
        from vicreg_jax.report.comparison import compare

        return compare
    raise AttributeError(f"module 'vicreg_jax.report' has no attribute {name!r}")
