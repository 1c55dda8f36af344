"""Names, shapes and checksums of an encoder's tensors; what an export says of them."""

import hashlib
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax import files, models
from vicreg_jax.refusals import NotFound, Refusal, Unusable
from vicreg_jax.weights.torch_names import COUNTER, SHOWN

__all__ = [
    "DESCRIPTION",
    "FORMAT",
    "abstract",
    "check",
    "described",
    "description",
    "expander_of",
    "normalization",
    "part",
    "sha256",
]

DESCRIPTION = "encoder.json"  # beside the files of an export
FORMAT = "vicreg_jax encoder 1"
FIELDS = {  # of DESCRIPTION
    "version": str,
    "module": dict | None,
    "weights": str,
    "image_size": int,
    "mean": list,
    "std": list,
    "source": str,
    "step": int | None,
    "config": dict | None,
    "files": dict,
}


def normalization(size, mean, std):
    """Returns mean and std as tuples, if they and the size can be those of images.

    Raises:
      Refusal: they cannot.
    """
    try:
        mean, std = (tuple(float(x) for x in values) for values in (mean, std))
        good = len(mean) == len(std) >= 1 and bool(np.isfinite((*mean, *std)).all())
        good = good and min(std) > 0
        good = good and (size is None or 1 <= operator.index(size) < 2**16)
    except (TypeError, ValueError, OverflowError):
        good = False
    if not good:
        raise Refusal(
            "expected image_size >= 1 and one mean and std > 0 per channel; got"
            f" {size}, {mean} and {std}"
        )
    return mean, std


def description(folder: Path) -> dict[str, Any] | None:
    """Returns what an export wrote about its files, or None where there is none.

    Raises:
      Refusal: encoder.json is damaged, or of another version of this package.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    about = files.read_json(path)
    format = about.get("format") if isinstance(about, dict) else None
    if not str(format).startswith("vicreg_jax"):
        return None  # somebody else's file of that name
    if format != FORMAT:
        raise Refusal(f"{path} has format {format!r}; this version reads {FORMAT!r}")
    if odd := files.odd_fields(about, FIELDS):
        raise Refusal(
            f"{path}: {', '.join(odd)} missing or of another type; it is damaged or was"
            " changed: export again"
        )
    try:
        normalization(about["image_size"], about["mean"], about["std"])
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from error
    return about


def described(folder: Path) -> dict[str, Any]:
    """Returns what `description` does. Raises NotFound where there is no export."""
    about = description(folder)
    if about is None:
        raise NotFound(f"{folder} holds no export: no {DESCRIPTION}")
    return about


def sha256(path: Path) -> str:
    """Returns the checksum of a file. Raises Unusable where it cannot be read."""
    try:
        with files.at_hand(path) as local, local.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except Refusal:
        raise
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error


def abstract(module: nn.Module, *, size: int, channels: int) -> dict[str, Any]:
    """Returns the shapes and dtypes of a module's variables."""
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    key = jax.random.key(0)
    return jax.eval_shape(lambda x: module.init(key, x, train=False), images)


def part(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the variables of one sub-module."""
    return {
        collection: tree[name] for collection, tree in variables.items() if name in tree
    }


def expander_of(variables: Mapping[str, Any]) -> models.Expander:
    """Returns the module of an expander's variables, as far as they tell its widths."""
    params = variables.get("params", {})
    numbers = [int(name.removeprefix("linear")) for name in params if "linear" in name]
    layers = [params.get(f"linear{i}", {}) for i in range(max(numbers, default=0) + 1)]
    # A layer that is missing counts as 1; `check` names it.
    shapes = [np.shape(layer.get("kernel", 0)) or (1,) for layer in layers]
    return models.Expander(
        tuple(s[-1] for s in shapes),
        bias="bias" in layers[-1],
        hidden_norm="bn0" in params or len(layers) == 1,
        norm="batch" if f"bn{len(layers) - 1}" in params else "none",
    )


def check(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, Any], path: Path | str
) -> None:
    """Raises Refusal where names, shapes or dtypes are not those wanted."""
    found, wanted = (
        {
            name: f"{x.dtype.name}{list(x.shape)}"
            for name, x in tensors.items()
            if not name.endswith(f".{COUNTER}")
        }
        for tensors in (found, wanted)
    )
    faults = {
        "missing": [x for x in wanted if x not in found],
        "unknown": [
            x if x.isprintable() else ascii(x) for x in found if x not in wanted
        ],
        "of another shape or dtype": [
            f"{name} {found[name]} for {kind}"
            for name, kind in wanted.items()
            if found.get(name, kind) != kind
        ],
    }
    said = [
        f"{len(names)} {fault}: {', '.join(names[:SHOWN])}"
        for fault, names in faults.items()
        if names
    ]
    if said:
        raise Refusal(f"{path} does not fit the encoder; {'; '.join(said)}")
