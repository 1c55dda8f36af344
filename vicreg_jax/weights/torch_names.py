"""State dicts of PyTorch and Detectron2 to variables and back: arrays only, no files.

A state dict here maps names to NumPy arrays (`{k: v.numpy() for k, v in d.items()}`);
neither of the two is needed. torchvision and timm name the tensors of a ResNet as the
authors do.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Variables = dict[str, Any]  # "params" and "batch_stats"

STATISTICS = {"running_mean": "mean", "running_var": "var"}
LEAVES = ("weight", "bias", *STATISTICS, "num_batches_tracked")
SHOWN = 3  # names in a message


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Returns the variables of an encoder, or of encoder and expander, as copies.

    Names may carry `module.`, as DistributedDataParallel saves them. With `backbone.*`
    and `projector.*` (the authors' full checkpoint, its entry "model") the result is
    that of `models.JointEmbedding`, with plain ResNet names that of the encoder. The
    counters `num_batches_tracked` have no counterpart and are dropped.

    Raises:
      ValueError: names that belong to neither layout, such as a classifier's.

    >>> state_dict = {"bn1.weight": np.ones(64), "bn1.running_var": np.ones(64)}
    >>> variables = from_torch(state_dict)
    >>> variables["params"]["bn1"]["scale"].shape
    (64,)
    >>> to_torch(variables).keys() - state_dict.keys()
    {'bn1.num_batches_tracked'}
    """
    paths = {name: _path(name.removeprefix("module.")) for name in state_dict}
    unknown = [name for name, path in paths.items() if path is None]
    if unknown:
        raise Refusal(
            f"{listed(unknown)} is not of a ResNet ('conv1.weight',"
            " 'layer1.0.bn1.bias'), alone or under 'backbone.' with a 'projector.';"
            " remove a classifier and other prefixes; no other architecture is read"
        )
    variables = {"params": {}, "batch_stats": {}}
    for name, value in state_dict.items():
        *path, leaf = paths[name]
        if leaf == "num_batches_tracked":
            continue
        value = np.asarray(value)
        if leaf in STATISTICS:
            collection, leaf = "batch_stats", STATISTICS[leaf]
        elif leaf == "bias":
            collection = "params"
        elif value.ndim == 1:
            collection, leaf = "params", "scale"
        else:
            collection, leaf = "params", "kernel"
            value = np.transpose(value, (2, 3, 1, 0) if value.ndim == 4 else None)
        node = variables[collection]
        for part in path:
            node = node.setdefault(part, {})
        if leaf in node:
            raise Refusal(f"{name!r} comes twice, with and without 'module.'")
        node[leaf] = np.array(value, order="C")
    return variables


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict of an encoder, or of encoder and expander, as copies.

    The inverse of `from_torch`, without `module.`; the counters are zero.

    >>> to_torch({"params": {"conv1": {"kernel": np.ones((7, 7, 3, 64))}}})[
    ...     "conv1.weight"
    ... ].shape
    (64, 3, 7, 7)
    """
    views = torch_views(variables)
    return {name: np.array(value, order="C") for name, value in views.items()}


def torch_views(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns what `to_torch` does without copying: for a look at names and shapes."""
    state_dict = {}
    for collection in ("params", "batch_stats"):
        for path, value in _leaves(variables.get(collection, {})):
            value = np.asarray(value)
            *modules, leaf = path
            name = _name(modules)
            if leaf in STATISTICS.values():
                leaf = f"running_{leaf}"
                counter = np.zeros([], np.int64)
                state_dict.setdefault(f"{name}.num_batches_tracked", counter)
            elif leaf in ("kernel", "scale"):
                leaf = "weight"
            if value.ndim > 1:
                value = np.transpose(value, (3, 2, 0, 1) if value.ndim == 4 else None)
            state_dict[f"{name}.{leaf}"] = value
    return state_dict


def to_detectron2(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns an encoder's tensors under the names of Detectron2's ResNet, as copies.

    The stem is `stem.*`, stage i is `res{i + 1}`, a normalization belongs to its
    convolution (`res2.0.conv1.norm.weight`) and a projection is `shortcut`. Detectron2
    finds them below `backbone.` or `roi_heads.` by the ends of the names. The model
    must have RESNETS.STRIDE_IN_1X1 False and take RGB.

    Raises:
      ValueError: variables that are not those of an encoder alone.
    """
    if "encoder" in variables["params"]:
        raise Refusal(
            "Detectron2 takes an encoder alone; got the variables of encoder and"
            " expander: give {'params': params['encoder'], ...}"
        )
    found = {}
    for name, value in to_torch(variables).items():
        if not name.endswith(".num_batches_tracked"):
            name = re.sub(r"^(conv1|bn1)\.", r"stem.\1.", name)
            name = re.sub(r"^layer(\d)", lambda m: f"res{int(m[1]) + 1}", name)
            name = re.sub(r"\.bn(\d)\.", r".conv\1.norm.", name)
            name = name.replace(".downsample.0.", ".shortcut.")
            found[name.replace(".downsample.1.", ".shortcut.norm.")] = value
    return found


def listed(names: list[str]) -> str:
    """Returns the first few of some names, and how many there are."""
    first = ", ".join(repr(name) for name in names[:SHOWN])
    return first if len(names) <= SHOWN else f"{first}, ... ({len(names)} names)"


def _path(name):
    """Returns our modules and PyTorch's leaf, or None for a name of neither layout."""
    module, _, leaf = name.rpartition(".")
    path = []
    if module.startswith("backbone."):
        path, module = ["encoder"], module.removeprefix("backbone.")
    elif module.startswith("projector."):
        # Sequential: linear, norm and ReLU in turn.
        number = module.removeprefix("projector.")
        known = re.fullmatch("[0-9]{1,3}", number) and leaf in LEAVES
        if known and int(number) % 3 < 2:
            block, kind = divmod(int(number), 3)
            return ["expander", f"{('linear', 'bn')[kind]}{block}", leaf]
    stem = re.fullmatch(r"(conv1|bn1)", module)
    block = re.fullmatch(
        "layer([0-9])[.]([0-9]+)[.](conv[0-9]|bn[0-9]|downsample[.][01])", module
    )
    if not (stem or block) or leaf not in LEAVES:
        return None
    if stem:
        return [*path, module, leaf]
    stage, number, part = block.groups()
    part = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}.get(
        part, part
    )
    return [*path, f"layer{stage}_{number}", part, leaf]


def _name(modules):
    """Joins our modules to a PyTorch name; the inverse of `_path`."""
    if modules[0] == "expander":
        kind, block = re.fullmatch(r"(linear|bn)(\d+)", modules[1]).groups()
        return f"projector.{3 * int(block) + (kind == 'bn')}"
    if modules[0] == "encoder":
        return f"backbone.{_name(modules[1:])}"
    name = ".".join(modules).replace("_", ".", 1) if len(modules) > 1 else modules[0]
    return name.replace("downsample_conv", "downsample.0").replace(
        "downsample_bn", "downsample.1"
    )


def _leaves(tree, path=()):
    for key, value in tree.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, (*path, key))
        else:
            yield (*path, key), value
