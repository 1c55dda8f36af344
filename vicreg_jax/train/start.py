"""The weights that a run starts from instead of random numbers; it trains nothing."""

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict

from vicreg_jax.config import Config
from vicreg_jax.evaluate.features import checksum
from vicreg_jax.methods import Method
from vicreg_jax.models import vit
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import contents, loading

__all__ = ["Start", "of_config", "of_variables", "placed"]


class Start(NamedTuple):
    """Variables by the part of a `models.JointEmbedding`; those of other parts are new.

    Each part has "params" and "batch_stats", float32 in host memory.
    """

    parts: Mapping[str, Mapping[str, Any]]
    words: str  # where they come from

    @property
    def checksum(self) -> int:
        return checksum(dict(self.parts))


def of_config(config: Config, method: Method) -> Start:
    """Returns what config.model.weights names: the encoder, on request the expander.

    Raises:
      Refusal: it cannot be read, holds another network, or saw images that were
        normalized otherwise.
    """
    path, mean, std = config.model.weights, config.data.mean, config.data.std
    try:
        found = loading.load(path, encoder=method.encoder, mean=mean, std=std)
    except Refusal as error:
        raise type(error)(f"config.model.weights: {error}") from error
    if (found.mean, found.std) != (mean, std):
        raise Refusal(
            f"config.model.weights: the images of {found.source} were normalized"
            f" otherwise; add --config.data.mean={_flag(found.mean)}"
            f" --config.data.std={_flag(found.std)}"
        )
    parts = {"encoder": found.variables}
    if config.model.weights_expander:
        if not found.expander:
            raise Refusal(
                f"config.model.weights_expander: {found.source} has no expander; leave"
                " it out, and the expander begins anew"
            )
        parts["expander"] = found.expander
    return _checked(parts, method, config, found.source)


def of_variables(variables: Any, config: Config, method: Method) -> Start:
    """Returns variables that the user gives: of the encoder, or of all parts.

    Raises:
      Refusal: they are neither, or of another network.
    """
    if not isinstance(variables, Mapping) or not isinstance(
        variables.get("params"), Mapping
    ):
        raise Refusal(
            "variables= are a mapping with 'params' and, of BatchNorm, 'batch_stats';"
            f" got {type(variables).__name__}"
        )
    own = contents.abstract(
        method.encoder, size=config.data.image_size, channels=len(config.data.mean)
    )
    given = variables["params"]
    whole = "encoder" in given and "encoder" not in own["params"]
    names = list(given) if whole else []
    parts = {name: contents.part(variables, name) for name in names}
    parts = parts or {"encoder": variables}
    return _checked(parts, method, config, "the variables given")


def placed(variables: dict[str, Any], parts: Mapping[str, Any]) -> dict[str, Any]:
    """Returns variables of a method with these parts; a target begins as their copy."""
    found = {name: dict(tree) for name, tree in variables.items() if name != "target"}
    target = variables.get("target", ())
    for name, own in parts.items():
        for collection, tree in own.items():
            found[collection][name] = jax.tree.map(jnp.copy, tree)
        if isinstance(target, Mapping) and name in target:
            target = {**target, name: jax.tree.map(jnp.copy, own["params"])}
    return found | {"target": target}


def _checked(parts, method, config, source):
    """Returns the start, if it has every array of its parts and no other."""
    size, channels = config.data.image_size, len(config.data.mean)
    wanted = contents.abstract(method.module, size=size, channels=channels)
    unknown = [name for name in parts if name not in wanted["params"]]
    if unknown:
        raise Refusal(
            f"{source} have a part {unknown[0]!r}; the run has"
            f" {', '.join(wanted['params'])}"
        )
    arrays = {}
    for name, own in parts.items():
        like = contents.part(wanted, name)
        own = _fitted(own, like)
        arrays[name] = jax.tree.map(np.asarray, {k: own.get(k, {}) for k in like})
        contents.check(*(flatten_dict(x, sep="/") for x in (own, like)), source)
    new = [name for name in wanted["params"] if name not in parts]
    words = f"{' and '.join(parts)} from {source}"
    return Start(arrays, words + (f", {' and '.join(new)} new" if new else ""))


def _fitted(own, like):
    """Returns variables with a ViT's positions interpolated to the run's image size."""
    found = own.get("params", {}).get("pos_embed")
    shape = np.shape(like.get("params", {}).get("pos_embed"))
    if np.ndim(found) != 3 or len(shape) != 3 or np.shape(found)[1] == shape[1]:
        return own
    side = math.isqrt(shape[1] - 1)  # images of a run are square
    moved = np.asarray(vit.resized(jnp.asarray(found), (side, side)))
    return {**own, "params": {**own["params"], "pos_embed": moved}}


def _flag(values):
    return f'"({", ".join(f"{x:g}" for x in values)},)"'
