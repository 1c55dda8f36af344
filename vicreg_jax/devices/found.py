"""The devices of a process: found, or refused in one line; it never computes."""

import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vicreg_jax.devices import launchers, sharding
from vicreg_jax.refusals import NotInstalled, Refusal, one_line

__all__ = ["check_gpus", "environment", "mesh"]


def mesh(batch_size: int = 0) -> Mesh:
    """Returns the mesh of all devices, over which a batch, if any, can be divided.

    Raises:
      Refusal: the batch cannot, or jax does not start.
      NotInstalled: jax overlooks a GPU.
    """
    if _backend() == "cpu" and jax.config.jax_platforms != "cpu":
        gpus = _count(_listed_gpus())
        if gpus:
            raise NotInstalled(
                f"nvidia-smi sees {gpus} GPU(s) and jax none; run: pip install"
                ' "vicreg_jax[cuda]", or set JAX_PLATFORMS=cpu to train on the CPU'
            )
    found = sharding.data_mesh()
    size, devices = batch_size, found.size
    if size % devices:
        below = size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise Refusal(
            f"config.data.batch_size {size} cannot be divided over {devices} devices;"
            f" use {near}"
        )
    return found


def check_gpus(environ: Mapping[str, str] = os.environ) -> None:
    """Refuses to leave GPUs idle that this process, one of several, was given.

    It starts jax's devices.

    Raises:
      Refusal: one line from `launchers.idle_gpus`.
    """
    if _backend() != "gpu":
        return
    listed = _listed_gpus()
    # Of a GPU in parts (MIG) CUDA sees one.
    unknown = not listed or any("MIG" in line for line in listed)
    message = launchers.idle_gpus(
        environ,
        used=jax.local_device_count(),
        present=None if unknown else _count(listed),
    )
    if message:
        raise Refusal(message)


def environment() -> dict[str, Any]:
    """Returns where and with what a process runs, for the record."""
    return {
        "commit": _commit(),
        "devices": [device.device_kind for device in jax.devices()],
        "host_cores": os.cpu_count(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "started": time.strftime("%Y-%m-%d %H:%M:%S %z"),
    }


def memory_stats() -> dict[str, int]:
    """Returns what a device counts of its memory, nothing where it does not."""
    try:
        return jax.local_devices()[0].memory_stats() or {}
    except (NotImplementedError, RuntimeError):  # not every platform counts
        return {}


def _commit():
    """Returns the commit of a checkout of this package, "" where there is none."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists() or not shutil.which("git"):
        return ""
    command = ["git", "-C", str(root), "rev-parse", "HEAD"]
    return subprocess.run(command, capture_output=True, text=True).stdout.strip()


def _backend():
    """Starts jax, with what it says about devices in one line."""
    logger = logging.getLogger("jax._src.xla_bridge")
    level = logger.level
    logger.setLevel(logging.ERROR)  # it would announce the GPU that it does not use
    try:
        return jax.default_backend()
    except (RuntimeError, AssertionError) as error:
        reason = one_line(error) if str(error) else "it finds no such devices"
        raise Refusal(
            f"jax cannot start JAX_PLATFORMS={jax.config.jax_platforms}:"
            f" {reason}; install what it needs, such as vicreg_jax[cuda], or"
            " unset it"
        ) from error
    finally:
        logger.setLevel(level)


def _listed_gpus():
    """Returns the lines of `nvidia-smi -L`, none where it cannot tell."""
    if not shutil.which("nvidia-smi"):
        return []
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except subprocess.TimeoutExpired:
        return []
    return [] if listing.returncode else listing.stdout.splitlines()


def _count(listed):
    return sum(line.startswith("GPU ") for line in listed)
