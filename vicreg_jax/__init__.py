"""VICReg and its relatives in JAX and Flax.

    import vicreg_jax as v

    terms = v.losses.vicreg(za, zb)  # one loss, anywhere
    v.train.run(config, "runs/mine")  # a whole pretraining run
    encoder = v.load("runs/mine")  # what it has learned, or anybody's weights

What is named here is public and comes when it is asked for: importing this package
imports nothing else.
"""

import importlib

__all__ = [
    "__version__",
    "config",
    "evaluate",
    "load",
    "losses",
    "methods",
    "models",
    "optim",
    "report",
    "train",
    "weights",
]

__version__ = "0.1.0"


def __getattr__(name):
    if name == "load":
        return importlib.import_module("vicreg_jax.weights").load
    if name in __all__:
        return importlib.import_module(f"vicreg_jax.{name}")
    raise AttributeError(f"module 'vicreg_jax' has no attribute {name!r}")


def __dir__():
    return sorted(__all__)
