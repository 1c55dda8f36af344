"""Encoders from files: which are read, what is found in them, what is refused."""

import importlib

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import GOLDEN
from helpers.runs import RUN, images
from helpers.torch_files import NO_TORCH, drawn, official, saved, shapes_of

from vicreg_jax import config, methods, models, train
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import Encoder, contents, export, loading, torch_names


@pytest.mark.parametrize("name", ["resnet34", "resnet50"])
def test_a_pytorch_file_gives_the_features_of_the_authors_code(tmp_path, name):
    golden = np.load(GOLDEN / f"{name}.npz")
    state_dict = drawn(models.create(name))
    assert list(state_dict) and set(state_dict) == set(golden["state_dict_names"])
    loaded = loading.load(saved(tmp_path / "encoder.pth", state_dict))
    assert loaded.module == models.create(name)
    images = golden["images_nchw"].transpose(0, 2, 3, 1).astype(np.float32)
    with jax.default_matmul_precision("highest"):
        apply = jax.jit(lambda v, x: loaded.module.apply(v, x, train=False))
        got = apply(loaded.variables, images)
    want = golden["features_eval"]
    # The golden numbers are float64: float32 through 50 layers (found 1e-6).
    atol = 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


@pytest.mark.parametrize(
    "name, options",
    [
        ("resnet18", {"stem": "cifar"}),
        ("resnet34", {}),
        ("resnet50", {"width": 2}),
        ("resnet101", {}),
        ("resnet152", {}),
        ("resnet200", {"width": 2}),
        ("wide_resnet101_2", {}),
        ("resnext101_32x8d", {}),
        ("resnext101_64x4d", {"width": 2}),
        ("resnet34d", {}),
        ("resnet200d", {"width": 2}),
    ],
)
def test_the_architecture_is_told_by_names_and_shapes(tmp_path, name, options):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    module = models.create(name, **options)
    tensors = {  # one number each, however large the shape
        k: torch.zeros([], dtype=torch.float32).expand(v.shape)
        for k, v in shapes_of(module).items()
    }
    torch.save(tensors, tmp_path / "encoder.pt")
    loaded = loading.load(tmp_path / "encoder.pt")
    assert loaded.module == module
    assert loaded.expander is loaded.config is loaded.step is None
    assert loaded.source == str(tmp_path / "encoder.pt")
    assert (loaded.mean, loaded.std) == (config.Data().mean, config.Data().std)
    # Published encoders saw 224; those with a stem for small images who knows what.
    assert loaded.image_size == (None if options.get("stem") else 224)


def test_the_authors_full_checkpoint_goes_in_and_out_bit_for_bit(tmp_path):
    encoder, state_dict, content = official()
    momentum = {"state": {0: {"mu": np.ones(3)}}, "param_groups": [{"lr": 0.2}]}
    content["optimizer"] = momentum
    path = saved(tmp_path / "model.pth", content)
    loaded = loading.load(path)
    assert loaded.module == encoder
    whole = {
        name: {"encoder": tree, "expander": loaded.expander[name]}
        for name, tree in loaded.variables.items()
    }
    back = torch_names.to_torch(whole)
    chex.assert_trees_all_equal(back, state_dict)
    chex.assert_trees_all_equal_dtypes(back, state_dict)


def test_the_expander_of_a_file_is_that_of_its_widths():
    expander = models.Expander((24, 24, 8), bias=True)
    sample = jax.ShapeDtypeStruct((2, 5), jnp.float32)
    variables = jax.eval_shape(
        lambda x: expander.init(jax.random.key(0), x, train=False), sample
    )
    assert contents.expander_of(variables) == expander


def test_safetensors_with_pytorchs_names_are_read(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")
    state_dict = drawn(models.create("resnet18"))
    numpy.save_file(state_dict, tmp_path / "model.safetensors")
    loaded = loading.load(tmp_path / "model.safetensors")
    chex.assert_trees_all_equal(loaded.variables, torch_names.from_torch(state_dict))


@pytest.mark.parametrize("library", ["timm", "torchvision.models"])
def test_the_other_librarys_resnet_is_read(tmp_path, library):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    try:
        other = importlib.import_module(library)
    except Exception as error:  # missing, or made for another version of torch
        pytest.skip(f"{library} cannot be imported: {error}")
    net = other.create_model("resnet18") if library == "timm" else other.resnet18()
    torch.manual_seed(0)
    for module in net.modules():
        if isinstance(module, torch.nn.BatchNorm2d):  # as if trained
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.5, 2)
    torch.save(net.state_dict(), tmp_path / "net.pth")
    loaded = loading.load(tmp_path / "net.pth")
    net.fc = torch.nn.Identity()
    images = np.random.default_rng(0).standard_normal((2, 96, 96, 3), np.float32)
    with torch.no_grad():
        nchw = torch.tensor(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        want = net.eval()(nchw).numpy()
    apply = jax.jit(lambda v, x: loaded.module.apply(v, x, train=False))
    got = apply(loaded.variables, images)
    # float32 sums in another order (found 1e-6)
    atol = 1e-5 * np.abs(want).max()
    np.testing.assert_allclose(got, want, rtol=0, atol=atol)


def test_a_module_of_ones_own_overrides_what_shapes_tell(tmp_path, caplog):
    path = saved(tmp_path / "a.pth", shapes_of(models.create("resnet18", stem="cifar")))
    with caplog.at_level("WARNING"):
        assert loading.load(path).module.stem == "cifar"
    assert "looks like 'cifar' or 'solo_learn'; it is taken for 'cifar'" in caplog.text
    mine = models.create("resnet18", stem="solo_learn")
    assert loading.load(path, encoder=mine).module == mine


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
@pytest.mark.parametrize("stem", ["imagenet", "cifar", "solo_learn"])
@pytest.mark.parametrize("ending", ["pth", "safetensors"])
def test_what_a_file_does_not_tell_is_said_unless_it_is_named(
    tmp_path, caplog, name, stem, ending
):
    module, path = models.create(name, stem=stem), tmp_path / f"a.{ending}"
    if ending == "pth":
        saved(path, shapes_of(module))
    else:
        tensors = {k: np.array(v) for k, v in shapes_of(module).items()}
        importlib.import_module("safetensors.numpy").save_file(tensors, path)
    with caplog.at_level("WARNING"):
        found = loading.load(path)
    taken = "imagenet" if stem == "imagenet" else "cifar"
    assert found.module == models.create(name, stem=taken)
    (record,) = caplog.records
    said = record.getMessage()
    assert f"taken for '{taken}' and a {name} as torchvision builds it" in said
    assert "config.model.stem and config.data.image_size" in said and "\n" not in said
    assert ("224 pixels" in said) == (stem == "imagenet")
    for word in ("resnetblur", "resnetaa", "dilation"):
        assert word in said
    caplog.clear()
    with caplog.at_level("WARNING"):
        assert loading.load(path, stem=stem).module == module
        assert loading.load(path, encoder=module).module == module
    assert not caplog.records


def test_a_stem_that_is_named_gives_its_features(tmp_path):
    state_dict = drawn(models.create("resnet18", stem="cifar"))
    path = saved(tmp_path / "a.pth", state_dict)
    x = np.random.default_rng(0).standard_normal((2, 32, 32, 3), np.float32)
    a, b = (loading.load(path, stem=stem).apply(x) for stem in ("cifar", "solo_learn"))
    # The padding of 2 makes maps of 34 x 34.
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1), (0, 0)))
    want = loading.load(path, stem="cifar").apply(padded)
    np.testing.assert_allclose(b, want, rtol=0, atol=1e-5 * np.abs(want).max())
    assert np.abs(a - b).max() > 0.01 * np.abs(a).max()


@pytest.mark.long
def test_a_run_and_an_export_tell_their_stem(tmp_path, caplog):
    module = models.create("resnet18", stem="solo_learn")
    like = contents.abstract(module, size=32, channels=3)
    zeros = jax.tree.map(lambda s: np.zeros(s.shape, s.dtype), like)
    given = Encoder(module, zeros, mean=[0.5] * 3, std=[0.2] * 3, image_size=32)
    export.write(given, tmp_path / "out", formats=["safetensors"])
    train.run(RUN, tmp_path / "run", source=images(32, channels=3))
    with caplog.at_level("WARNING"):
        assert loading.load(tmp_path / "out").module == module
        assert loading.load(tmp_path / "out", stem="solo_learn").module == module
        loading.load(tmp_path / "run")
    assert not caplog.records
    for path, own in (("out", "solo_learn"), ("run", "none to choose")):
        message = f"{path}.* says how its network is built: its stem is '{own}'"
        with pytest.raises(Refusal, match=message):
            loading.load(tmp_path / path, stem="cifar")


def test_a_run_is_loaded_with_expander_config_and_step(tmp_path):
    trained = train.run(RUN, tmp_path, source=images(32, channels=3))
    loaded = loading.load(tmp_path)
    want = jax.device_get(trained.encoder.variables)
    chex.assert_trees_all_equal(loaded.variables, want)
    want = jax.device_get(trained.state)
    for name, tree in (("params", want.params), ("batch_stats", want.batch_stats)):
        chex.assert_trees_all_equal(loaded.expander[name], tree["expander"])
    weights = dict(methods.Vicreg.weights)  # the run writes them out
    assert loaded.config == config.parse(RUN | dict(loss=weights))
    assert (loaded.step, loaded.source) == (int(want.step), str(tmp_path))
    data = config.parse(RUN).data
    assert (loaded.mean, loaded.std) == (data.mean, data.std)
    assert loaded.image_size == data.image_size
