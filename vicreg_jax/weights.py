"""Files of weights, read and checked against a module; nothing in them is ever run."""

import hashlib
import itertools
import json
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from pickle import UnpicklingError
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict, unflatten_dict

from vicreg_jax import config as configs
from vicreg_jax import convert, models
from vicreg_jax.models.resnet import LAYERS, STEMS

DESCRIPTION = "encoder.json"  # beside the files of an export
FORMAT = "vicreg_jax encoder 1"
CLASSIFIER = ("fc.weight", "fc.bias")  # of torchvision and timm


class Loaded(NamedTuple):
    """`module.apply(variables, images [n, h, w, c], train=False)` -> [n, f]."""

    module: nn.Module
    variables: dict[str, Any]  # "params" and "batch_stats" of the encoder
    expander: dict[str, Any] | None  # likewise, where the source has one
    config: configs.Config | None  # of the run, where the source tells
    step: int | None
    source: str
    mean: tuple[float, ...]  # of the images that it takes, per channel, in [0, 1]
    std: tuple[float, ...]


def load_file(path: Path, *, encoder: nn.Module | None = None) -> Loaded:
    """Returns what a file of weights holds; see `checkpoint.load`."""
    about = description(path.parent)
    if about and path.name not in about["files"]:
        about = None
    if about and sha256(path) != about["files"][path.name]:
        raise ValueError(
            f"{path} is not the file that {DESCRIPTION} beside it describes (sha256);"
            " it is damaged or was replaced: export it again"
        )
    tensors = _read(path)
    ours = any("/" in name for name in tensors)
    if ours:
        whole = unflatten_dict(tensors, sep="/")
    else:
        tensors = _without_prefixes(tensors)
        try:
            whole = convert.from_torch(tensors)
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    joint = not ours and "encoder" in whole["params"]
    variables = part(whole, "encoder") if joint else whole
    expander = part(whole, "expander") if joint else None
    params = variables.get("params", {})
    if encoder is None and about and about["module"]:
        options = about["module"] | {"dtype": jnp.dtype(about["module"]["dtype"])}
        encoder = models.create(options.pop("name"), **options)
    elif encoder is None:
        encoder = models.create(**_architecture(params, path))
    module = models.JointEmbedding(encoder, expander_of(expander)) if joint else encoder
    shapes = abstract(
        module,
        size=about["image_size"] if about else 224,
        channels=len(about["mean"]) if about else _first_kernel(params)[2],
    )
    names = flatten if ours else convert.torch_views
    check(tensors, names(jax.tree.map(_without_memory, shapes)), path)
    default = configs.Data()
    return Loaded(
        encoder,
        variables,
        expander,
        _config(about),
        about["step"] if about else None,
        str(path),
        tuple(about["mean"]) if about else default.mean,
        tuple(about["std"]) if about else default.std,
    )


def description(folder: Path) -> dict[str, Any] | None:
    """Returns what an export wrote about its files, or None where there is none.

    Raises:
      ValueError: encoder.json is damaged, or of another version of this package.
    """
    path = folder / DESCRIPTION
    if not path.is_file():
        return None
    try:
        about = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    format = about.get("format") if isinstance(about, dict) else None
    if not str(format).startswith("vicreg_jax"):
        return None  # somebody else's file of that name
    if format != FORMAT:
        raise ValueError(f"{path} has format {format!r}; this version reads {FORMAT!r}")
    return about


def name_of(module: nn.Module) -> dict[str, Any] | None:
    """Returns the arguments of `models.create` that make this module, as JSON.

    None for a module of the user's own.
    """
    options = {"width": getattr(module, "width", 1)}
    dtype = getattr(module, "dtype", jnp.float32)
    zero = getattr(module, "zero_init", True)
    for name, stem in itertools.product(models.ENCODERS, STEMS):
        options["stem"] = stem
        made = models.create(name, dtype=dtype, zero_init_residual=zero, **options)
        if made == module:
            return {"name": name, **options, "dtype": jnp.dtype(dtype).name}
    return None


def abstract(module: nn.Module, *, size: int, channels: int) -> dict[str, Any]:
    """Returns the shapes and dtypes of a module's variables."""
    images = jax.ShapeDtypeStruct((2, size, size, channels), jnp.float32)
    key = jax.random.key(0)
    return jax.eval_shape(lambda x: module.init(key, x, train=False), images)


def flatten(variables: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the arrays under names such as params/conv1/kernel."""
    return flatten_dict(variables, sep="/")


def sha256(path: Path) -> str:
    """Returns the checksum of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def expander_of(variables: Mapping[str, Any]) -> models.Expander:
    """Returns the module of an expander's variables, as far as they tell its widths."""
    params = variables["params"]
    numbers = [int(name.removeprefix("linear")) for name in params if "linear" in name]
    layers = [params.get(f"linear{i}", {}) for i in range(max(numbers, default=0) + 1)]
    # A layer that is missing counts as 1; `check` names it.
    widths = [layer.get("kernel", np.zeros([1, 1])).shape[-1] for layer in layers]
    return models.Expander(tuple(widths), bias="bias" in layers[-1])


def _kind(array):
    return f"{array.dtype.name}{list(array.shape)}"


def part(variables: Mapping[str, Any], name: str) -> dict[str, Any]:
    """Returns the variables of one sub-module."""
    return {
        collection: tree[name] for collection, tree in variables.items() if name in tree
    }


def check(
    found: Mapping[str, np.ndarray], wanted: Mapping[str, Any], path: Path
) -> None:
    """Raises ValueError where names, shapes or dtypes are not those wanted."""
    found = {k: v for k, v in found.items() if not k.endswith(".num_batches_tracked")}
    wanted = {k: v for k, v in wanted.items() if not k.endswith(".num_batches_tracked")}
    faults = {
        "missing": [name for name in wanted if name not in found],
        "unknown": [name for name in found if name not in wanted],
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
        raise ValueError(f"{path} does not fit the encoder; {'; '.join(said)}")


def _read(path):
    readers = {".pth": _torch, ".pt": _torch, ".safetensors": _safetensors}
    if path.suffix not in readers:
        raise ValueError(
            f"{path}: weights are read from {', '.join(readers)} files and from"
            " folders of runs and exports; pickles are never read"
        )
    return readers[path.suffix](path)


def _torch(path):
    try:
        import torch
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"PyTorch is needed to read {path} and is not installed; run:"
            ' pip install "vicreg_jax[torch]"'
        ) from error
    try:
        found = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"such as {name[1]}, " if name else ""
        raise ValueError(
            f"{path} holds more than tensors, {what}or is damaged; nothing in it was"
            " run. Save its state dict alone"
        ) from error
    except Exception as error:  # whatever a damaged file makes PyTorch raise
        raise ValueError(f"{path} is damaged: {_line(error)}") from error
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not found:
        what = f"a {type(found).__name__}" if not isinstance(found, Mapping) else "{}"
        raise ValueError(f"{path} holds {what}; expected tensors by name")
    others = [str(name) for name, x in found.items() if not torch.is_tensor(x)]
    if others:
        raise ValueError(
            f"{path} holds {convert.listed(others)} beside tensors; expected tensors by"
            " name, alone or under 'model'"
        )
    return {name: _array(tensor, torch) for name, tensor in found.items()}


def _array(tensor, torch):
    if tensor.dtype == torch.bfloat16:  # NumPy has it from ml_dtypes alone
        return tensor.view(torch.uint16).numpy().view(jnp.bfloat16)
    return tensor.numpy()


def _safetensors(path):
    try:
        from safetensors import SafetensorError
        from safetensors.numpy import load_file
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{path} needs safetensors, which is not installed; run:"
            " pip install safetensors"
        ) from error
    try:
        return load_file(path)
    except SafetensorError as error:
        raise ValueError(f"{path} is damaged: {_line(error)}") from error


def _without_prefixes(tensors):
    """Returns the tensors of an encoder, or of backbone and projector, by their names.

    Without a classifier and the prefixes of distributed training or of a backbone
    that is alone.
    """
    tensors = {
        name.removeprefix("module."): value
        for name, value in tensors.items()
        if name not in CLASSIFIER
    }
    if any(name.startswith("projector.") for name in tensors):
        return tensors
    return {name.removeprefix("backbone."): value for name, value in tensors.items()}


def _first_kernel(params):
    """Returns the shape [h, w, c, features] of the first convolution."""
    return params.get("conv1", {}).get("kernel", np.zeros([0, 0, 3, 0])).shape


def _architecture(params, path):
    """Returns the arguments of `models.create` for the ResNet of these parameters."""
    kernel = _first_kernel(params)
    stems = [name for name, (size, *_) in STEMS.items() if size == kernel[0]]
    stages = tuple(
        sum(name.startswith(f"layer{i}_") for name in params) for i in (1, 2, 3, 4)
    )
    bottleneck = "conv3" in params.get("layer1_0", {})
    names = [name for name, layers in LAYERS.items() if layers == (stages, bottleneck)]
    if not (stems and names) or kernel[3] % 64:
        kind = "bottleneck" if bottleneck else "basic"
        raise ValueError(
            f"{path} is no encoder known here: {stages} {kind} blocks, first kernel"
            f" {list(kernel)}; expected one of {', '.join(LAYERS)}, a first kernel of 7"
            " x 7 or 3 x 3 and a multiple of 64 channels. Give the module: encoder="
        )
    return {"name": names[0], "width": kernel[3] // 64, "stem": stems[0]}


def _without_memory(like):
    """Returns an array of this shape and dtype that occupies a single number."""
    return np.broadcast_to(np.zeros([], like.dtype), like.shape)


def _config(about):
    """Returns the config of the run, unless another version of this package wrote it.

    It tells where weights come from; they do not need it.
    """
    try:
        return configs.parse(about["config"]) if about and about["config"] else None
    except ValueError:
        return None


def _line(error):
    return " ".join(str(error).split())[:200]
