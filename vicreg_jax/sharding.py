"""Where arrays live: one mesh over all devices; it never computes anything."""

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec


def data_mesh(devices: list[jax.Device] | None = None) -> Mesh:
    """Returns a mesh of one axis, "data", over all devices or those given.

    The axis is of type Auto: code is written for the global batch and jit finds the
    collectives. (`jax.make_mesh` alone would make it Explicit.)
    """
    devices = jax.devices() if devices is None else devices
    return Mesh(np.asarray(devices), ("data",), axis_types=(AxisType.Auto,))


def whole(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of what every device holds in full: parameters, scalars."""
    return NamedSharding(mesh, PartitionSpec())


def split(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: its first axis is divided over the devices."""
    return NamedSharding(mesh, PartitionSpec("data"))


def rows(batch_size: int) -> slice:
    """Returns the rows of the global batch that this process prepares."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
