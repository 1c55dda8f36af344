"""A trained encoder written for others to use, and checked there; it trains nothing."""

import hashlib
import importlib.metadata
import os
import pickle
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.export
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from vicreg_jax import files, models
from vicreg_jax.models.resnet import STEMS
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line, require
from vicreg_jax.weights import contents, loading, torch_names
from vicreg_jax.weights.encoder import Encoder

FILES = {
    "safetensors": "encoder.safetensors",
    "torch": "encoder.pth",
    "stablehlo": "encoder.stablehlo",
    "detectron2": "detectron2.pkl",
}
PACKAGES = {  # by format: the module that it needs, what pip installs
    "safetensors": ("safetensors", "safetensors"),
    "torch": ("torch", "vicreg_jax[torch]"),
    "stablehlo": ("flatbuffers", "flatbuffers"),  # jax.export does not bring it
}
SAME = ("weights", "image_size", "mean", "std")  # in all files of a folder
PLATFORMS = ("cpu", "cuda", "tpu")
TOLERANCE = 1e-4  # of `agreement`: float32 sums in another order, through 50 layers
UNCHECKED = {
    "torch": "not checked: install torch and torchvision (ResNets of width 1)",
    "detectron2": "not checked: load it with Detectron2",
}


def write(
    encoder: Encoder, folder: str | os.PathLike, *, formats: Sequence[str]
) -> dict[str, Path]:
    """Writes an encoder in some formats and what it is; returns the files.

    - "safetensors": variables by their names here, read back by `loading.load`;
    - "torch": state dict as of torchvision, for torch.load;
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
    folder = Path(folder).expanduser()
    _check_formats(formats, encoder.module)
    size, channels = encoder.known_size(), encoder.channels
    if folder.exists() and not folder.is_dir():
        raise Refusal(f"{folder} is a file; expected a folder, there or not")
    variables = jax.tree.map(np.asarray, dict(encoder.variables))
    shapes = contents.abstract(encoder.module, size=size, channels=channels)
    flat = contents.flatten(variables)
    contents.check(flat, contents.flatten(shapes), encoder.source)
    about = _description(encoder, flat)
    stay = _stay(folder, formats, about)
    shape = (size, size, channels)
    writers = {
        "safetensors": partial(_safetensors, flat),
        "torch": partial(_torch, variables),
        "stablehlo": partial(_stablehlo, encoder.module, variables, shape),
        "detectron2": partial(_detectron2, variables),
    }
    with ExitStack() as closing:
        closing.enter_context(_explained(folder))
        folder.mkdir(parents=True, exist_ok=True)
        drafts = {}
        for name in formats:
            drafts[name] = folder / f"{FILES[name]}.tmp"
            closing.callback(drafts[name].unlink, missing_ok=True)
            writers[name](drafts[name])
        sums = {FILES[name]: contents.sha256(path) for name, path in drafts.items()}
        # First: after an interruption the checksums refuse what is old, and the files
        # are known as ours.
        files.write_json(folder / contents.DESCRIPTION, about | {"files": stay | sums})
        for name, path in drafts.items():
            os.replace(path, folder / FILES[name])
    return {name: folder / FILES[name] for name in formats}


@contextmanager
def _explained(folder):
    try:
        yield
    except Refusal:
        raise
    except OSError as error:
        raise Unusable(f"{folder} cannot be written to: {one_line(error)}") from error


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
    folder = Path(folder).expanduser()
    about = contents.description(folder)
    if about is None:
        raise NotFound(f"{folder} holds no export: no {contents.DESCRIPTION}")
    size, channels = about["image_size"], len(about["mean"])
    shape = (size, size, channels)
    if images.shape[1:] != shape or not len(images) or images.dtype != np.float32:
        raise Refusal(
            f"expected images of float32 [n >= 1, {size}, {size}, {channels}]; got"
            f" {images.dtype} {list(images.shape)}"
        )
    others = {
        "safetensors": partial(
            _through_loading, None if about["module"] else encoder.module
        ),
        "torch": partial(_through_torchvision, encoder.module),
        "stablehlo": _through_stablehlo,
    }
    want = np.asarray(_features(encoder.module, encoder.variables)(images))
    scale = np.abs(want).max() or 1.0
    table = {}
    for name, features in others.items():
        if FILES[name] in about["files"]:
            got = features(folder / FILES[name], images)
            if got is not None:
                table[name] = float(np.abs(got - want).max() / scale)
    return table


def show(table: Mapping[str, float], *, formats: Sequence[str] = tuple(FILES)) -> None:
    """Prints what `agreement` found, and which of the formats were not checked."""
    out = Table(title="Features of the written files against those of the encoder")
    for column in ("format", "file", "max |a - b| / max |a|"):
        out.add_column(column)
    for name in formats:
        said = UNCHECKED.get(name, "not checked")
        if name in table:
            verdict = "" if table[name] < TOLERANCE else f"  differs: over {TOLERANCE}"
            said = f"{table[name]:.1e}{verdict}"
        out.add_row(name, FILES[name], said)
    Console(width=max(100, Console().width)).print(out)


def _check_formats(formats, module):
    unknown = [name for name in formats if name not in FILES]
    if unknown or not formats:
        raise Refusal(
            f"no format {', '.join(map(repr, unknown)) or 'given'}; there are"
            f" {', '.join(FILES)}"
        )
    spec = models.spec(module) or {}
    if not isinstance(module, models.ResNet):
        for name in ("torch", "detectron2"):
            if name in formats:
                raise Refusal(
                    f"{name} has no counterpart of {type(module).__name__}; choose"
                    " safetensors or stablehlo"
                )
    elif "detectron2" in formats and (
        module.stem != "imagenet" or spec.get("name") == "resnet200"
    ):
        raise Refusal(
            "Detectron2 has ResNet-18 to 152 with the stem 'imagenet'; got stages of"
            f" {module.layers[0]} blocks with the stem {module.stem!r}"
        )
    for name in formats:
        if name in PACKAGES:
            package, install = PACKAGES[name]
            require(package, f"the format {name}", install=install)


def _stay(folder, formats, about):
    """Returns the files of an earlier export that stay, with their checksums."""
    old = contents.description(folder) if folder.is_dir() else None
    ours = old["files"] | {contents.DESCRIPTION: ""} if old else {}
    names = [contents.DESCRIPTION, *(FILES[name] for name in formats)]
    for name in names:
        if (folder / name).exists() and name not in ours:
            raise Refusal(
                f"{folder / name} was not written by an export; choose another folder"
            )
    stay = {name: checksum for name, checksum in ours.items() if name not in names}
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


def _version():
    try:
        return importlib.metadata.version("vicreg_jax")
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _safetensors(flat, path):
    from safetensors.numpy import save

    # Its save_file makes files that nobody else may read.
    path.write_bytes(save({name: np.array(x, order="C") for name, x in flat.items()}))


def _torch(variables, path):
    import torch

    state_dict = torch_names.to_torch(variables)
    torch.save({name: torch.from_numpy(x) for name, x in state_dict.items()}, path)


def _detectron2(variables, path):
    # Without "matching_heuristics" the names would have to be those of one detector.
    found = {
        "model": torch_names.to_detectron2(variables),
        "__author__": "vicreg_jax",
        "matching_heuristics": True,
    }
    path.write_bytes(pickle.dumps(found))


def _stablehlo(module, variables, shape, path):
    (n,) = jax.export.symbolic_shape("n")
    images = jax.ShapeDtypeStruct((n, *shape), jnp.float32)
    features = _features(module, variables)
    exported = jax.export.export(features, platforms=PLATFORMS)(images)
    path.write_bytes(exported.serialize())


def _features(module, variables) -> Callable[[Any], jax.Array]:
    """Returns a jitted function of images that computes in float32 on any device."""
    if hasattr(module, "dtype"):
        module = module.clone(dtype=jnp.float32)

    @jax.jit
    def features(images):
        # By default GPUs and TPUs multiply float32 with fewer bits.
        with jax.default_matmul_precision("highest"):
            y = module.apply(variables, images, train=False)
        return y.astype(jnp.float32)

    return features


def _through_loading(module, path, images):
    found = loading.load(path, encoder=module)
    return np.asarray(_features(found.module, found.variables)(images))


def _through_stablehlo(path, images):
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    return np.asarray(exported.call(images))


def _through_torchvision(module, path, images):
    try:
        import torch
        from torchvision.models import resnet
    except Exception:  # missing, or made for another version of torch
        return None
    if module.width > 1:
        return None
    stages, bottleneck = module.layers
    block = resnet.Bottleneck if bottleneck else resnet.BasicBlock
    net = resnet.ResNet(block, list(stages))
    net.fc = torch.nn.Identity()
    kernel, stride, pad, _ = STEMS[module.stem]
    channels = images.shape[-1]
    net.conv1 = torch.nn.Conv2d(channels, 64, kernel, stride, pad, bias=False)
    if module.stem != "imagenet":
        net.maxpool = torch.nn.Identity()
    net.load_state_dict(torch.load(path, weights_only=True))
    with torch.no_grad():
        nchw = np.ascontiguousarray(np.transpose(images, (0, 3, 1, 2)))
        return net.eval()(torch.tensor(nchw)).numpy()
