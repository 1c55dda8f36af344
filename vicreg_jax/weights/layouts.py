"""Other people's names of an encoder's tensors to torchvision's or timm's: no files."""

import re
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from vicreg_jax.refusals import Refusal
from vicreg_jax.weights.torch_names import COUNTER, listed

__all__ = ["Found", "plain"]


class Found(NamedTuple):
    """Tensors by names of torchvision (ResNet) or timm (others).

    Or those under "backbone." with a "projector.".
    """

    tensors: dict[str, np.ndarray]
    said: str  # what was done to them, "" if nothing


class _Layout(NamedTuple):
    stem: str  # what the first convolution is called
    block: str  # and the first one of the first block
    renamed: tuple[tuple[str, str], ...] = ()  # patterns, one after another


def _stages(numbers):
    """Returns how stages are renamed that a Sequential of all children numbers."""
    return tuple((rf"^{n}\.(?=\d)", f"layer{i}.") for i, n in enumerate(numbers, 1))


_CHILDREN = ((r"^0\.", "conv1."), (r"^1\.(?!\d)", "bn1."))
_SHORTCUT = (r"\.shortcut\.", ".downsample.")
LAYOUTS = (
    _Layout("conv1.weight", "layer1.0.conv1.weight", (_SHORTCUT,)),
    _Layout("conv1.0.weight", "layer1.0.conv1.weight"),  # three convolutions
    # nn.Sequential(*list(net.children())[:-1]) of lightly's own ResNet, then of others.
    _Layout("0.weight", "2.0.conv1.weight", (*_stages("2345"), *_CHILDREN, _SHORTCUT)),
    _Layout("0.weight", "4.0.conv1.weight", (*_stages("4567"), *_CHILDREN)),
    _Layout(  # Hugging Face
        "embedder.embedder.convolution.weight",
        "encoder.stages.0.layers.0.layer.0.convolution.weight",
        (
            (r"^embedder\.embedder\.convolution\.", "conv1."),
            (r"^embedder\.embedder\.normalization\.", "bn1."),
            *(
                (rf"^encoder\.stages\.{i}\.layers\.", f"layer{i + 1}.")
                for i in range(4)
            ),
            *((rf"\.layer\.{i}\.convolution\.", f".conv{i + 1}.") for i in range(3)),
            *((rf"\.layer\.{i}\.normalization\.", f".bn{i + 1}.") for i in range(3)),
            (r"\.shortcut\.convolution\.", ".downsample.0."),
            (r"\.shortcut\.normalization\.", ".downsample.1."),
        ),
    ),
    _Layout("patch_embed.proj.weight", "blocks.0.attn.qkv.weight"),  # ViTs of timm
    _Layout(  # of torchvision
        "conv_proj.weight",
        "encoder.layers.encoder_layer_0.ln_1.weight",
        (
            (r"^conv_proj\.", "patch_embed.proj."),
            (r"^class_token$", "cls_token"),
            (r"^encoder\.pos_embedding$", "pos_embed"),
            (r"^encoder\.ln\.", "norm."),
            (r"^encoder\.layers\.encoder_layer_", "blocks."),
            (r"\.ln_(?=\d)", ".norm"),
            (r"\.self_attention\.in_proj_", ".attn.qkv."),
            (r"\.self_attention\.out_proj\.", ".attn.proj."),
            (r"\.mlp\.(0|linear_1)\.", ".mlp.fc1."),
            (r"\.mlp\.(3|linear_2)\.", ".mlp.fc2."),
        ),
    ),
    _Layout(  # of Hugging Face, whose attention has three matrices
        "embeddings.patch_embeddings.projection.weight",
        "encoder.layer.0.layernorm_before.weight",
        (
            (r"^embeddings\.patch_embeddings\.projection\.", "patch_embed.proj."),
            (r"^embeddings\.cls_token$", "cls_token"),
            (r"^embeddings\.position_embeddings$", "pos_embed"),
            (r"^layernorm\.", "norm."),
            (r"^encoder\.layer\.", "blocks."),
            (r"\.layernorm_before\.", ".norm1."),
            (r"\.layernorm_after\.", ".norm2."),
            (r"\.attention\.attention\.(q|k|v)[a-z]+\.", r".attn.\1."),
            (r"\.attention\.output\.dense\.", ".attn.proj."),
            (r"\.intermediate\.dense\.", ".mlp.fc1."),
            (r"\.output\.dense\.", ".mlp.fc2."),
        ),
    ),
    _Layout("stem.0.weight", "stages.0.blocks.0.conv_dw.weight"),  # ConvNeXt of timm
    _Layout(  # of Hugging Face
        "embeddings.patch_embeddings.weight",
        "encoder.stages.0.layers.0.dwconv.weight",
        (
            (r"^embeddings\.patch_embeddings\.", "stem.0."),
            (r"^embeddings\.layernorm\.", "stem.1."),
            (r"^layernorm\.", "head.norm."),
            (r"^encoder\.", ""),
            (r"\.layers\.", ".blocks."),
            (r"\.downsampling_layer\.", ".downsample."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv(?=\d)", ".mlp.fc"),
            (r"\.layer_scale_parameter$", ".gamma"),
        ),
    ),
    _Layout(  # of torchvision
        "features.0.0.weight",
        "features.1.0.block.0.weight",
        (
            (r"^classifier\.0\.", "head.norm."),
            (r"^features\.0\.", "stem."),
            *((rf"^features\.{2 * i + 1}\.", f"stages.{i}.blocks.") for i in range(4)),
            *((rf"^features\.{2 * i}\.", f"stages.{i}.downsample.") for i in (1, 2, 3)),
            (r"\.layer_scale$", ".gamma"),
            *(
                (rf"\.block\.{i}\.", f".{name}.")
                for i, name in ((0, "conv_dw"), (2, "norm"), (3, "mlp.fc1"))
            ),
            (r"\.block\.5\.", ".mlp.fc2."),
        ),
    ),
)
# What follows a learned encoder: momentum copies, targets, teachers.
FOLLOWER = re.compile(r"(^|[._])(momentum|target|teacher|ema|key|k)(?=[._])")
HEAD = re.compile(
    r"(?!head\.norm\.)(\w+_)?(fc|classifier|linear|head|heads|pooler|projector|predictor"
    r"|prototypes|queue)(_ptr)?([.].*)?"
)
PROJECTOR = re.compile(r"(\d+)\.(weight|bias|running_mean|running_var|" + COUNTER + ")")
HALVES = ("float16", "bfloat16", "float64")


def plain(tensors: Mapping[str, np.ndarray]) -> Found:
    """Returns the encoder of a state dict, and the projector that is as the authors'.

    Known are ResNets as torchvision, timm, solo-learn, lightly, Hugging Face, MoCo and
    VICRegL save them, ViTs and ConvNeXts as timm, torchvision and Hugging Face do,
    alone or in a model, whatever prefixes that model, distributed training (`module.`)
    or torch.compile (`_orig_mod.`) give. Of an encoder and its momentum copy the
    encoder is taken; classifiers and other heads are left out. Half and double
    precision become float32. What is not known stays as it is.

    Raises:
      Refusal: there are several encoders, or two tensors of one name.

    >>> zero, name = np.zeros(1, np.float16), "layer1.0.conv1.weight"
    >>> given = {f"net.{x}": zero for x in ("conv1.weight", name)}
    >>> found = plain(given | {"head.weight": zero})
    >>> sorted(found.tensors)
    ['conv1.weight', 'layer1.0.conv1.weight']
    >>> found.said
    "prefix 'net.' taken off; left out: head; float16 becomes float32"
    """
    names = {name.replace("_orig_mod.", ""): name for name in tensors}
    if len(names) < len(tensors):
        raise Refusal("there are tensors of one name with and without '_orig_mod.'")
    prefix, layout = _encoder(names)
    if layout is None:
        prefix, parts = "", {name: name for name in names}
    else:
        parts = _parts(names, prefix, layout)
    found = _joined({name: tensors[names[own]] for name, own in parts.items()})
    found = {  # torchvision: [c, 1, 1]
        name: x.reshape(-1) if name.endswith(".gamma") else x
        for name, x in found.items()
    }
    dtypes = sorted({x.dtype.name for x in found.values()} & set(HALVES))
    found = {
        name: x.astype(np.float32) if x.dtype.name in HALVES else x
        for name, x in found.items()
    }
    around = re.sub(r"[^.]*\.$", "", prefix)
    left = [x.removeprefix(prefix) for x in names.keys() - parts.values()]
    heads = sorted({x.removeprefix(around).partition(".")[0] for x in left})
    said = [f"prefix {prefix!r} taken off"] if prefix else []
    said += [f"left out: {', '.join(heads)}"] if heads else []
    said += [f"{' and '.join(dtypes)} becomes float32"] if dtypes else []
    return Found(found, "; ".join(said))


def _joined(tensors):
    """Returns tensors, with queries, keys and values one after another in one."""
    whole = dict(tensors)
    for name in tensors:
        thirds = [name.replace(".attn.q.", f".attn.{x}.") for x in "qkv"]
        if ".attn.q." in name and whole.keys() >= set(thirds):
            joined = np.concatenate([whole.pop(x) for x in thirds])
            whole[name.replace(".attn.q.", ".attn.qkv.")] = joined
    return whole


def _encoder(names):
    """Returns the prefix and the layout of the encoder; None where there is none."""
    found = {}
    for layout in LAYOUTS:
        for name in names:
            prefix = name.removesuffix(layout.block)
            ends = prefix != name and (not prefix or prefix.endswith("."))
            if ends and prefix + layout.stem in names:
                found.setdefault(prefix, layout)
    own = [prefix for prefix in found if not FOLLOWER.search(prefix)] or list(found)
    if len(own) > 1:
        raise Refusal(
            f"there are {len(own)} encoders, under {listed(own)}; save the tensors of"
            " one of them alone"
        )
    return (own[0], found[own[0]]) if own else ("", None)


def _parts(names, prefix, layout):
    """Returns new name -> name of the encoder's tensors, and of its projector's."""
    own = {}
    for name in names:
        bare = name.removeprefix(prefix)
        if not name.startswith(prefix):
            continue
        for pattern, new in layout.renamed:
            bare = re.sub(pattern, new, bare)
        if HEAD.fullmatch(bare):
            continue
        if bare in own:
            raise Refusal(f"there are two tensors for {bare!r}")
        own[bare] = name
    parent = re.fullmatch(r"(.*?)(backbone|encoder)\.", prefix)
    if not parent:
        return own
    above = f"{parent[1]}projector."
    beside = {x.removeprefix(above): x for x in names if x.startswith(above)}
    numbers = [PROJECTOR.fullmatch(bare) for bare in beside]
    # Linear, norm and ReLU in turn, as the authors and solo-learn have it.
    if not beside or not all(x and int(x[1]) % 3 < 2 for x in numbers):
        return own
    whole = {f"backbone.{bare}": name for bare, name in own.items()}
    return whole | {f"projector.{bare}": name for bare, name in beside.items()}
