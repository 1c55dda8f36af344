"""PyTorch state dicts of the authors' layouts to variables and back: arrays only.

A state dict here maps names to NumPy arrays (`{k: v.numpy() for k, v in d.items()}`);
PyTorch itself is not needed.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np

Variables = dict[str, Any]  # "params" and "batch_stats"

STATISTICS = {"running_mean": "mean", "running_var": "var"}


def from_torch(state_dict: Mapping[str, np.ndarray]) -> Variables:
    """Returns the variables of an encoder, or of encoder and expander.

    Names may carry `module.`, as DistributedDataParallel saves them. With `backbone.*`
    and `projector.*` (the authors' full checkpoint, its entry "model") the result is
    that of `models.JointEmbedding`, with plain ResNet names that of the encoder. The
    counters `num_batches_tracked` have no counterpart and are dropped.

    Raises:
      ValueError: a name that belongs to neither layout, such as a classifier's.
    """
    variables = {"params": {}, "batch_stats": {}}
    for full_name, value in state_dict.items():
        name = full_name.removeprefix("module.")
        if name.endswith(".num_batches_tracked"):
            continue
        path, leaf = _path(name)
        value = np.asarray(value)
        if leaf in STATISTICS:
            collection, leaf = "batch_stats", STATISTICS[leaf]
        elif leaf == "bias":
            collection = "params"
        elif value.ndim == 1:
            collection, leaf = "params", "scale"
        else:
            collection, leaf = "params", "kernel"
            value = np.transpose(value, (2, 3, 1, 0) if value.ndim == 4 else (1, 0))
        node = variables[collection]
        for part in path:
            node = node.setdefault(part, {})
        node[leaf] = np.ascontiguousarray(value)
    return variables


def to_torch(variables: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """Returns the state dict of an encoder, or of encoder and expander.

    The inverse of `from_torch`, without `module.`; the counters are zero.
    """
    state_dict = {}
    for collection in ("params", "batch_stats"):
        for path, value in _leaves(variables[collection]):
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
                value = np.transpose(value, (3, 2, 0, 1) if value.ndim == 4 else (1, 0))
            state_dict[f"{name}.{leaf}"] = np.ascontiguousarray(value)
    return state_dict


def _path(name):
    """Splits a PyTorch name into our modules and PyTorch's leaf."""
    module, _, leaf = name.rpartition(".")
    path = []
    if module.startswith("backbone."):
        path, module = ["encoder"], module.removeprefix("backbone.")
    elif module.startswith("projector."):
        # Sequential: linear, norm and ReLU in turn.
        number = module.removeprefix("projector.")
        if number.isdigit() and int(number) % 3 < 2:
            block, kind = divmod(int(number), 3)
            return ["expander", f"{('linear', 'bn')[kind]}{block}"], leaf
    stem = re.fullmatch(r"(conv1|bn1)", module)
    block = re.fullmatch(r"layer(\d+)\.(\d+)\.(conv\d|bn\d|downsample\.[01])", module)
    if not (stem or block):
        raise ValueError(
            f"{name!r} is not of a ResNet ('conv1.weight', 'layer1.0.bn1.bias'), alone"
            " or under 'backbone.' with a 'projector.'; remove it if it is a classifier"
        )
    if stem:
        return [*path, module], leaf
    stage, number, part = block.groups()
    part = {"downsample.0": "downsample_conv", "downsample.1": "downsample_bn"}.get(
        part, part
    )
    return [*path, f"layer{stage}_{number}", part], leaf


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
