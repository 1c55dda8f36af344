"""Files as people have them: each layout by a rule of its own, and what is said."""

import argparse
import re

import chex
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.torch_files import NO_TORCH, drawn, official, saved

from vicreg_jax import models
from vicreg_jax.weights import layouts, loading, torch_names


@pytest.fixture(scope="module")
def plain():
    return drawn(models.create("resnet18"))


def numbered(name, numbers):
    """The name within nn.Sequential(*net.children()), as PyTorch numbers them."""
    first, _, rest = name.partition(".")
    return f"{numbers[first]}.{rest}"


def hugging_face(name):
    """The name in transformers' ResNetModel, from the nesting of its modules."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    *place, module, leaf = name.split(".")
    kind, number = kinds.get(module[:-1]), module[-1]
    if not place:  # conv1, bn1
        return f"embedder.embedder.{kind}.{leaf}"
    stage, block = int(place[0][-1]) - 1, place[1]
    if place[-1] == "downsample":
        inner = f"shortcut.{('convolution', 'normalization')[int(module)]}"
    else:
        inner = f"layer.{int(number) - 1}.{kind}"
    return f"encoder.stages.{stage}.layers.{block}.{inner}.{leaf}"


TORCHVISION = {"conv1": 0, "bn1": 1} | {f"layer{i}": i + 3 for i in (1, 2, 3, 4)}
LIGHTLY = {"conv1": 0, "bn1": 1} | {f"layer{i}": i + 1 for i in (1, 2, 3, 4)}
HEAD = np.ones((10, 512), np.float32)


def shortcut(name):
    return name.replace("downsample", "shortcut")


@pytest.mark.parametrize(
    ("renamed", "beside", "said"),
    [
        (lambda x: f"module.backbone.{x}", [], "prefix 'module.backbone.' taken off"),
        (lambda x: f"_orig_mod.{x}", ["_orig_mod.fc.weight"], "left out: fc"),
        (lambda x: f"module._orig_mod.{x}", ["module.fc.bias"], "left out: fc"),
        (  # solo-learn
            lambda x: f"backbone.{x}",
            ["classifier.weight", "momentum_classifier.weight", "queue", "queue_ptr"],
            "left out: classifier, momentum_classifier, queue, queue_ptr",
        ),
        (
            lambda x: f"encoder.{x}",
            ["projector.0.weight", "projector.2.weight"],
            "proj",
        ),
        (  # lightly
            lambda x: f"backbone.{numbered(x, TORCHVISION)}",
            ["projection_head.layers.0.weight", "online_classifier.linear.weight"],
            "'backbone.' taken off; left out: online_classifier, projection_head",
        ),
        (
            lambda x: f"backbone.{numbered(shortcut(x), LIGHTLY)}",
            [],
            "'backbone.' taken",
        ),
        (lambda x: f"online_network.{x}", ["target_network.conv1.weight"], "target_ne"),
        (lambda x: f"resnet.{hugging_face(x)}", ["classifier.1.weight"], "classifier"),
        (hugging_face, [], ""),
        (lambda x: f"module.encoder_q.{x}", ["module.encoder_q.fc.0.weight"], "fc"),
        (  # VICRegL
            lambda x: f"module.backbone.{x}",
            ["module.maps_projector.0.weight", "module.classifier.weight"],
            "left out: classifier, maps_projector",
        ),
        (
            lambda x: x,
            ["head.weight", "prototypes.weight"],
            "left out: head, prototypes",
        ),
    ],
)
def test_a_layout_gives_the_tensors_by_torchvisions_names(plain, renamed, beside, said):
    given = {renamed(name): x for name, x in plain.items()} | dict.fromkeys(
        beside, HEAD
    )
    found = layouts.plain(given)
    assert list(found.tensors) == list(plain)
    assert all(found.tensors[name] is x for name, x in plain.items())
    assert said in found.said and bool(said) == bool(found.said)


@pytest.mark.parametrize(
    "copy",
    ["module.encoder_k.", "momentum_backbone.", "target_network.", "teacher.backbone."],
)
def test_of_an_encoder_and_what_follows_it_the_encoder_is_taken(plain, copy):
    own = {"module.encoder_k.": "module.encoder_q."}.get(copy, "backbone.")
    given = {copy + name: 0 * x for name, x in plain.items()}
    found = layouts.plain(given | {own + name: x for name, x in plain.items()})
    assert all(found.tensors[name] is x for name, x in plain.items())
    assert copy.partition(".")[0] in found.said


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float64"])
def test_half_and_double_precision_become_float32(plain, dtype):
    kind = jnp.dtype(dtype)
    given = {k: x.astype(kind) if x.ndim else x for k, x in plain.items()}
    found = layouts.plain(given)
    assert found.said == f"{dtype} becomes float32"
    want = {k: x.astype(np.float32) if x.ndim else x for k, x in given.items()}
    chex.assert_trees_all_equal(found.tensors, want)
    chex.assert_trees_all_equal_dtypes(found.tensors, want)


@pytest.mark.parametrize(
    ("name", "key"),
    [("a.ckpt", "state_dict"), ("a.pth.tar", "model_state_dict"), ("a.bin", None)],
)
def test_a_checkpoint_of_training_is_read_and_what_was_done_is_said(
    tmp_path, caplog, plain, name, key
):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    tensors = {f"backbone.{k}": torch.tensor(x) for k, x in plain.items()}
    tensors["classifier.weight"] = torch.ones(10, 512)
    content = {key: tensors, "epoch": 3, "optimizer_states": [{"lr": 0.1}]}
    content |= {"hyper_parameters": argparse.Namespace(lr=0.1)}  # of many programs
    torch.save(content if key else tensors, tmp_path / name)
    with caplog.at_level("WARNING"):
        found = loading.load(tmp_path / name, stem="imagenet")
    assert found.module == models.create("resnet18")
    chex.assert_trees_all_equal(found.variables, torch_names.from_torch(plain))
    (record,) = caplog.records
    said = f"{tmp_path / name}: prefix 'backbone.' taken off; left out: classifier"
    assert record.getMessage() == said


def test_the_projector_of_solo_learn_is_an_expander(tmp_path):
    _, state_dict, content = official("")
    bias = np.ones(32, np.float32)
    given = content["model"] | {
        "classifier.weight": HEAD,
        "momentum_projector.0.bias": bias,
    }
    found = loading.load(saved(tmp_path / "a.ckpt", {"state_dict": given}))
    assert found.expander["params"].keys() == {
        "linear0",
        "linear1",
        "linear2",
        "bn0",
        "bn1",
    }
    kernel = found.expander["params"]["linear0"]["kernel"]
    np.testing.assert_array_equal(kernel.T, state_dict["projector.0.weight"])


def test_every_name_of_the_rule_is_another(plain):
    for rule in (hugging_face, lambda x: numbered(x, LIGHTLY)):
        assert len({rule(name) for name in plain}) == len(plain)
    stems = [x for x in map(hugging_face, plain) if re.match(r"embedder\.embedder", x)]
    assert len(stems) == 6
