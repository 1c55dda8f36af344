"""The devices of a process, and of all processes together; nothing here trains."""

from vicreg_jax.devices.found import check_gpus, environment, mesh

__all__ = ["check_gpus", "environment", "mesh"]
