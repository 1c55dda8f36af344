"""Trained encoders from runs, exports and files of weights; nothing in them is run."""

import math
import os
from collections.abc import Sequence
from functools import partial

import flax.linen as nn
import jax
import numpy as np
from absl import logging
from flax.traverse_util import flatten_dict, unflatten_dict

from vicreg_jax import config as configs
from vicreg_jax import files, models
from vicreg_jax.models.convnext import CONVNEXTS, Stages
from vicreg_jax.models.resnet import LAYERS, STEMS, Layers
from vicreg_jax.models.vit import VITS, Shape
from vicreg_jax.refusals import NotFound, Refusal, one_line
from vicreg_jax.run import workdirs
from vicreg_jax.run.checkpoints import Checkpoints
from vicreg_jax.weights import contents, layouts, reading, torch_names
from vicreg_jax.weights.encoder import Encoder

__all__ = ["load"]

IMAGENET = configs.Data()  # its mean and std, of a file that does not say


def load(
    path: str | os.PathLike,
    *,
    encoder: nn.Module | None = None,
    stem: str = "",
    mean: Sequence[float] = IMAGENET.mean,
    std: Sequence[float] = IMAGENET.std,
) -> Encoder:
    """Returns a trained encoder, whoever trained it: a run, an export, a PyTorch file.

    It takes images as they are, see `weights.Encoder`, and normalizes them as the run
    did, or, for a file that does not say, by the `mean` and `std` given, per channel.

    Args:
      path: the workdir of a run (its newest checkpoint); the folder or a file that
        `export.write` wrote; or a file of PyTorch (.pth, .pt, .ckpt, .bin, .pth.tar) or
        of safetensors with a ResNet, ViT or ConvNeXt, see `layouts.plain`; what was
        taken off and left out is said. PyTorch files are read with weights_only;
        nothing in a file is run. Each may be in a bucket, gs://BUCKET/NAME.
      encoder: the module, where it is not one of `models.create`.
      stem: that of `models.create`, of a file that does not say how its network is
        built; without it the file is taken for what its tensors look like, with a note.
      mean, std: of a file that does not say; by default ImageNet's.

    Raises:
      NotFound: there is no such file or run, or it has saved nothing yet.
      NotInstalled: reading this file needs PyTorch or safetensors.
      Refusal: the file is damaged, or its tensors are not those of the module; or it
        has another stem.

    >>> import tempfile
    >>> import jax.numpy as jnp
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
        return _load_file(path, encoder, stem, mean, std)
    is_run = (path / "checkpoints").is_dir()
    if about := None if is_run else contents.description(path):
        for name in ("encoder.safetensors", "encoder.pth"):
            if name in about["files"]:
                return _load_file(path / name, encoder, stem, mean, std)
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
    else:
        _check_module(encoder, config.model.spec(), path)
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


def _check_module(given, told, path):
    """Raises Refusal where a source says that its network is not the one given."""
    free = ("dtype", "zero_init_residual")  # what they compute in, how they began
    specs = models.spec(given), told and models.spec(models.create(**told))
    own, other = (
        {name: x for name, x in (spec or {}).items() if name not in free}
        for spec in specs
    )
    if own and other and own != other:
        said, wanted = (
            ", ".join(f"{name} {x}" for name, x in spec.items()).removeprefix("name ")
            for spec in (other, own)
        )
        raise Refusal(f"{path} holds {said}; expected {wanted}")


def _load_file(path, encoder, stem, mean, std):
    about = _description(path) or {}
    with files.at_hand(path) as local:
        tensors, expander = reading.tensors(path, local), {}
    ours = any("/" in name for name in tensors)
    if ours:
        flat, named = tensors, partial(flatten_dict, sep="/")
    else:
        named = torch_names.torch_views
        try:
            tensors, said = layouts.plain(tensors)
            variables = torch_names.from_torch(tensors)
        except ValueError as error:
            raise Refusal(f"{path}: {error}") from error
        if said:
            logging.warning("%s: %s", path, said)
        if "encoder" in variables["params"]:
            expander = contents.part(variables, "expander")
            variables = contents.part(variables, "encoder")
        flat = flatten_dict(variables, sep="/")
    if encoder is None:
        encoder = _module(about.get("module"), flat, path, stem)
    else:
        _check_module(encoder, about.get("module"), path)
    module = encoder
    if expander:
        module = models.JointEmbedding(encoder, contents.expander_of(expander))
    mean, std = about.get("mean", mean), about.get("std", std)
    size = about.get("image_size") or _usual_size(encoder, flat)
    channels = len(mean) if about else _first_kernel(flat)[2]
    shapes = contents.abstract(module, size=size or 224, channels=channels)
    contents.check(tensors, named(jax.tree.map(_without_memory, shapes)), path)
    if channels != len(mean):
        raise Refusal(
            f"{path} takes images of {channels} channel(s), and mean and std have"
            f" {len(mean)}; it does not say how they are normalized: give them, in"
            " Python load(path, mean=..., std=...)"
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
    """Returns the arguments of `models.create` for the network of these parameters.

    Of a ResNet without a `stem` it notes what they do not tell.
    """
    if any(f"params/{name}/kernel" in flat for name in ("patch_embed_proj", "stem_0")):
        if stem:
            raise Refusal(f"{path} has no stem to choose; leave out {stem!r}")
        return _other_architecture(flat, path)
    kernel, layers = _first_kernel(flat), _layers(flat)
    stems = [name for name, (size, *_) in STEMS.items() if size == kernel[0]]
    stems = ["imagenet"] if layers.deep else stems
    names = [name for name, known in LAYERS.items() if known == layers]
    features = _shape(flat, "bn1/scale")[-1]
    if not (stems and names) or features % 64 or not features:
        kind = "bottleneck" if layers.bottleneck else "basic"
        raise Refusal(
            f"{path} is no encoder known here: {layers.blocks} {kind} blocks,"
            f" {layers.groups} groups of {layers.inner} times the channels, first"
            f" kernel {list(kernel)}; expected one of {', '.join(LAYERS)}, a first"
            " kernel of 7 x 7 or 3 x 3 and a multiple of 64 channels. Give the module:"
            " encoder="
        )
    if stem and stem not in stems:
        raise Refusal(
            f"{path} has a first kernel of {kernel[0]} x {kernel[1]}, which the stem"
            f" {stem!r} (config.model.stem) has not; expected {' or '.join(stems)}"
        )
    if not stem:
        looks = " or ".join(map(repr, stems))
        size = " for images of 224 pixels" if stems == ["imagenet"] else ""
        library = "timm" if layers.deep else "torchvision"
        logging.warning(
            "%s does not say how its network is built: it has a stem that looks like"
            " %s; it is taken for %r and a %s as %s builds it%s. Another stem,"
            " blurred or average pooling (timm's resnetblur, resnetaa), dilation and"
            " another image size give other features and leave no trace. To be sure,"
            " name config.model.stem and config.data.image_size, in Python load(path,"
            " stem=...)",
            *(path, looks, stems[0], names[0], library, size),
        )
    return {"name": names[0], "width": features // 64, "stem": stem or stems[0]}


def _other_architecture(flat, path):
    """Returns the arguments of `models.create` for a ViT or ConvNeXt."""
    names = {name.split("/")[1] for name in flat if name.startswith("params/")}
    patch, _, _, width = _first_kernel(flat)
    if "patch_embed_proj" in names:
        depth = sum(name.startswith("blocks_") for name in names)
        options = {"pool": "mean" if "fc_norm" in names else "token"}
        own = Shape(width, depth, width // 64, patch)  # what does not tell its heads
        known = VITS
    else:
        own = Stages(
            tuple(
                sum(name.startswith(f"stages_{i}_blocks_") for name in names)
                for i in range(4)
            ),
            tuple(_shape(flat, f"stages_{i}_blocks_0/gamma")[0] for i in range(4)),
        )
        options, known = {}, CONVNEXTS
    found = [name for name, wanted in known.items() if wanted == own]
    if not found:
        said = ", ".join(f"{name} {x}" for name, x in own._asdict().items())
        raise Refusal(
            f"{path} is no encoder known here: {said}; expected one of"
            f" {', '.join(known)}. Give the module: encoder="
        )
    logging.warning(
        "%s does not say how its network is built; it is taken for a %s as timm builds"
        " it%s",
        *(path, found[0], f", pool {options['pool']}" if options else ""),
    )
    return {"name": found[0], **options}


def _usual_size(module, flat):
    """Returns the image size that a file tells by itself, or None."""
    if isinstance(module, models.VisionTransformer):
        tokens = max(_shape(flat, "pos_embed")[1:2], default=1)
        return math.isqrt(max(tokens - 1, 1)) * module.shape[3]
    stem = (models.spec(module) or {}).get("stem")
    usual = stem == "imagenet" or isinstance(module, models.ConvNext)
    return 224 if usual else None


def _layers(flat):
    """Returns the `Layers` of a ResNet, as names and shapes tell them."""
    names = {name.split("/")[1] for name in flat if name.startswith("params/layer")}
    blocks = tuple(
        sum(name.startswith(f"layer{i}_") for name in names) for i in (1, 2, 3, 4)
    )
    features = max(_shape(flat, "bn1/scale")[-1], 1)
    bottleneck = "params/layer1_0/conv3/kernel" in flat
    kernel, options = _shape(flat, "layer1_0/conv2/kernel"), {}
    if bottleneck and len(kernel) == 4:
        options = dict(
            groups=kernel[3] // max(kernel[2], 1), inner=kernel[3] // features
        )
    return Layers(blocks, bottleneck, deep="params/conv1_0/kernel" in flat, **options)


def _first_kernel(flat):
    """Returns the shape [h, w, c, features] of the first convolution, if there is one.

    Otherwise that of none, for three channels.
    """
    names = ("conv1_0", "patch_embed_proj", "stem_0")
    names = [name for name in names if f"params/{name}/kernel" in flat] or ["conv1"]
    shape = _shape(flat, f"{names[0]}/kernel")
    return shape if len(shape) == 4 else (0, 0, 3, 0)


def _shape(flat, name):
    return np.shape(flat.get(f"params/{name}", 0)) or (0,)


def _without_memory(like):
    """Returns an array of this shape and dtype that occupies a single number."""
    return np.broadcast_to(np.zeros([], like.dtype), like.shape)
