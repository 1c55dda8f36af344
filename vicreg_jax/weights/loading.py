"""Trained encoders from runs, exports and files of weights; nothing in them is run."""

import os
import re
import zipfile
from collections.abc import Mapping
from functools import partial
from pickle import UnpicklingError

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vicreg_jax import config as configs
from vicreg_jax import files, models
from vicreg_jax.models.resnet import LAYERS, STEMS
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line, require
from vicreg_jax.run import workdirs
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.weights import contents, torch_names
from vicreg_jax.weights.encoder import Encoder

__all__ = ["load"]

IMAGENET = configs.Data()  # its mean and std, of a file that does not say
CLASSIFIER = ("fc.weight", "fc.bias")  # of torchvision and timm


def load(
    path: str | os.PathLike, *, encoder: nn.Module | None = None, stem: str = ""
) -> Encoder:
    """Returns a trained encoder, whoever trained it: a run, an export, a PyTorch file.

    It takes images as they are, see `weights.Encoder`, and normalizes them as the run
    did, or by ImageNet's statistics for a file that does not say.

    Args:
      path: the workdir of a run (its newest checkpoint); the folder or a file that
        `export.write` wrote; or a .pth, .pt or .safetensors file with the names of the
        authors' code, torchvision or timm: an encoder, or encoder and projector,
        alone or under "model". A classifier `fc` is left out. PyTorch files are read
        with weights_only; nothing in a file is run. Each may be in a bucket,
        gs://BUCKET/NAME.
      encoder: the module, where it is not one of `models.create`.
      stem: that of `models.create`, of a file that does not say how its network is
        built; without it the file is taken for what its tensors look like, with a note.

    Raises:
      NotFound: there is no such file or run, or it has saved nothing yet.
      NotInstalled: reading this file needs PyTorch or safetensors.
      Refusal: the file is damaged, or its tensors are not those of the module; or it
        has another stem.

    >>> import tempfile
    >>> from vicreg_jax.weights import export
    >>> module = models.create("digits")
    >>> shapes = contents.abstract(module, size=8, channels=1)
    >>> zeros = jax.tree.map(jnp.zeros_like, shapes)
    >>> given = Encoder(module, zeros, mean=[0.5], std=[0.25], image_size=8)
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     _ = export.write(given, folder, formats=["safetensors"])
    ...     load(folder)(np.zeros([2, 8, 8, 1], np.uint8)).shape
    (2, 64)
    """
    if encoder is not None and stem:
        raise Refusal(f"encoder= has its own stem; leave out stem={stem!r}")
    if elsewhere := files.elsewhere(path):
        raise Refusal(f"weights are read from a disk, gs:// or s3://; got {elsewhere}")
    path = files.expanded(path).absolute()
    if path.is_file():
        return _load_file(path, encoder, stem)
    is_run = (path / "checkpoints").is_dir()
    if about := None if is_run else contents.description(path):
        for name in ("encoder.safetensors", "encoder.pth"):
            if name in about["files"]:
                return _load_file(path / name, encoder, stem)
        raise NotFound(
            f"{path} holds only {', '.join(about['files'])}, which are not read back;"
            " export safetensors too"
        )
    if not path.exists():
        raise NotFound(f"there is no file or folder {path}")
    if not (path / "config.json").is_file():
        raise NotFound(
            f"{path} is no run: there is no config.json; nor is it an export"
        )
    return _load_run(path, encoder, stem)


def _load_run(path, encoder, stem):
    config = workdirs.read_config(path)
    if encoder is None:
        try:
            encoder = models.create(**config.model.spec())
        except Refusal as error:
            raise Refusal(f"{path / 'config.json'}: {error}") from error
        _check_stem(encoder, stem, path)
    expander = models.Expander(**config.model.head())
    like = contents.abstract(
        models.JointEmbedding(encoder, expander),
        size=config.data.image_size,
        channels=len(config.data.mean),
    )
    found = None
    if (path / "checkpoints").is_dir():
        checkpoints = Checkpoints(path / "checkpoints", read_only=True)
        found = checkpoints.restore(like, part=True)
        checkpoints.close()
    if found is None:
        raise NotFound(f"{path} has no checkpoint yet")
    step, whole = found
    contents.check(*(flatten_dict(x, sep="/") for x in (whole, like)), path)
    return Encoder(
        encoder,
        contents.part(whole, "encoder"),
        mean=config.data.mean,
        std=config.data.std,
        image_size=config.data.image_size,
        expander=contents.part(whole, "expander"),
        config=config,
        step=step,
        source=str(path),
    )


def _check_stem(module, stem, path):
    """Raises Refusal where a source that tells its stem has another one."""
    own = (models.spec(module) or {}).get("stem", "none to choose")
    if stem and stem != own:
        raise Refusal(
            f"{path} says how its network is built: its stem is {own!r}, not"
            f" {stem!r}; leave the stem (config.model.stem) out"
        )


def _load_file(path, encoder, stem):
    about = _description(path) or {}
    with files.at_hand(path) as local:
        tensors, expander = _read(path, local), {}
    ours = any("/" in name for name in tensors)
    if ours:
        flat, named = tensors, partial(flatten_dict, sep="/")
    else:
        tensors, named = _without_prefixes(tensors, path), torch_names.torch_views
        try:
            variables = torch_names.from_torch(tensors)
        except ValueError as error:
            raise Refusal(f"{path}: {error}") from error
        if "encoder" in variables["params"]:
            expander = contents.part(variables, "expander")
            variables = contents.part(variables, "encoder")
        flat = flatten_dict(variables, sep="/")
    if encoder is None:
        encoder = _module(about.get("module"), flat, path, stem)
    module = encoder
    if expander:
        module = models.JointEmbedding(encoder, contents.expander_of(expander))
    mean, std = about.get("mean", IMAGENET.mean), about.get("std", IMAGENET.std)
    stem = (models.spec(encoder) or {}).get("stem")
    size = about.get("image_size") or (224 if stem == "imagenet" else None)
    channels = len(mean) if about else _first_kernel(flat)[2]
    shapes = contents.abstract(module, size=size or 224, channels=channels)
    contents.check(tensors, named(jax.tree.map(_without_memory, shapes)), path)
    if channels != len(mean):
        raise Refusal(
            f"{path} takes images of {channels} channel(s), and does not say how they"
            " are normalized; give mean and std: weights.Encoder(module,"
            " torch_names.from_torch(tensors), mean=..., std=...)"
        )
    return Encoder(
        encoder,
        unflatten_dict(flat, sep="/"),
        mean=mean,
        std=std,
        image_size=size,
        expander=expander or None,
        config=_config_of_export(about.get("config")),
        step=about.get("step"),
        source=str(path),
    )


def _description(path):
    """Returns what encoder.json beside a file says of it, or None."""
    about = contents.description(path.parent)
    if about is None or path.name not in about["files"]:
        return None
    if contents.sha256(path) != about["files"][path.name]:
        raise Refusal(
            f"{path} is not the file that {contents.DESCRIPTION} beside it describes"
            " (sha256); it is damaged or was replaced: export it again"
        )
    return about


def _config_of_export(content):
    """Returns the config of the run, unless another version of this package wrote it.

    It tells where weights come from; they do not need it.
    """
    try:
        return configs.parse(content) if content else None
    except Refusal:
        return None


def _module(spec, flat, path, stem):
    """Returns the encoder that an export names or a file's tensors show."""
    if not spec:
        return models.create(**_architecture(flat, path, stem))
    try:
        module = models.create(**spec)
    except (TypeError, ValueError, OverflowError) as error:
        raise Refusal(
            f"{path.parent / contents.DESCRIPTION} names a module that there is not:"
            f" {one_line(error)}"
        ) from error
    _check_stem(module, stem, path)
    return module


def _architecture(flat, path, stem):
    """Returns the arguments of `models.create` for the ResNet of these parameters.

    Without a `stem` it notes what they do not tell.
    """
    kernel = _first_kernel(flat)
    stems = [name for name, (size, *_) in STEMS.items() if size == kernel[0]]
    blocks = {name.split("/")[1] for name in flat if name.startswith("params/layer")}
    stages = tuple(
        sum(name.startswith(f"layer{i}_") for name in blocks) for i in (1, 2, 3, 4)
    )
    bottleneck = "params/layer1_0/conv3/kernel" in flat
    names = [name for name, layers in LAYERS.items() if layers == (stages, bottleneck)]
    if not (stems and names) or kernel[3] % 64 or not kernel[3]:
        kind = "bottleneck" if bottleneck else "basic"
        raise Refusal(
            f"{path} is no encoder known here: {stages} {kind} blocks, first kernel"
            f" {list(kernel)}; expected one of {', '.join(LAYERS)}, a first kernel of 7"
            " x 7 or 3 x 3 and a multiple of 64 channels. Give the module: encoder="
        )
    if stem and stem not in stems:
        raise Refusal(
            f"{path} has a first kernel of {kernel[0]} x {kernel[1]}, which the stem"
            f" {stem!r} (config.model.stem) has not; expected {' or '.join(stems)}"
        )
    if not stem:
        looks = " or ".join(map(repr, stems))
        size = " for images of 224 pixels" if stems == ["imagenet"] else ""
        logging.warning(
            "%s does not say how its network is built: it has a stem that looks like"
            " %s; it is taken for %r and a %s as torchvision builds it%s. Another stem,"
            " blurred or average pooling (timm's resnetblur, resnetaa), dilation and"
            " another image size give other features and leave no trace. To be sure,"
            " name config.model.stem and config.data.image_size, in Python load(path,"
            " stem=...)",
            *(path, looks, stems[0], names[0], size),
        )
    return {"name": names[0], "width": kernel[3] // 64, "stem": stem or stems[0]}


def _first_kernel(flat):
    """Returns the shape [h, w, c, features] of the first convolution, if there is one.

    Otherwise that of none, for three channels.
    """
    shape = np.shape(flat.get("params/conv1/kernel", 0))
    return shape if len(shape) == 4 else (0, 0, 3, 0)


def _without_memory(like):
    """Returns an array of this shape and dtype that occupies a single number."""
    return np.broadcast_to(np.zeros([], like.dtype), like.shape)


def _without_prefixes(tensors, path):
    """Returns the tensors of an encoder, or of backbone and projector, by their names.

    Without a classifier and the prefixes of distributed training or of a backbone
    that is alone.
    """
    for prefix in ("module.", "backbone."):
        if prefix == "backbone." and any(x.startswith("projector.") for x in tensors):
            break
        shorter = {name.removeprefix(prefix): x for name, x in tensors.items()}
        if len(shorter) < len(tensors):
            raise Refusal(f"{path} has tensors of one name with and without {prefix!r}")
        tensors = shorter
    return {name: x for name, x in tensors.items() if name not in CLASSIFIER}


def _read(path, local):
    """Returns the tensors of a file, of which there is a copy on a disk."""
    try:
        if path.suffix in (".pth", ".pt"):
            return _torch(path, local)
        if path.suffix == ".safetensors":
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
        f"{path}: weights are read from .pth, .pt, .safetensors files and from folders"
        " of runs and exports; pickles are never read"
    )


def _torch(path, local):
    torch = require("torch", f"reading {path}", install="vicreg_jax[torch]")
    zipped = zipfile.is_zipfile(local)  # not of old versions
    if zipped:
        with zipfile.ZipFile(local) as archive:  # PyTorch looks at no checksum
            if damaged := archive.testzip():
                raise Refusal(f"{path} is damaged: the checksum of {damaged} is wrong")
    try:
        found = torch.load(local, map_location="cpu", weights_only=True, mmap=zipped)
    except UnpicklingError as error:
        name = re.search(r"GLOBAL (\S+)", str(error))
        what = f"such as {name[1]}, " if name else ""
        raise Refusal(
            f"{path} holds more than tensors, {what}or is damaged; nothing in it was"
            " run. Save its state dict alone"
        ) from error
    if isinstance(found, Mapping) and isinstance(found.get("model"), Mapping):
        found = found["model"]
    if not isinstance(found, Mapping) or not found:
        what = f"a {type(found).__name__}" if not isinstance(found, Mapping) else "{}"
        raise Refusal(f"{path} holds {what}; expected tensors by name")
    others = [name for name in found if not isinstance(name, str)]
    others += [name for name, x in found.items() if not torch.is_tensor(x)]
    if others:
        raise Refusal(
            f"{path} holds {torch_names.listed(others)} beside tensors; expected"
            " tensors by name, alone or under 'model'"
        )
    return {name: _array(name, tensor, path, torch) for name, tensor in found.items()}


def _array(name, tensor, path, torch):
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
