"""A trained encoder as one object, and what an export says of it; it trains none."""

import hashlib
import json
import operator
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass, field
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vicreg_jax import convert, models
from vicreg_jax.config import Config
from vicreg_jax.refusals import Refusal, Unusable, one_line

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
SLACK = 0.5  # of pixels in [0, 1]: interpolation may overshoot


@dataclass(frozen=True, eq=False)
class Encoder:
    """A trained encoder: a function of images, its parts, and where it comes from.

    Args:
      module: `module.apply(variables, normalized [n, h, w, c], train=False)` -> [n, f].
      variables: "params" and "batch_stats" of the module.
      mean, std: of the images that it takes, per channel, in [0, 1].
      image_size: height and width of the images that it was trained on, in pixels;
        None where nobody knows.
      expander: variables of the expander, where the source has one.
      config: of the run that trained it, where the source tells.
      step: of that run.
      source: the path that it was loaded from, or of its run.

    Raises:
      Refusal: mean, std and image size are not those of images.

    >>> class Mean(nn.Module):
    ...     def __call__(self, x, *, train):
    ...         return x.mean(axis=(1, 2))
    >>> encoder = Encoder(Mean(), {}, mean=[0.5], std=[0.25])
    >>> encoder(np.zeros([1, 8, 8, 1], np.uint8))
    Array([[-2.]], dtype=float32)
    """

    module: nn.Module
    variables: Mapping[str, Any] = field(repr=False)
    _: KW_ONLY
    mean: Sequence[float]
    std: Sequence[float]
    image_size: int | None = None
    expander: Mapping[str, Any] | None = field(default=None, repr=False)
    config: Config | None = field(default=None, repr=False)
    step: int | None = None
    source: str = ""

    def __post_init__(self):
        mean, std = _checked(self.image_size, self.mean, self.std)
        object.__setattr__(self, "mean", mean)
        object.__setattr__(self, "std", std)

    @property
    def channels(self) -> int:
        return len(self.mean)

    def known_size(self) -> int:
        """Returns the image size. Raises Refusal where nobody knows."""
        if self.image_size is None:
            stem = (models.spec(self.module) or {}).get("stem", "imagenet")
            small = f", and its stem {stem!r} is for small ones"
            raise Refusal(
                f"{self.source or 'the encoder'} does not say of which size its images"
                f" were{small if stem != 'imagenet' else ''}; give"
                " config.data.image_size, such as 32, for an export"
                " config.export.image_size, in Python dataclasses.replace(encoder,"
                " image_size=32)"
            )
        return self.image_size

    def __call__(self, images: np.ndarray | jax.Array) -> jax.Array:
        """Returns the representations of images, float32 [n, f], in inference mode.

        Args:
          images: uint8 [n, h, w, c], or floats in [0, 1]. They are normalized here and
            seen as they are: not resized, not cropped.

        Raises:
          Refusal: arrays of another shape, type or range, such as normalized ones.
        """
        if not isinstance(images, jax.Array):
            images = np.asarray(images)
        shape, dtype = images.shape, images.dtype
        if len(shape) != 4 or shape[-1] != self.channels:
            raise Refusal(
                f"expected images [n, h, w, {self.channels}]; got {list(shape)}"
            )
        if dtype != np.uint8 and not jnp.issubdtype(dtype, jnp.floating):
            raise Refusal(f"expected images of uint8, or floats in [0, 1]; got {dtype}")
        known = dtype != np.uint8 and not isinstance(images, jax.core.Tracer)
        if known and images.size:
            low, high = float(images.min()), float(images.max())
            if not (-SLACK <= low and high <= 1 + SLACK):
                raise Refusal(
                    f"expected floats in [0, 1]; got {low:.3g} to {high:.3g}; give"
                    " uint8, divide by 255, or give normalized images to `apply`"
                )
        return self._represent(images)

    def apply(self, images: jax.Array) -> jax.Array:
        """Returns what the module makes of normalized images, in its own precision."""
        return self.module.apply(self.variables, images, train=False)

    @cached_property
    def _represent(self):
        @jax.jit
        def represent(variables, images):
            x = images.astype(jnp.float32)
            x = x / 255 if images.dtype == jnp.uint8 else x
            mean, std = (
                jnp.asarray(values, jnp.float32).reshape(1, 1, 1, -1)
                for values in (self.mean, self.std)
            )
            y = self.module.apply(variables, (x - mean) / std, train=False)
            return y.astype(jnp.float32)

        with jax.ensure_compile_time_eval():  # the first call may be within a jit
            variables = jax.device_put(dict(self.variables))  # once, not at each call
        return partial(represent, variables)


def _checked(size, mean, std):
    """Returns mean and std as tuples, if they and the size can be those of images."""
    try:
        mean, std = (tuple(float(x) for x in values) for values in (mean, std))
        good = len(mean) == len(std) >= 1 and bool(np.isfinite((*mean, *std)).all())
        good = good and min(std) > 0
        good = good and (size is None or 1 <= operator.index(size) < 2**16)
    except (TypeError, ValueError):
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
    try:
        about = json.loads(path.read_text())
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise Refusal(f"{path} is no JSON: {one_line(error)}") from error
    format = about.get("format") if isinstance(about, dict) else None
    if not str(format).startswith("vicreg_jax"):
        return None  # somebody else's file of that name
    if format != FORMAT:
        raise Refusal(f"{path} has format {format!r}; this version reads {FORMAT!r}")
    odd = [x for x, kind in FIELDS.items() if not isinstance(about.get(x, ...), kind)]
    if odd:
        raise Refusal(
            f"{path}: {', '.join(odd)} missing or of another type; it is damaged or was"
            " changed: export again"
        )
    try:
        _checked(about["image_size"], about["mean"], about["std"])
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from error
    return about


def abstract(module: nn.Module, *, size: int, channels: int) -> dict[str, Any]:
    """Returns the shapes and dtypes of a module's variables."""
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    key = jax.random.key(0)
    return jax.eval_shape(lambda x: module.init(key, x, train=False), images)


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays under names such as params/conv1/kernel."""
    return flatten_dict(variables, sep="/")


def part(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the variables of one sub-module."""
    return {
        collection: tree[name] for collection, tree in variables.items() if name in tree
    }


def sha256(path: Path) -> str:
    """Returns the checksum of a file. Raises Unusable where it cannot be read."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Unusable(f"{path} cannot be read: {error.strerror}") from error


def expander_of(variables: Mapping[str, Any]) -> models.Expander:
    """Returns the module of an expander's variables, as far as they tell its widths."""
    params = variables.get("params", {})
    numbers = [int(name.removeprefix("linear")) for name in params if "linear" in name]
    layers = [params.get(f"linear{i}", {}) for i in range(max(numbers, default=0) + 1)]
    # A layer that is missing counts as 1; `check` names it.
    shapes = [np.shape(layer.get("kernel", 0)) or (1,) for layer in layers]
    return models.Expander(tuple(s[-1] for s in shapes), bias="bias" in layers[-1])


def check(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, Any], path: Path | str
) -> None:
    """Raises Refusal where names, shapes or dtypes are not those wanted."""
    found = {k: v for k, v in found.items() if not k.endswith(".num_batches_tracked")}
    wanted = {k: v for k, v in wanted.items() if not k.endswith(".num_batches_tracked")}
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [
            name if name.isprintable() else ascii(name)
            for name in found
            if name not in wanted
        ],
        "of another shape or dtype": [
            f"{name} {_kind(found[name])} for {_kind(x)}"
            for name, x in wanted.items()
            if name in found and _kind(found[name]) != _kind(x)
        ],
    }
    said = [
        f"{len(names)} {fault}: {', '.join(names[: convert.SHOWN])}"
        for fault, names in faults.items()
        if names
    ]
    if said:
        raise Refusal(f"{path} does not fit the encoder; {'; '.join(said)}")


def _kind(array):
    return f"{array.dtype.name}{list(array.shape)}"
