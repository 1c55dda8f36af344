"""The devices of a process: found, or refused in one line; it never computes."""

import logging
import os
import platform
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import jax
from jax.sharding import Mesh

from vicreg_jax import sharding


def mesh(batch_size: int = 0) -> Mesh:
    """Returns the mesh of all devices, over which a batch, if any, can be divided.

    Raises:
      ValueError: the batch cannot, jax does not start, or it overlooks a GPU.
    """
    backend = _backend()
    if backend == "cpu" and jax.config.jax_platforms != "cpu":
        _refuse_idle_gpu()
    found = sharding.data_mesh()
    size, devices = batch_size, found.size
    if size % devices:
        below = size // devices * devices
        near = f"{below} or {below + devices}" if below else f"{devices}"
        raise ValueError(
            f"config.data.batch_size {size} cannot be divided over {devices} devices;"
            f" use {near}"
        )
    return found


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


def _commit():
    """Returns the commit of a checkout of this package, "" where there is none."""
    root = Path(__file__).parents[1]
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
        wanted = jax.config.jax_platforms
        reason = " ".join(str(error).split())[:200]
        raise ValueError(
            f"jax cannot start JAX_PLATFORMS={wanted}: {reason}"
        ) from error
    finally:
        logger.setLevel(level)


def _refuse_idle_gpu():
    """Raises where there is an NVIDIA GPU and jax would train on the CPU instead."""
    if not shutil.which("nvidia-smi"):
        return
    command = ["nvidia-smi", "-L"]
    try:
        listing = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except subprocess.TimeoutExpired:
        return
    gpus = [line for line in listing.stdout.splitlines() if line.startswith("GPU")]
    if listing.returncode == 0 and gpus:
        raise ValueError(
            f"nvidia-smi sees {len(gpus)} GPU(s) and jax none; run: pip install"
            ' "vicreg_jax[cuda]", or set JAX_PLATFORMS=cpu to train on the CPU'
        )
