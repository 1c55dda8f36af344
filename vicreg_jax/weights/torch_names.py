"""State dicts of PyTorch and Detectron2 to variables and back: arrays only, no files.

A state dict here maps names to NumPy arrays (`{k: v.numpy() for k, v in d.items()}`);
neither of the two is needed. torchvision and timm name the tensors of a ResNet as the
authors do; those of a ViT or ConvNeXt have timm's names.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vicreg_jax.refusals import Refusal

__all__ = ["from_torch", "listed", "to_detectron2", "to_torch", "torch_views"]

Variables = dict[str, Any]  # "params" and "batch_stats"

MOST = 100  # blocks of a stage, layers of an expander; the deepest ResNet here has 36
SHOWN = 3  # names in a message
COUNTER = "num_batches_tracked"


WHOLE = ("cls_token", "pos_embed", "gamma")  # parameters that no module has within
_VIT_AND_CONVNEXT = {
    name.replace(".", "_"): name
    for name in (
        *("patch_embed.proj", "norm", "fc_norm", "cls_token", "pos_embed"),
        *("stem.0", "stem.1", "head.norm"),
        *(f"stages.{i}.downsample.{j}" for i in range(1, 4) for j in (0, 1)),
    )
} | {
    f"{block.replace('.', '_')}/{name.replace('.', '_')}": f"{block}.{name}"
    for blocks, names in (
        (
            [f"blocks.{i}" for i in range(MOST)],
            ("norm1", "attn.qkv", "attn.proj", "norm2", "mlp.fc1", "mlp.fc2"),
        ),
        (
            [f"stages.{i}.blocks.{j}" for i in range(4) for j in range(MOST)],
            ("conv_dw", "norm", "mlp.fc1", "mlp.fc2", "gamma"),
        ),
    )
    for block in blocks
    for name in names
}


def _modules(*, deep):
    """Returns our modules and PyTorch's: of an encoder, alone or with an expander.

    Args:
      deep: of ResNet-D, whose stem is a Sequential, and whose shortcuts begin with a
        pooling that has a number, too.
    """
    block = {f"{kind}{i}": f"{kind}{i}" for i in (1, 2, 3) for kind in ("conv", "bn")}
    block |= {
        f"downsample_{x}": f"downsample.{i + deep}" for i, x in ((0, "conv"), (1, "bn"))
    }
    encoder = {"conv1": "conv1", "bn1": "bn1"} | _VIT_AND_CONVNEXT
    encoder |= {f"conv1_{i}": f"conv1.{i}" for i in (0, 1, 3, 4, 6)}
    encoder |= {
        f"layer{i}_{j}/{ours}": f"layer{i}.{j}.{theirs}"
        for i in (1, 2, 3, 4)
        for j in range(MOST)
        for ours, theirs in block.items()
    }
    return (
        encoder
        | {f"encoder/{ours}": f"backbone.{theirs}" for ours, theirs in encoder.items()}
        # Sequential: linear, norm and ReLU in turn.
        | {f"expander/linear{i}": f"projector.{3 * i}" for i in range(MOST)}
        | {f"expander/bn{i}": f"projector.{3 * i + 1}" for i in range(MOST)}
    )


MODULES = {deep: _modules(deep=deep) for deep in (False, True)}
LEAVES = {
    "params/kernel": "weight",
    "params/scale": "weight",  # the one of a normalization, which is a vector
    "params/bias": "bias",
    "batch_stats/mean": "running_mean",
    "batch_stats/var": "running_var",
    "params": "",  # of WHOLE
}
_OUR_MODULES = {
    deep: {theirs: ours for ours, theirs in table.items()}
    for deep, table in MODULES.items()
}
_OUR_LEAVES = {theirs: ours for ours, theirs in LEAVES.items()}

_DETECTRON2 = (  # PyTorch's names to Detectron2's, one after another
    (r"^(conv1|bn1)\.", r"stem.\1."),
    (r"^layer(\d)", lambda found: f"res{int(found[1]) + 1}"),
    (r"\.bn(\d)\.", r".conv\1.norm."),
    (r"\.downsample\.0\.", ".shortcut."),
    (r"\.downsample\.1\.", ".shortcut.norm."),
)


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
    split = {name: _split(name.removeprefix("module.")) for name in state_dict}
    ours = _OUR_MODULES[any("conv1.0" in module for module, _ in split.values())]
    unknown = [
        name
        for name, (module, leaf) in split.items()
        if module not in ours or leaf not in (*_OUR_LEAVES, COUNTER)
    ]
    blurs = [name for name in unknown if split[name][1] == "filt"]
    if blurs:
        raise Refusal(
            f"{listed(blurs)} are filters that blur before pooling: a ResNet with them"
            " is built otherwise, is not read, and has other features without them"
        )
    if unknown:
        raise Refusal(
            f"{listed(unknown)} is not of a ResNet ('conv1.weight',"
            " 'layer1.0.bn1.bias'), ViT or ConvNeXt, alone or under 'backbone.' with a"
            " 'projector.'; remove a classifier and other prefixes; no other"
            " architecture is read"
        )
    found = {}
    for name, (module, leaf) in split.items():
        if leaf == COUNTER:
            continue
        value = np.asarray(state_dict[name])
        collection, _, own = _OUR_LEAVES[leaf].partition("/")
        if leaf == "weight":
            own = "scale" if value.ndim == 1 else "kernel"
            value = value.transpose(2, 3, 1, 0) if value.ndim == 4 else value.T
        path = f"{collection}/{ours[module]}/{own}".removesuffix("/")
        if path in found:
            raise Refusal(f"{name!r} comes twice, with and without 'module.'")
        found[path] = np.array(value, order="C")
    return {"params": {}, "batch_stats": {}} | unflatten_dict(found, sep="/")


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
    """Returns what `to_torch` does without copying: for a look at names and shapes.

    Modules that PyTorch's networks do not have keep their names.
    """
    state_dict = {}
    trees = [
        flatten_dict(variables.get(name, {}), sep="/")
        for name in ("params", "batch_stats")
    ]
    modules = MODULES[any("conv1_0/" in path for path in trees[0])]
    for collection, tree in zip(("params", "batch_stats"), trees, strict=True):
        for path, value in tree.items():
            if path.endswith(WHOLE) and path in modules:
                state_dict[modules[path]] = value
                continue
            module, _, leaf = path.rpartition("/")
            own = re.sub("^encoder/", "backbone/", module).replace("/", ".")
            module = modules.get(module, own)
            if collection == "batch_stats":
                state_dict[f"{module}.{COUNTER}"] = np.zeros([], np.int64)
            leaf = LEAVES.get(f"{collection}/{leaf}", leaf)
            value = value.transpose(3, 2, 0, 1) if value.ndim == 4 else value.T
            state_dict[f"{module}.{leaf}"] = value
    return state_dict


def _split(name):
    """Returns module and leaf; of WHOLE the leaf is ""."""
    module, _, leaf = name.rpartition(".")
    return (name, "") if leaf in WHOLE else (module, leaf)


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
        if not name.endswith(COUNTER):
            for theirs, new in _DETECTRON2:
                name = re.sub(theirs, new, name)
            found[name] = value
    return found


def listed(names: list[str]) -> str:
    """Returns the first few of some names, and how many there are."""
    first = ", ".join(repr(name) for name in names[:SHOWN])
    return first if len(names) <= SHOWN else f"{first}, ... ({len(names)} names)"
