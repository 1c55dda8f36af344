"""Published weights in and out; the authors' training steps with their weights."""

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.paths import GOLDEN
from helpers.torch_files import by_rule

from vicreg_jax import methods, models, optim, train
from vicreg_jax.devices import sharding
from vicreg_jax.run.state import TrainState
from vicreg_jax.weights import torch_names


def joint(name="resnet18", widths=(32, 32, 16), dtype=jnp.float32, **options):
    encoder = models.create(name, dtype=dtype, **options)
    return models.JointEmbedding(encoder, models.Expander(widths, dtype=dtype))


def variables_of(module, size=32):
    sample = jnp.zeros((2, size, size, 3))
    return jax.jit(lambda: module.init(jax.random.key(0), sample, train=False))()


@pytest.mark.parametrize(
    ("name", "whole"),
    [
        *(("resnet18", False), ("resnet18", True)),
        pytest.param("resnet50", True, marks=pytest.mark.long),
    ],
)
def test_a_round_trip_changes_no_bit(name, whole):
    module = joint(name) if whole else models.create(name)
    variables = jax.tree.map(np.asarray, variables_of(module))
    back = torch_names.from_torch(torch_names.to_torch(variables))
    chex.assert_trees_all_equal(back, variables)
    chex.assert_trees_all_equal_dtypes(back, variables)


def test_names_and_shapes_are_those_of_pytorch():
    state_dict = torch_names.to_torch(variables_of(joint("resnet50")))
    shapes = {name: value.shape for name, value in state_dict.items()}
    assert shapes["backbone.conv1.weight"] == (64, 3, 7, 7)
    assert shapes["backbone.layer2.0.downsample.0.weight"] == (512, 256, 1, 1)
    assert shapes["backbone.layer2.0.downsample.1.running_var"] == (512,)
    assert shapes["backbone.layer4.2.bn3.num_batches_tracked"] == ()
    assert shapes["projector.0.weight"] == (32, 2048)
    assert shapes["projector.4.running_mean"] == (32,)
    assert shapes["projector.6.weight"] == (16, 32)
    assert "projector.6.bias" not in shapes
    assert len(shapes) == 318 + 15  # torchvision's without fc; the projector's


def test_the_prefix_of_distributed_training_is_taken_off():
    state_dict = torch_names.to_torch(variables_of(joint()))
    prefixed = {f"module.{name}": value for name, value in state_dict.items()}
    chex.assert_trees_all_equal(
        torch_names.from_torch(prefixed), torch_names.from_torch(state_dict)
    )


def test_other_names_are_refused_all_at_once():
    with pytest.raises(ValueError, match="'fc.weight' is not of a ResNet.*classifier"):
        torch_names.from_torch({"fc.weight": np.zeros((10, 512))})
    names = ["stem.conv.weight", "conv1.gain", "head.0.weight", "projector.2.weight"]
    with pytest.raises(ValueError, match="'stem.conv.weight',.*(4 names)"):
        torch_names.from_torch(dict.fromkeys(names, np.zeros(3)))


def test_variables_are_copies():
    tensor = np.zeros(64, np.float32)
    variables = torch_names.from_torch({"bn1.bias": tensor})
    tensor += 1
    assert not variables["params"]["bn1"]["bias"].any()
    state_dict = torch_names.to_torch(variables)
    state_dict["bn1.bias"] += 1
    assert not variables["params"]["bn1"]["bias"].any()


def names_of_detectron2(blocks, convolutions):
    """The tensors of a backbone of Detectron2, as its modules nest, without norms'
    counters: put together by hand, not from PyTorch's names."""
    layers = ["stem.conv1"]
    for stage, n in zip((2, 3, 4, 5), blocks, strict=True):
        for block in range(n):
            layers += [f"res{stage}.{block}.conv{i + 1}" for i in range(convolutions)]
            if block == 0 and (convolutions == 3 or stage > 2):
                layers.append(f"res{stage}.{block}.shortcut")
    leaves = ("weight", *(f"norm.{x}" for x in ("weight", "bias")))
    leaves += ("norm.running_mean", "norm.running_var")
    return {f"{layer}.{leaf}" for layer in layers for leaf in leaves}


@pytest.mark.parametrize(
    "name, blocks, convolutions",
    [("resnet50", (3, 4, 6, 3), 3), ("resnet18", (2, 2, 2, 2), 2)],
)
def test_names_are_those_of_detectron2(name, blocks, convolutions):
    module = models.create(name)
    shapes = jax.tree.map(lambda s: np.broadcast_to(0.0, s.shape), _shapes(module))
    found = torch_names.to_detectron2(shapes)
    assert found.keys() == names_of_detectron2(blocks, convolutions)
    if name == "resnet50":
        assert found["stem.conv1.weight"].shape == (64, 3, 7, 7)
        assert found["stem.conv1.norm.running_var"].shape == (64,)
        assert found["res3.0.shortcut.weight"].shape == (512, 256, 1, 1)
        assert found["res5.2.conv3.norm.bias"].shape == (2048,)


def test_detectron2_gets_the_numbers_of_the_same_layer():
    """Drawn from its own name, each tensor tells where it comes from."""
    names = ["conv1.weight", "bn1.bias", "layer3.5.bn2.running_mean"]
    names += ["layer1.0.downsample.0.weight", "layer4.0.downsample.1.weight"]
    shapes = [(64, 3, 7, 7), (64,), (256,), (256, 64, 1, 1), (2048,)]
    tensors = [by_rule(*pair) for pair in zip(names, shapes, strict=True)]
    state_dict = dict(zip(names, tensors, strict=True))
    found = torch_names.to_detectron2(torch_names.from_torch(state_dict))
    theirs = ["stem.conv1.weight", "stem.conv1.norm.bias"]
    theirs += ["res4.5.conv2.norm.running_mean", "res2.0.shortcut.weight"]
    theirs += ["res5.0.shortcut.norm.weight"]
    chex.assert_trees_all_equal(found, dict(zip(theirs, tensors, strict=True)))


def test_detectron2_takes_no_expander():
    variables = {"params": {"encoder": {}, "expander": {}}, "batch_stats": {}}
    with pytest.raises(ValueError, match="Detectron2 takes an encoder alone"):
        torch_names.to_detectron2(variables)


@pytest.mark.slow
def test_twelve_steps_of_the_authors_code_are_reproduced(float64):
    golden = np.load(GOLDEN / "trajectory_a.npz")
    second = np.load(GOLDEN / "trajectory_b.npz")["views"]
    model = joint("resnet34", (128, 128, 64), dtype=jnp.float64)
    shapes = torch_names.to_torch(
        jax.tree.map(lambda s: np.broadcast_to(0.0, s.shape), _shapes(model))
    )
    assert set(shapes) == set(golden["names"])
    state_dict = {name: by_rule(name, x.shape) for name, x in shapes.items()}
    variables = jax.tree.map(jnp.asarray, torch_names.from_torch(state_dict))
    schedule = optim.warmup_cosine(
        base_lr=float(golden["base_lr"]),
        batch_size=int(golden["batch_size"]),
        epochs=int(golden["epochs"]),
        steps_per_epoch=int(golden["steps_per_epoch"]),
    )
    tx = optim.lars(schedule, weight_decay=float(golden["weight_decay"]))
    mesh = sharding.data_mesh(jax.devices()[:1])
    step = train.make_train_step(
        methods.Vicreg(model.encoder, model.expander), tx, mesh=mesh
    )
    state = TrainState(
        step=jnp.zeros([], jnp.int32),
        params=variables["params"],
        batch_stats=variables["batch_stats"],
        opt_state=tx.init(variables["params"]),
    )
    state = jax.device_put(state, sharding.whole(mesh))
    found = []
    for t in range(12):
        pair = np.stack([golden["views"][t % 3], second[t % 3]], axis=1)
        batch = jnp.asarray(pair.transpose(0, 1, 3, 4, 2), jnp.float64)
        state, metrics, _ = step(state, batch)
        found.append(float(metrics["loss"]))
    np.testing.assert_allclose(found, golden["losses"], rtol=1e-6)
    last = torch_names.to_torch(
        {"params": state.params, "batch_stats": state.batch_stats}
    )
    norms = [np.linalg.norm(last[name]) for name in golden["names"]]
    counters = [name.endswith("num_batches_tracked") for name in golden["names"]]
    # Each step multiplies a difference by 30 to 1000; 1e-6 after twelve is tight.
    np.testing.assert_allclose(
        np.where(counters, golden["norms"], norms), golden["norms"], rtol=1e-6
    )


def _shapes(model):
    sample = jax.ShapeDtypeStruct((2, 48, 48, 3), jnp.float64)
    key = jax.random.key(0)
    return jax.eval_shape(lambda x: model.init(key, x, train=False), sample)
