"""Files that hold no encoder: refused in one line each, and nothing in them is run."""

import json
import pickle
import sys
from pathlib import Path

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.torch_files import NO_TORCH, drawn, official, saved, shapes_of

from vicreg_jax import config, models
from vicreg_jax.command import tasks as command
from vicreg_jax.config import evaluation
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import Encoder, contents, export, loading, torch_names


class Code:
    """Unpickled by anything that obeys, it makes a file."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (Path.touch, (Path(self.path),))


@pytest.mark.parametrize("kind", ["of torch", "plain"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(tmp_path, kind):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    path, trace = tmp_path / "evil.pth", tmp_path / "it ran"
    if kind == "plain":
        path.write_bytes(pickle.dumps({"model": Code(trace)}, protocol=2))
        pickle.loads(path.read_bytes())
    else:
        torch.save({"model": Code(trace)}, path)
        torch.load(path, weights_only=False)
    assert trace.exists()  # it is as malicious as it claims
    trace.unlink()
    with pytest.raises(ValueError, match="holds more than tensors.*was run") as error:
        loading.load(path)
    assert "\n" not in str(error.value)
    assert not trace.exists()


def test_tensors_that_are_missing_or_unknown_are_named(tmp_path):
    state_dict = drawn(models.create("resnet18"))
    for name in ("layer4.1.bn2.weight", "bn1.running_var"):
        del state_dict[name]
    state_dict["layer1.0.conv3.weight"] = np.zeros((64, 64, 1, 1), np.float32)
    path = saved(tmp_path / "a.pth", state_dict)
    with pytest.raises(ValueError, match=r"no encoder known here: \(2, 2, 2, 2\) bott"):
        loading.load(path)
    expected = (
        "a.pth does not fit the encoder; 2 missing: layer4.1.bn2.weight,"
        " bn1.running_var; 1 unknown: layer1.0.conv3.weight"
    )
    with pytest.raises(ValueError, match=expected):
        loading.load(path, encoder=models.create("resnet18"))


def test_a_block_that_is_missing_is_refused(tmp_path):
    state_dict = shapes_of(models.create("resnet34"))
    short = {k: v for k, v in state_dict.items() if not k.startswith("layer3.5.")}
    path = saved(tmp_path / "a.pth", short)
    with pytest.raises(
        ValueError, match=r"no encoder known here: \(3, 4, 5, 3\) basic"
    ):
        loading.load(path)


def test_another_shape_is_named_with_both(tmp_path):
    state_dict = shapes_of(models.create("resnet18"))
    state_dict["layer2.0.conv1.weight"] = np.zeros((128, 64, 1, 1), np.float32)
    path = saved(tmp_path / "a.pth", state_dict)
    expected = (
        r"1 of another shape or dtype: layer2.0.conv1.weight"
        r" float32\[128, 64, 1, 1\] for float32\[128, 64, 3, 3\]"
    )
    with pytest.raises(ValueError, match=expected):
        loading.load(path)


def test_a_projector_without_a_layer_is_refused(tmp_path):
    _, _, content = official()
    del content["model"]["module.projector.3.weight"]
    path = saved(tmp_path / "a.pth", content)
    with pytest.raises(ValueError, match="1 missing: projector.3.weight"):
        loading.load(path)


@pytest.mark.parametrize(
    "content, expected",
    [
        ({"epoch": 3}, "holds 'epoch' beside tensors"),
        ({"model": {}}, "holds {}; expected tensors by name"),
        ([1, 2], "holds a list; expected tensors by name"),
    ],
)
def test_a_file_without_a_state_dict_is_refused(tmp_path, content, expected):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    torch.save(content, tmp_path / "a.pth")
    with pytest.raises(ValueError, match=expected):
        loading.load(tmp_path / "a.pth")


def refusal(path, **options):
    with pytest.raises(Refusal) as error:
        loading.load(path, **options)
    assert "\n" not in str(error.value) and str(path.parent) in str(error.value)
    return str(error.value)


def test_parameters_are_tensors_like_others(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state_dict = drawn(models.create("resnet18"))
    whole = {name: torch.tensor(np.array(x)) for name, x in state_dict.items()}
    whole |= {k: torch.nn.Parameter(x) for k, x in whole.items() if "weight" in k}
    torch.save(whole, tmp_path / "a.pth")
    loaded = loading.load(tmp_path / "a.pth")
    chex.assert_trees_all_equal(loaded.variables, torch_names.from_torch(state_dict))


@pytest.mark.parametrize(
    "kind, expected",
    [
        ("float8", "'conv1.weight' is torch.float8_e5m2, torch.strided, on cpu; exp"),
        ("sparse", "'conv1.weight' is torch.float32, torch.sparse_coo, on cpu; expec"),
        ("meta", "'conv1.weight' is torch.float32, torch.strided, on meta; expected"),
        ("complex", "conv1.weight complex64[64, 3, 7, 7] for float32[64, 3, 7, 7]"),
        ("scalar", "expected one of resnet18"),
        ("flat", "expected one of resnet18"),
        ("integer keys", "holds 7 beside tensors"),
        ("compiled twice", "are tensors of one name with and without '_orig_mod.'"),
        ("two encoders", "there are 2 encoders, under '', 'net.'; save the tensors of"),
        ("unknown", "'neck.weight' is not of a ResNet"),
        ("shortcut twice", "there are two tensors for 'layer2.0.downsample.0.weight'"),
    ],
)
def test_what_no_encoder_is_made_of_is_refused(tmp_path, kind, expected):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    state_dict = shapes_of(models.create("resnet18"))
    whole = {
        name: torch.zeros([], dtype=torch.float32).expand(x.shape)
        for name, x in state_dict.items()
    }
    weight = torch.zeros(64, 3, 7, 7)
    whole |= {
        "float8": {"conv1.weight": weight.to(torch.float8_e5m2)},
        "sparse": {"conv1.weight": weight.to_sparse()},
        "meta": {"conv1.weight": weight.to("meta")},
        "complex": {"conv1.weight": weight.to(torch.complex64)},
        "scalar": {"conv1.weight": torch.zeros([])},
        "flat": {"conv1.weight": torch.zeros(7)},
        "integer keys": {7: weight},
        "compiled twice": {"_orig_mod.conv1.weight": weight},
        "two encoders": {f"net.{name}": x for name, x in whole.items()},
        "unknown": {"neck.weight": weight},
        "shortcut twice": {"layer2.0.shortcut.0.weight": weight},
    }[kind]
    torch.save(whole, tmp_path / "a.pth")
    assert expected in refusal(tmp_path / "a.pth")


@pytest.mark.parametrize("channels", [1, 4])
def test_other_channels_than_three_need_a_mean_and_std(tmp_path, channels):
    module = models.create("resnet18")
    shapes = contents.abstract(module, size=64, channels=channels)
    zeros = jax.tree.map(lambda s: np.broadcast_to(np.float32(0), s.shape), shapes)
    path = saved(tmp_path / "a.pth", torch_names.torch_views(zeros))
    said = refusal(path)
    assert f"takes images of {channels} channel(s), and mean and std have 3" in said
    given = dict(mean=[0.5] * channels, std=[0.2] * channels)
    assert loading.load(path, **given).channels == channels


def test_names_of_safetensors_that_clash_are_refused(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")
    one = np.zeros(3, np.float32)
    for names in (
        ["params/a", "params/a/b"],
        ["params", "params/conv1/kernel"],
        ["params/conv1/kernel/x", "params/conv1/kernel"],
        ["params/conv1/kernel/", "/"],
        ["x/\n"],
    ):
        numpy.save_file(dict.fromkeys(names, one), tmp_path / "a.safetensors")
        for module in (None, models.create("resnet18")):
            refusal(tmp_path / "a.safetensors", encoder=module)
    numpy.save_file({"params": np.array(1, np.float32)}, tmp_path / "a.safetensors")
    assert "'params' is not of a ResNet" in refusal(tmp_path / "a.safetensors")


def test_a_dtype_that_is_none_of_floats_is_told(tmp_path):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    from safetensors.torch import save_file

    state_dict = shapes_of(models.create("resnet18"))
    made = {
        name: torch.zeros(x.shape, dtype=torch.float8_e4m3fn)
        for name, x in state_dict.items()
    }
    save_file(made, tmp_path / "a.safetensors")
    assert "float8_e4m3fn" in refusal(tmp_path / "a.safetensors")


ODD = {
    "mean": [None, [0.5], [0.5, float("nan"), 0.5], ["a", "b", "c"], {"r": 0.5}],
    "std": [[0.2, 0.2, 0], [], "0.2"],
    "image_size": [0, -1, None, 8.5, "8", 10**30],
    "module": [[], {"name": "vit"}, {"width": 1}, {"name": "digits", "depth": 3}, 3],
    "step": ["three", 1.5],
    "config": [[1], "none"],
    "source": [None, 3],
    "files": [None, ["encoder.safetensors"], {"encoder.safetensors": 3}],
}


@pytest.mark.parametrize("field", ODD)
def test_odd_and_missing_fields_of_an_export_are_refused(tmp_path, field):
    shape = jnp.zeros((2, 8, 8, 3))
    module = models.create("digits")
    variables = jax.jit(lambda: module.init(jax.random.key(0), shape, train=False))()
    how = dict(mean=config.Data().mean, std=config.Data().std, image_size=8)
    export.write(Encoder(module, variables, **how), tmp_path, formats=["safetensors"])
    path = tmp_path / "encoder.json"
    about = json.loads(path.read_text())
    assert about.pop("checksum")  # those of old have none
    contents = [about | {field: value} for value in ODD[field]]
    contents.append({name: value for name, value in about.items() if name != field})
    for content in contents:
        path.write_text(json.dumps(content))
        assert "encoder.json" in refusal(tmp_path / "encoder.safetensors")
    path.write_text(json.dumps(about))
    assert loading.load(tmp_path).module == module


def test_a_damaged_config_of_a_run_is_named(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for content in (b'{"epochs"', b"\xff\xfe{}", b"[]", b'{"epochs": "x"}', b"null"):
        (tmp_path / "config.json").write_bytes(content)
        with pytest.raises(Refusal, match="config.json(:| is damaged:) .") as error:
            loading.load(tmp_path)
        assert "\n" not in str(error.value)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_file_cut_anywhere_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    tensors = {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}
    if suffix == "pth":
        saved(path, tensors)
    else:
        numpy = pytest.importorskip("safetensors.numpy", reason="it is missing")
        numpy.save_file(tensors, path)
    whole = path.read_bytes()
    for size in (0, 1, 7, 9, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        refusal(path)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_a_damaged_file_is_refused(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    if suffix == "pth":
        saved(path, {"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)})
    else:
        numpy = pytest.importorskip("safetensors.numpy", reason="it is missing")
        numpy.save_file({"conv1.weight": np.zeros((64, 3, 7, 7), np.float32)}, path)
    path.write_bytes(path.read_bytes()[:2000])
    with pytest.raises(ValueError, match=f"a.{suffix} is damaged: ") as error:
        loading.load(path)
    assert "\n" not in str(error.value)


def test_paths_that_lead_nowhere_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match="there is no file or folder .*nothing"):
        loading.load(tmp_path / "nothing")
    with pytest.raises(FileNotFoundError, match="is no run: .* nor is it an export"):
        loading.load(tmp_path)
    (tmp_path / "encoder.pkl").write_bytes(b"")
    with pytest.raises(ValueError, match="pickles are never read"):
        loading.load(tmp_path / "encoder.pkl")


@pytest.mark.parametrize(
    "package, suffix, command",
    [
        ("torch", "pth", r'pip install "vicreg_jax\[torch\]"'),
        ("safetensors", "safetensors", 'pip install "safetensors"'),
    ],
)
def test_a_missing_package_is_named(tmp_path, monkeypatch, package, suffix, command):
    path = tmp_path / f"a.{suffix}"
    path.write_bytes(b"")
    for name in (package, f"{package}.numpy"):
        monkeypatch.setitem(sys.modules, name, None)
    with pytest.raises(ModuleNotFoundError, match=command):
        loading.load(path)


@pytest.mark.parametrize(
    ("stem", "named"), [("imagenet", "cifar"), ("cifar", "imagenet"), ("cifar", "none")]
)
def test_a_stem_that_the_tensors_deny_is_refused(tmp_path, stem, named):
    path = saved(tmp_path / "a.pth", shapes_of(models.create("resnet18", stem=stem)))
    kernel = "7 x 7" if stem == "imagenet" else "3 x 3"
    message = f"a first kernel of {kernel}, which the stem '{named}' .* has not"
    with pytest.raises(Refusal, match=message):
        loading.load(path, stem=named)
    if named == "none":
        return
    for task in ("knn", "linear", "finetune", "logistic", "features", "svm", "export"):
        given = dict(task=task, checkpoint=str(path), model=dict(stem=named))
        with pytest.raises(Refusal, match=message):
            command.run(evaluation.parse(given), str(tmp_path / "out"), name="x")
    assert not (tmp_path / "out").exists()
    with pytest.raises(Refusal, match="encoder= has its own stem; leave out stem='c"):
        loading.load(path, encoder=models.create("resnet18"), stem="cifar")


@pytest.mark.parametrize(
    "place", ["layer2.0.aa.filt", "layer3.0.downsample.0.filt", "maxpool.1.filt"]
)
def test_filters_that_blur_are_no_tensors_to_leave_out(tmp_path, place):
    state_dict = shapes_of(models.create("resnet18"))
    path = saved(tmp_path / "a.pth", state_dict | {place: np.zeros((64, 1, 3, 3))})
    with pytest.raises(Refusal, match=f"'{place}' are filters that blur before pool"):
        loading.load(path)
