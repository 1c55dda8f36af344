"""Files of ViTs and ConvNeXts: other libraries' names, and what tensors tell."""

import re
from dataclasses import replace

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.networks import numpy_convnext, numpy_vit
from helpers.torch_files import drawn, shapes_of
from safetensors.numpy import save_file

from vicreg_jax import config as configs
from vicreg_jax import models
from vicreg_jax.evaluate import heads
from vicreg_jax.models import convnext, vit
from vicreg_jax.refusals import Refusal
from vicreg_jax.train import build, start
from vicreg_jax.weights import export, from_torch, layouts, load

VIT = vit.VisionTransformer(vit.Shape(24, 2, 3, 16))
CONVNEXT = convnext.ConvNext(convnext.Stages((1, 1, 2, 1), (4, 6, 8, 10)))


def drawn_variables(module):
    return from_torch(drawn(module))["params"]


def torchvision_vit(name):
    """The name in torchvision's VisionTransformer, from the nesting of its modules."""
    whole = {"cls_token": "class_token", "pos_embed": "encoder.pos_embedding"}
    if name in whole:
        return whole[name]
    module, _, leaf = name.rpartition(".")
    inner = {
        "norm1": "ln_1.",
        "attn.qkv": "self_attention.in_proj_",
        "attn.proj": "self_attention.out_proj.",
        "norm2": "ln_2.",
        "mlp.fc1": "mlp.0.",
        "mlp.fc2": "mlp.3.",
    }
    if block := re.fullmatch(r"blocks\.(\d+)\.(.*)", module):
        return f"encoder.layers.encoder_layer_{block[1]}.{inner[block[2]]}{leaf}"
    return {"patch_embed.proj": "conv_proj.", "norm": "encoder.ln."}[module] + leaf


def torchvision_convnext(name):
    """The name in torchvision's ConvNeXt, whose stages and steps are numbered."""
    module, _, leaf = name.rpartition(".")
    if block := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.?(.*)", module):
        number = {"conv_dw": 0, "norm": 2, "mlp.fc1": 3, "mlp.fc2": 5}.get(block[3])
        inner = "layer_scale" if number is None else f"block.{number}.{leaf}"
        return f"features.{2 * int(block[1]) + 1}.{block[2]}.{inner}"
    if step := re.fullmatch(r"stages\.(\d)\.downsample\.(\d)", module):
        return f"features.{2 * int(step[1])}.{step[2]}.{leaf}"
    first = {"stem.0": "features.0.0.", "stem.1": "features.0.1."}
    return (first | {"head.norm": "classifier.0."})[module] + leaf


def hugging_face_vit(name):
    """The name in transformers' ViTModel, `{}` for query, key and value."""
    whole = {"cls_token": "cls_token", "pos_embed": "position_embeddings"}
    if name in whole:
        return f"vit.embeddings.{whole[name]}"
    module, _, leaf = name.rpartition(".")
    inner = {
        "norm1": "layernorm_before",
        "attn.qkv": "attention.attention.{}",
        "attn.proj": "attention.output.dense",
        "norm2": "layernorm_after",
        "mlp.fc1": "intermediate.dense",
        "mlp.fc2": "output.dense",
    }
    if block := re.fullmatch(r"blocks\.(\d+)\.(.*)", module):
        return f"vit.encoder.layer.{block[1]}.{inner[block[2]]}.{leaf}"
    first = {"patch_embed.proj": "embeddings.patch_embeddings.projection"}
    return f"vit.{(first | {'norm': 'layernorm'})[module]}.{leaf}"


def hugging_face_convnext(name):
    """The name in transformers' ConvNextModel."""
    module, _, leaf = name.rpartition(".")
    if block := re.fullmatch(r"stages\.(\d)\.blocks\.(\d+)\.?(.*)", module):
        inner = {
            "conv_dw": f"dwconv.{leaf}",
            "norm": f"layernorm.{leaf}",
            "mlp.fc1": f"pwconv1.{leaf}",
            "mlp.fc2": f"pwconv2.{leaf}",
        }.get(block[3], "layer_scale_parameter")
        return f"convnext.encoder.stages.{block[1]}.layers.{block[2]}.{inner}"
    if step := re.fullmatch(r"stages\.(\d)\.downsample\.(\d)", module):
        place = f"encoder.stages.{step[1]}.downsampling_layer.{step[2]}"
        return f"convnext.{place}.{leaf}"
    first = {"stem.0": "embeddings.patch_embeddings", "stem.1": "embeddings.layernorm"}
    return f"convnext.{(first | {'head.norm': 'layernorm'})[module]}.{leaf}"


@pytest.mark.parametrize(
    ("module", "renamed", "head"),
    [
        (VIT, lambda name: name, "head.weight"),
        (VIT, lambda name: f"module.backbone.{name}", "module.head.weight"),
        (VIT, torchvision_vit, "heads.head.weight"),
        (CONVNEXT, lambda name: name, "head.fc.weight"),
        (CONVNEXT, torchvision_convnext, "classifier.2.weight"),
        (VIT, hugging_face_vit, "vit.pooler.dense.weight"),
        (VIT, hugging_face_vit, "classifier.weight"),
        (CONVNEXT, hugging_face_convnext, "classifier.weight"),
    ],
)
def test_a_layout_gives_the_tensors_by_timms_names(module, renamed, head):
    tensors = drawn(module)
    given = {renamed(name): x for name, x in tensors.items()} | {head: np.ones((2, 4))}
    for name in [name for name in given if "{}" in name]:
        thirds = np.split(given.pop(name), 3)
        given |= {
            name.format(x): part
            for x, part in zip(("query", "key", "value"), thirds, strict=True)
        }
    for name in [name for name in given if name.endswith("layer_scale")]:
        given[name] = given[name][:, None, None]
    found = layouts.plain(given)
    chex.assert_trees_all_equal(found.tensors, tensors)
    assert "left out: " in found.said


@pytest.mark.parametrize(
    ("module", "numpy"),
    [
        (VIT, lambda t, x: numpy_vit(t, x, heads=3, pool="token")),
        (CONVNEXT, lambda t, x: numpy_convnext(t, x, (1, 1, 2, 1))),
    ],
)
def test_a_file_goes_in_and_out(module, numpy, tmp_path):
    tensors = drawn(module)
    save_file(tensors, tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors", encoder=module)
    found = replace(found, image_size=64)
    x = np.random.default_rng(0).standard_normal((2, 64, 64, 3)).astype(np.float32)
    want = numpy(tensors, x)
    error = np.abs(jax.jit(found.apply)(jnp.asarray(x)) - want).max()
    assert error < 1e-5 * np.abs(want).max()  # float32
    export.write(found, tmp_path / "out", formats=["safetensors"])
    again = load(tmp_path / "out", encoder=module)
    chex.assert_trees_all_equal(again.variables["params"], found.variables["params"])
    assert export.agreement(found, tmp_path / "out", x) == {"safetensors": 0}


@pytest.mark.parametrize(
    ("name", "options"),
    [("vit_small_patch16", {"pool": "mean"}), ("convnext_tiny", {})],
)
def test_tensors_tell_what_they_are_of(name, options, tmp_path, caplog):
    module = models.create(name, **options)
    zeros = {name: np.array(x) for name, x in shapes_of(module).items()}
    save_file(zeros, tmp_path / "a.safetensors")
    found = load(tmp_path / "a.safetensors")
    assert found.module == module
    assert found.image_size == (64 if "vit" in name else 224)
    assert f"it is taken for a {name} as timm builds it" in caplog.text
    with pytest.raises(Refusal, match="has no stem to choose; leave out 'cifar'$"):
        load(tmp_path / "a.safetensors", stem="cifar")


def test_another_depth_is_refused_with_what_was_found(tmp_path):
    save_file(drawn(VIT), tmp_path / "a.safetensors")
    said = (
        "is no encoder known here: width 24, depth 2, .*patch 16; expected one of vit"
    )
    with pytest.raises(Refusal, match=said):
        load(tmp_path / "a.safetensors")


def test_a_run_on_other_images_interpolates_the_positions():
    given = configs.parse(
        {"data": {"image_size": 32}, "model": {"expander": (8, 8)}, "method": "vicreg"}
    )
    method = build.method(given, VIT, None)
    variables = {"params": drawn_variables(VIT)}
    found = start.of_variables(variables, given, method).parts["encoder"]["params"]
    old = variables["params"]["pos_embed"]
    np.testing.assert_array_equal(found["pos_embed"], vit.resized(old, (2, 2)))
    same = {k: v for k, v in variables["params"].items() if k != "pos_embed"}
    chex.assert_trees_all_equal(same, {k: found[k] for k in same})


def test_heads_see_the_last_blocks_of_a_convnext_and_none_of_a_vit():
    images = jnp.zeros((1, 64, 64, 3))
    variables = {"params": drawn_variables(CONVNEXT)}
    seen = heads.features(CONVNEXT, variables, images, (0, 2))
    assert {layer: x.shape[1] for layer, x in seen.items()} == {"0": 10, "2": 18}
    with pytest.raises(Refusal, match="the encoder has 0; use 0, its representation$"):
        heads.features(VIT, {"params": drawn_variables(VIT)}, images, (1,))
