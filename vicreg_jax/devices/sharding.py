"""Where arrays live: one mesh over all devices; it never computes anything."""

from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

__all__ = ["data_mesh", "divided", "place", "replicate", "rows", "split", "whole"]


SMALL = 2**14  # numbers of an array that is not worth dividing


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


def divided(mesh: Mesh, shapes: Any) -> Any:
    """Returns shardings that divide large arrays over the devices, as ZeRO does.

    Each along its longest axis that the number of devices divides; what is small, or
    has no such axis, every device holds in full.

    Args:
      shapes: tree of what has a shape.
    """

    def one(x):
        axes = [i for i, size in enumerate(x.shape) if size % mesh.size == 0]
        if not axes or np.prod(x.shape) < SMALL:
            return whole(mesh)
        axis = max(axes, key=lambda i: x.shape[i])
        names = [None] * axis + ["data"]
        return NamedSharding(mesh, PartitionSpec(*names))

    return jax.tree.map(one, shapes)


def place(x: np.ndarray, where: NamedSharding) -> jax.Array:
    """Returns an array that every process has, placed on the devices of all."""
    return jax.make_array_from_callback(x.shape, where, lambda index: x[index])


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Returns a tree of arrays, each wherever it is, held in full by every device."""
    return jax.jit(lambda tree: tree, out_shardings=whole(mesh))(tree)


def rows(batch_size: int) -> slice:
    """Returns the rows of the global batch that this process prepares."""
    share = batch_size // jax.process_count()
    return slice(jax.process_index() * share, (jax.process_index() + 1) * share)
