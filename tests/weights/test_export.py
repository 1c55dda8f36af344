"""What is written for others gives them the same features."""

import json
import pickle
import sys

import chex
import flax.linen as nn
import jax
import jax.export
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.exports import MEAN, STD, digits, encoder, images, written
from helpers.torch_files import NO_TORCH

from vicreg_jax import config, files, models
from vicreg_jax.weights import export, loading


class Flat(nn.Module):
    """An encoder of the user's own, with half precision and without statistics."""

    @nn.compact
    def __call__(self, x, *, train):
        dense = nn.Dense(5, dtype=x.dtype, param_dtype=jnp.bfloat16, name="a")
        return dense(x.reshape(len(x), -1)) * self.param("b", nn.initializers.ones, [])


def features(loaded, x):
    return jax.jit(lambda v, x: loaded.module.apply(v, x, train=False))(
        loaded.variables, x
    )


def assert_agree(got, want):
    """float32 sums in another order through 50 layers: found at most 2e-6."""
    want = np.asarray(want)
    np.testing.assert_allclose(got, want, rtol=0, atol=1e-5 * np.abs(want).max())


# safetensors


@pytest.mark.parametrize(
    "module, size",
    [
        (models.create("resnet18", width=2, stem="solo_learn"), 32),
        (models.create("resnet50", dtype=jnp.bfloat16), 96),
        (models.create("digits"), 8),
    ],
)
def test_safetensors_come_back_bit_for_bit(tmp_path, module, size):
    run = config.parse({"epochs": 20, "data": {"name": "digits"}})
    given = encoder(module, size=size, run=run)
    paths = written(given, tmp_path / "out", "safetensors", size=size)
    assert paths == {"safetensors": tmp_path / "out" / "encoder.safetensors"}
    for path in (tmp_path / "out", paths["safetensors"]):
        loaded = loading.load(path)
        chex.assert_trees_all_equal(loaded.variables, given.variables)
        chex.assert_trees_all_equal_dtypes(loaded.variables, given.variables)
        assert loaded.module == module
        assert (loaded.config, loaded.step) == (run, 12)
        assert (loaded.mean, loaded.std) == (MEAN, STD)


def test_a_module_of_the_users_own_comes_back_when_it_is_given(tmp_path):
    given = encoder(Flat(), size=8)
    written(given, tmp_path, "safetensors", size=8)
    loaded = loading.load(tmp_path, encoder=Flat())
    chex.assert_trees_all_equal(loaded.variables, given.variables)
    chex.assert_trees_all_equal_dtypes(loaded.variables, given.variables)
    with pytest.raises(ValueError, match="Give the module: encoder="):
        loading.load(tmp_path)


def test_the_description_tells_how_to_use_the_files(tmp_path):
    given = encoder(models.create("resnet18", stem="cifar"))
    written(given, tmp_path, "safetensors")
    about = json.loads((tmp_path / "encoder.json").read_text())
    name = {"name": "resnet18", "width": 1, "stem": "cifar", "dtype": "float32"}
    assert about["module"] == name | {"zero_init_residual": True}
    assert (about["image_size"], about["mean"]) == (32, list(MEAN))
    assert (about["source"], about["step"], about["config"]) == ("runs/mine", 12, None)


def test_a_config_of_another_version_does_not_bar_the_weights(tmp_path):
    given = digits()
    written(given, tmp_path, "safetensors", size=8)
    about = json.loads((tmp_path / "encoder.json").read_text())
    assert about.pop("checksum")
    about["config"] = {"a_field_of_the_future": 1}
    files.write_json(tmp_path / "encoder.json", files.sealed(about))
    loaded = loading.load(tmp_path)
    assert loaded.config is None
    chex.assert_trees_all_equal(loaded.variables, given.variables)


def test_the_module_is_read_as_an_earlier_version_wrote_it(tmp_path):
    given = digits()
    written(given, tmp_path, "safetensors", size=8)
    about = json.loads((tmp_path / "encoder.json").read_text())
    assert about.pop("checksum")  # which it had not
    about["module"] = {"name": "digits", "width": 1, "stem": "imagenet"}
    about["module"]["dtype"] = "float32"
    (tmp_path / "encoder.json").write_text(json.dumps(about))
    assert loading.load(tmp_path).module == given.module


def test_a_file_that_is_not_the_one_described_is_refused(tmp_path):
    path = written(digits(), tmp_path, "safetensors", size=8)["safetensors"]
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    with pytest.raises(ValueError, match="is not the file that encoder.json beside"):
        loading.load(tmp_path)


def test_a_description_of_another_format_is_refused(tmp_path):
    written(digits(), tmp_path, "safetensors", size=8)
    path = tmp_path / "encoder.json"
    about = json.loads(path.read_text()) | {"format": "vicreg_jax encoder 2"}
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="encoder.json is damaged: its checksum is wr"):
        loading.load(tmp_path)
    del about["checksum"]
    path.write_text(json.dumps(about))
    with pytest.raises(ValueError, match="format 'vicreg_jax encoder 2'; this version"):
        loading.load(tmp_path)
    path.write_text("{")
    with pytest.raises(ValueError, match="encoder.json is damaged: Expecting property"):
        loading.load(tmp_path)


def test_an_export_without_weights_is_not_read_back(tmp_path):
    written(digits(), tmp_path, "stablehlo", size=8)
    with pytest.raises(FileNotFoundError, match="holds only encoder.stablehlo, which"):
        loading.load(tmp_path)


# PyTorch and Detectron2, by plain torch.nn.functional


def residual_network(tensors, x, *, detectron2=False, stem="imagenet"):
    """Returns the last feature map [n, f, h, w] of a ResNet with these tensors."""
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    functional = torch.nn.functional

    def layer(x, conv, norm, stride=1):
        weight = tensors[f"{conv}.weight"]
        pad = 2 if stem == "solo_learn" and conv == "conv1" else weight.shape[-1] // 2
        groups = x.shape[1] // weight.shape[1]
        x = functional.conv2d(x, weight, stride=stride, padding=pad, groups=groups)
        names = ("running_mean", "running_var", "weight", "bias")
        return functional.batch_norm(x, *(tensors[f"{norm}.{name}"] for name in names))

    def numbered(block, i):
        conv = f"{block}.conv{i}"
        return conv, f"{conv}.norm" if detectron2 else f"{block}.bn{i}"

    deep = "conv1.0.weight" in tensors  # ResNet-D
    if detectron2:
        x = layer(x, "stem.conv1", "stem.conv1.norm", 2)
    elif deep:
        x = functional.relu(layer(x, "conv1.0", "conv1.1", 2))
        x = functional.relu(layer(x, "conv1.3", "conv1.4"))
        x = layer(x, "conv1.6", "bn1")
    else:
        x = layer(x, "conv1", "bn1", 2 if stem == "imagenet" else 1)
    x = functional.relu(x)
    if stem == "imagenet":
        x = functional.max_pool2d(x, 3, 2, 1)
    for stage in (1, 2, 3, 4):
        for j in range(100):
            block = f"res{stage + 1}.{j}" if detectron2 else f"layer{stage}.{j}"
            if f"{block}.conv1.weight" not in tensors:
                break
            stride = 2 if stage > 1 and j == 0 else 1
            short = ("shortcut", "shortcut.norm")
            if not detectron2:
                short = tuple(f"downsample.{i + deep}" for i in (0, 1))
            short = tuple(f"{block}.{name}" for name in short)
            if f"{block}.conv3.weight" in tensors:  # stride in the 3 x 3
                y = functional.relu(layer(x, *numbered(block, 1)))
                y = functional.relu(layer(y, *numbered(block, 2), stride))
                y = layer(y, *numbered(block, 3))
            else:
                y = functional.relu(layer(x, *numbered(block, 1), stride))
                y = layer(y, *numbered(block, 2))
            if deep and stride == 2:
                pooled = functional.avg_pool2d(
                    x, 2, 2, ceil_mode=True, count_include_pad=False
                )
                x = layer(pooled, *short)
            elif f"{short[0]}.weight" in tensors:
                x = layer(x, *short, stride)
            x = functional.relu(x + y)
    return x


def nchw(x):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    return torch.tensor(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


@pytest.mark.parametrize(
    "name, options, size",
    [
        ("resnet18", {"width": 2, "stem": "cifar"}, 32),
        ("resnet18", {"stem": "solo_learn"}, 32),
        ("resnet50", {}, 96),
        ("resnet18d", {}, 97),  # odd maps end in means of fewer pixels
        pytest.param("resnet50d", {"width": 2}, 96, marks=pytest.mark.long),
        pytest.param("resnext50_32x4d", {}, 96, marks=pytest.mark.slow),
    ],
)
def test_the_pytorch_file_gives_pytorch_the_same_features(
    tmp_path, name, options, size
):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    given = encoder(models.create(name, **options), size=size)
    path = written(given, tmp_path, "torch", size=size)["torch"]
    assert path.name == "encoder.pth"
    tensors = torch.load(path, weights_only=True)
    x = images(2, size)
    stem = options.get("stem", "imagenet")
    got = residual_network(tensors, nchw(x), stem=stem).mean((2, 3)).numpy()
    assert_agree(got, features(given, x))
    loaded = loading.load(tmp_path)  # with the stem that its shapes do not tell
    assert loaded.module == given.module
    chex.assert_trees_all_equal(loaded.variables, given.variables)


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_detectron2_gets_the_same_features(tmp_path, name):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    given = encoder(models.create(name), size=96)
    path = written(given, tmp_path, "detectron2", size=96)["detectron2"]
    content = pickle.loads(path.read_bytes())
    assert content["matching_heuristics"] is True  # names are ends of a detector's
    assert "__author__" in content
    tensors = {name: torch.tensor(value) for name, value in content["model"].items()}
    x = images(2, 96)
    got = residual_network(tensors, nchw(x), detectron2=True).mean((2, 3)).numpy()
    assert_agree(got, features(given, x))


# StableHLO


def test_stablehlo_gives_the_same_features_for_any_batch(tmp_path):
    given = encoder(models.create("resnet18", stem="cifar"))
    path = written(given, tmp_path, "stablehlo")["stablehlo"]
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    assert exported.platforms == ("cpu", "cuda", "tpu")
    for n in (1, 3):
        x = images(n, 32)
        got = exported.call(x)
        assert got.dtype == jnp.float32
        assert_agree(got, features(given, x))
    with pytest.raises(ValueError, match="images|shape|Dimension|dimension"):
        exported.call(images(1, 16))


def test_stablehlo_of_a_half_precision_encoder_computes_in_float32(tmp_path):
    half = digits(dtype=jnp.bfloat16)
    path = written(half, tmp_path, "stablehlo", size=8)["stablehlo"]
    exported = jax.export.deserialize(bytearray(path.read_bytes()))
    x = images(4, 8)
    assert_agree(exported.call(x), features(digits(), x))
    rough = np.abs(np.asarray(features(half, x), np.float32) - exported.call(x)).max()
    assert rough > 1e-4  # so that the comparison means something


def test_multiplications_are_exported_in_full_precision(tmp_path):
    """CPUs do not show what TF32 and bfloat16 passes would do; the program does."""
    path = written(digits(), tmp_path, "stablehlo", size=8)["stablehlo"]
    text = jax.export.deserialize(bytearray(path.read_bytes())).mlir_module()
    products = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(products) >= 5  # of the five layers, platforms apart
    assert all(line.count("HIGHEST") == 2 for line in products)


# Agreement


def test_agreement_compares_every_file_that_can_be_run_here(tmp_path, capsys):
    given = encoder(models.create("resnet18"), size=96)
    formats = ["safetensors", "stablehlo", "detectron2"]
    try:
        import torch
        from torchvision.models import resnet
    except Exception:  # missing, or made for another version of torch
        checked = {"safetensors", "stablehlo"}
    else:
        del torch, resnet
        formats.append("torch")
        checked = {"safetensors", "stablehlo", "torch"}
    written(given, tmp_path, *formats, size=96)
    table = export.agreement(given, tmp_path, images(2, 96))
    assert table.keys() == checked
    assert table["safetensors"] == 0
    assert max(table.values()) < export.TOLERANCE
    export.show(table)
    said = capsys.readouterr().out
    assert "detectron2.pkl" in said and "not checked: load it with Detectron2" in said
    assert ("not checked: install torch and torchvision" in said) == (
        "torch" not in checked
    )
    assert "differs" not in said


def test_agreement_tells_other_weights(tmp_path, capsys):
    written(digits(), tmp_path, "safetensors", "stablehlo", size=8)
    other = digits()
    other.variables["params"]["conv3"]["kernel"] *= 1.01
    table = export.agreement(other, tmp_path, images(2, 8))
    assert 1e-3 < min(table.values())
    export.show(table, formats=["stablehlo"])
    said = capsys.readouterr().out
    assert "differs: over 0.0001" in said and "safetensors" not in said


def test_agreement_of_a_module_of_the_users_own_and_of_half_precision(tmp_path):
    for name, given in [
        ("own", encoder(Flat(), size=8)),
        ("half", digits(dtype=jnp.bfloat16)),
    ]:
        written(given, tmp_path / name, "safetensors", size=8)
        found = export.agreement(given, tmp_path / name, images(2, 8))
        assert found == {"safetensors": 0}


def test_without_torchvision_the_pytorch_file_is_not_checked(tmp_path, monkeypatch):
    pytest.importorskip("torch", reason=NO_TORCH)
    given = encoder(models.create("resnet18", stem="cifar"))
    written(given, tmp_path, "torch")
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    assert export.agreement(given, tmp_path, images(1, 32)) == {}


def test_images_that_do_not_fit_are_refused(tmp_path):
    given = digits()
    with pytest.raises(FileNotFoundError, match="holds no export: no encoder.json"):
        export.agreement(given, tmp_path, images(2, 8))
    written(given, tmp_path, "safetensors", size=8)
    for x in (images(2, 9), images(2, 8).astype(np.float64), images(0, 8)):
        with pytest.raises(ValueError, match=r"float32 \[n >= 1, 8, 8, 3\]; got"):
            export.agreement(given, tmp_path, x)
