"""Tensors by name from the files that people have; nothing in a file is run."""

import argparse
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import jax.numpy as jnp
import numpy as np

from vicreg_jax.refusals import Refusal, Unusable, one_line, require
from vicreg_jax.weights import torch_names

__all__ = ["ENDINGS", "tensors"]

TORCH = (".pth", ".pt", ".ckpt", ".bin", ".pth.tar")
ENDINGS = (*TORCH, ".safetensors")
STATE_DICTS = ("state_dict", "model_state_dict", "model")  # where some files have it


def tensors(path: Path, local: Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a file by the names that they have there.

    Args:
      path: what a message calls it. local: where it lies on a disk.

    Raises:
      Refusal: it is damaged, of another kind, or holds something else.
      NotInstalled: reading it needs PyTorch or safetensors.
      Unusable: it cannot be read.
    """
    try:
        if path.name.endswith(TORCH):
            return _torch(path, local)
        if path.name.endswith(".safetensors"):
            library = require(
                "safetensors.numpy", f"reading {path}", install="safetensors"
            )
            return library.load_file(local)
    except Refusal:
        raise
    except PermissionError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    except Exception as error:  # whatever a damaged file makes the two raise
        raise Refusal(f"{path} is damaged: {one_line(error)}") from error
    raise Refusal(
        f"{path}: weights are read from {', '.join(ENDINGS)} files and from folders"
        " of runs and exports; pickles are never read"
    )


def _torch(path, local):
    torch = require("torch", f"reading {path}", install="vicreg_jax[torch]")
    zipped = zipfile.is_zipfile(local)  # not of old versions
    if zipped:
        with zipfile.ZipFile(local) as archive:  # PyTorch looks at no checksum
            if damaged := archive.testzip():
                raise Refusal(f"{path} is damaged: the checksum of {damaged} is wrong")
    options = dict(map_location="cpu", weights_only=True, mmap=zipped)
    try:
        # Many save their arguments beside the tensors: a class that does nothing.
        with torch.serialization.safe_globals([argparse.Namespace]):
            found = torch.load(local, **options)
    except UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"such as {name[1]}, " if name else ""
        raise Refusal(
            f"{path} holds more than tensors, {what}or is damaged; nothing in it was"
            " run. Save its state dict alone"
        ) from error
    for name in STATE_DICTS:
        if isinstance(found, Mapping) and isinstance(found.get(name), Mapping):
            found = found[name]
    if not isinstance(found, Mapping) or not found:
        what = f"a {type(found).__name__}" if not isinstance(found, Mapping) else "{}"
        raise Refusal(f"{path} holds {what}; expected tensors by name")
    others = [name for name in found if not isinstance(name, str)]
    others += [name for name, x in found.items() if not torch.is_tensor(x)]
    if others:
        raise Refusal(
            f"{path} holds {torch_names.listed(others)} beside tensors; expected"
            f" tensors by name, alone or under {', '.join(map(repr, STATE_DICTS))}"
        )
    return {name: _array(name, tensor, path, torch) for name, tensor in found.items()}


def _array(name: str, tensor: Any, path: Path, torch: Any) -> np.ndarray:
    tensor = tensor.detach()  # of a Parameter
    try:
        if tensor.dtype == torch.bfloat16:  # NumPy has it from ml_dtypes alone
            return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
        return tensor.numpy()
    except (RuntimeError, TypeError) as error:
        raise Refusal(
            f"{path}: {name!r} is {tensor.dtype}, {tensor.layout}, on"
            f" {tensor.device}; expected a dense tensor of torch.float32"
        ) from error
