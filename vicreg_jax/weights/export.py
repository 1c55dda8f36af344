"""A trained encoder written for others to use, and checked there; it trains nothing."""

import hashlib
import importlib
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from flax.traverse_util import flatten_dict
from rich.console import Console
from rich.table import Table

from vicreg_jax import files, models
from vicreg_jax.models.resnet import LAYERS, STEMS, Layers
from vicreg_jax.refusals import Refusal, Unusable, one_line, require
from vicreg_jax.weights import contents, loading, torch_names
from vicreg_jax.weights.encoder import Encoder

__all__ = ["FORMATS", "TOLERANCE", "Format", "agreement", "show", "write"]

SAME = ("weights", "image_size", "mean", "std")  # in all files of a folder
PUBLISHED = (models.ResNet, models.VisionTransformer, models.ConvNext)
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # of `agreement`: float32 sums in another order, through 50 layers


class Format(NamedTuple):
    """How an encoder is written for others, and what they would compute with it."""

    file: str
    write: Callable[[Encoder, Path], None]
    # (encoder, file, images) -> features, None where nothing here can compute them
    features: Callable[[Encoder, Path, np.ndarray], np.ndarray | None]
    needs: str | None = None  # a module
    unchecked: str = "not checked"  # said where there are no features


def write(
    encoder: Encoder, folder: str | os.PathLike, *, formats: Sequence[str]
) -> dict[str, Path]:
    """Writes an encoder in some formats and what it is; returns the files.

    - "safetensors": variables by their names here, read back by `loading.load`;
    - "torch": state dict as of torchvision, of a ViT or ConvNeXt as of timm, for
      torch.load;
    - "stablehlo": float32 [n, h, w, c] normalized -> float32 [n, f] for any n, weights
      included, for jax.export.deserialize on a CPU, GPU or TPU;
    - "detectron2": backbone for MODEL.WEIGHTS of Detectron2.

    encoder.json beside them has the architecture, image size, normalization, source
    and checksums. Each file is complete or not there; files of an earlier export are
    replaced, other people's never.

    Raises:
      Refusal: an unknown format, or one that the encoder has no counterpart in; an
        unknown image size; variables that do not fit the module; a file there that is
        not ours, or would be left with other weights.
      NotInstalled: a format needs a package that is not installed.
      Unusable: the folder cannot be written to, or its disk is full.
    """
    folder = files.expanded(folder)
    _check_formats(formats, encoder.module)
    size = encoder.known_size()
    if folder.exists() and not folder.is_dir():
        raise Refusal(f"{folder} is a file; expected a folder, there or not")
    variables = jax.tree.map(np.asarray, dict(encoder.variables))
    encoder = replace(encoder, variables=variables)
    like = contents.abstract(encoder.module, size=size, channels=encoder.channels)
    flat = flatten_dict(variables, sep="/")
    contents.check(flat, flatten_dict(like, sep="/"), encoder.source)
    about = _description(encoder, flat)
    names = {name: FORMATS[name].file for name in formats}
    stay = _stay(folder, list(names.values()), about)
    with files.near(folder) as near:
        drafts = {file: near / f"{file}.tmp" for file in names.values()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for name, file in names.items():
                FORMATS[name].write(encoder, drafts[file])
            sums = {file: contents.sha256(draft) for file, draft in drafts.items()}
            # First: after an interruption the checksums refuse what is old, and the
            # files are known as ours.
            about = files.sealed(about | {"files": stay | sums})
            files.write_json(folder / contents.DESCRIPTION, about)
            for file, draft in drafts.items():
                files.place(draft, folder / file)
        except Refusal:
            raise
        except OSError as error:
            reason = one_line(error)
            raise Unusable(f"{folder} cannot be written to: {reason}") from error
        finally:
            for draft in drafts.values():
                with suppress(OSError):
                    draft.unlink()
    return {name: folder / file for name, file in names.items()}


def _description(encoder, flat):
    """Returns what encoder.json says of an encoder, but for the files."""
    return {
        "format": contents.FORMAT,
        "version": _version(),
        "module": models.spec(encoder.module),
        "weights": _digest(flat),
        "image_size": encoder.image_size,
        "mean": list(encoder.mean),
        "std": list(encoder.std),
        "source": encoder.source,
        "step": encoder.step,
        "config": asdict(encoder.config) if encoder.config else None,
    }


def agreement(
    encoder: Encoder, folder: str | os.PathLike, images: np.ndarray
) -> dict[str, float]:
    """Returns, by format, how far the features of the written files are from ours.

    max |a - b| / max |a|, computed in float32 on the default device (torch: on the
    CPU). A format is absent where it was not written or the other side, such as
    torchvision, is not installed or has no such encoder.

    Args:
      images: float32 [n, image_size, image_size, c], normalized.

    Raises:
      NotFound: the folder holds no export.
      Refusal: images of another shape or dtype.
    """
    folder = files.expanded(folder)
    about = contents.described(folder)
    size, channels = about["image_size"], len(about["mean"])
    shape = (size, size, channels)
    if images.shape[1:] != shape or not len(images) or images.dtype != np.float32:
        raise Refusal(
            f"expected images of float32 [n >= 1, {size}, {size}, {channels}]; got"
            f" {images.dtype} {list(images.shape)}"
        )
    want = np.asarray(_features(encoder)(images))
    scale = np.abs(want).max() or 1.0
    table = {}
    with files.near(folder) as near:
        if files.in_bucket(folder):
            files.download(folder, near, names=[contents.DESCRIPTION, *about["files"]])
        for name, format in FORMATS.items():
            if format.file in about["files"]:
                got = format.features(encoder, near / format.file, images)
                if got is not None:
                    table[name] = float(np.abs(got - want).max() / scale)
    return table


def show(table: Mapping[str, float], *, formats: Sequence[str] | None = None) -> None:
    """Prints what `agreement` found, and which of the formats were not checked."""
    out = Table(title="Features of the written files against those of the encoder")
    for column in ("format", "file", "max |a - b| / max |a|"):
        out.add_column(column)
    for name in formats or FORMATS:
        said = FORMATS[name].unchecked
        if name in table:
            verdict = "" if table[name] < TOLERANCE else f"  differs: over {TOLERANCE}"
            said = f"{table[name]:.1e}{verdict}"
        out.add_row(name, FORMATS[name].file, said)
    Console(width=max(100, Console().width)).print(out)


def _check_formats(formats, module):
    unknown = [name for name in formats if name not in FORMATS]
    if unknown or not formats:
        raise Refusal(
            f"no format {', '.join(map(repr, unknown)) or 'given'}; there are"
            f" {', '.join(FORMATS)}"
        )
    for name, known in (("torch", PUBLISHED), ("detectron2", models.ResNet)):
        if name in formats and not isinstance(module, known):
            raise Refusal(
                f"{name} has no counterpart of {type(module).__name__}; choose"
                " safetensors or stablehlo"
            )
    if "detectron2" in formats and (
        module.stem != "imagenet"
        or Layers(*module.layers) == LAYERS["resnet200"]
        or Layers(*module.layers).deep
    ):
        raise Refusal(
            "Detectron2 has ResNet-18 to 152 with the stem 'imagenet'; got stages of"
            f" {module.layers[0]} blocks with the stem"
            f" {'of ResNet-D' if Layers(*module.layers).deep else repr(module.stem)}"
        )
    for name in formats:
        if needs := FORMATS[name].needs:
            install = "vicreg_jax[torch]" if needs == "torch" else needs
            require(needs, f"the format {name}", install=install)


def _stay(folder, new, about):
    """Returns the files of an earlier export that stay, with their checksums."""
    old = contents.description(folder) if folder.is_dir() else None
    ours = old["files"] if old else {}
    for file in new if old else [contents.DESCRIPTION, *new]:
        if (folder / file).exists() and file not in ours:
            raise Refusal(
                f"{folder / file} was not written by an export; choose another folder"
            )
    stay = {file: checksum for file, checksum in ours.items() if file not in new}
    if stay and any(old[key] != about[key] for key in SAME):
        raise Refusal(
            f"{folder} holds {', '.join(stay)} of other weights, image size or"
            " normalization; export those formats again too, or choose another folder"
        )
    return stay


def _digest(flat):
    """Returns a checksum over the names, kinds and bytes of all arrays."""
    total = hashlib.sha256()
    for name, array in sorted(flat.items()):
        total.update(f"{name} {array.dtype} {array.shape}".encode())
        total.update(np.ascontiguousarray(array).view(np.uint8).data)
    return total.hexdigest()


def _features(encoder) -> Callable[[Any], jax.Array]:
    """Returns a jitted function of images that computes in float32 on any device."""
    module = encoder.module
    if hasattr(module, "dtype"):
        module = module.clone(dtype=jnp.float32)

    @jax.jit
    def features(images):
        # By default GPUs and TPUs multiply float32 with fewer bits.
        with jax.default_matmul_precision("highest"):
            y = module.apply(encoder.variables, images, train=False)
        return y.astype(jnp.float32)

    return features


def _version():
    try:
        return metadata.version("vicreg_jax")
    except metadata.PackageNotFoundError:
        return "not installed"


def _safetensors(encoder, path):
    from safetensors.numpy import save

    flat = flatten_dict(encoder.variables, sep="/")
    # Its save_file makes files that nobody else may read.
    path.write_bytes(save({name: np.array(x, order="C") for name, x in flat.items()}))


def _through_loading(encoder, path, images):
    known = models.spec(encoder.module)
    found = loading.load(path, encoder=None if known else encoder.module)
    return np.asarray(_features(found)(images))


def _stablehlo(encoder, path):
    (n,) = jax.export.symbolic_shape("n")
    shape = (n, encoder.image_size, encoder.image_size, encoder.channels)
    images = jax.ShapeDtypeStruct(shape, jnp.float32)
    exported = jax.export.export(_features(encoder), platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def _through_stablehlo(encoder, path, images):
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return np.asarray(exported.call(images))


def _detectron2(encoder, path):
    # Without "matching_heuristics" the names would have to be those of one detector.
    found = {
        "model": torch_names.to_detectron2(encoder.variables),
        "__author__": "vicreg_jax",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(found))


def _torch(encoder, path):
    import torch

    state_dict = torch_names.to_torch(encoder.variables)
    torch.save({name: torch.from_numpy(x) for name, x in state_dict.items()}, path)


def _through_torch(encoder, path, images):
    resnet = isinstance(encoder.module, models.ResNet)
    try:
        import torch

        library = importlib.import_module("torchvision" if resnet else "timm")
    except Exception:  # missing, or made for another version of torch
        return None
    make = _torchvision_module if resnet else _timm_module
    net = make(library, encoder, images.shape[-1])
    if net is None:
        return None
    net.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        nchw = np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2)))
        return net.eval()(torch.tensor(nchw)).numpy()


def _timm_module(timm, encoder, channels):
    """Returns timm's ViT or ConvNeXt, without its classifier."""
    module, options = encoder.module, dict(num_classes=0, in_chans=channels)
    if isinstance(module, models.ConvNext):
        blocks, widths = module.stages
        return timm.models.ConvNeXt(depths=blocks, dims=widths, **options)
    width, depth, heads, patch = module.shape
    return timm.models.VisionTransformer(
        img_size=encoder.image_size,
        patch_size=patch,
        embed_dim=width,
        depth=depth,
        num_heads=heads,
        global_pool={"token": "token", "mean": "avg"}[module.pool],
        **options,
    )


def _torchvision_module(torchvision, encoder, channels):
    """Returns torchvision's ResNet, without its classifier; None if it has none."""
    import torch

    resnet, module = torchvision.models.resnet, encoder.module
    layers = Layers(*module.layers)
    if module.width > 1 or layers.deep:
        return None
    block = resnet.Bottleneck if layers.bottleneck else resnet.BasicBlock
    options = dict(
        groups=layers.groups, width_per_group=64 * layers.inner // layers.groups
    )
    net = resnet.ResNet(block, list(layers.blocks), **options)
    net.fc = torch.nn.Identity()
    kernel, stride, pad, _ = STEMS[module.stem]
    net.conv1 = torch.nn.Conv2d(channels, 64, kernel, stride, pad, bias=False)
    if module.stem != "imagenet":
        net.maxpool = torch.nn.Identity()
    return net


FORMATS = {
    "safetensors": Format(
        "encoder.safetensors", _safetensors, _through_loading, "safetensors"
    ),
    "torch": Format(
        "encoder.pth",
        _torch,
        _through_torch,
        "torch",
        "not checked: install torch and torchvision (ResNets of width 1) or timm",
    ),
    "stablehlo": Format(  # jax.export does not bring flatbuffers
        "encoder.stablehlo", _stablehlo, _through_stablehlo, "flatbuffers"
    ),
    "detectron2": Format(
        "detectron2.pkl",
        _detectron2,
        lambda encoder, path, images: None,
        unchecked="not checked: load it with Detectron2",
    ),
}
