"""Encoders and heads against PyTorch's numbers, closed forms and NumPy."""

import re
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict, unflatten_dict
from helpers.modules import assert_close, count, numpy_norm, shapes
from helpers.paths import GOLDEN
from helpers.torch_files import by_rule

from vicreg_jax import models
from vicreg_jax.devices import sharding
from vicreg_jax.models import resnet

PARAMETERS = {  # without the classifier; torchvision's but for resnet200
    "resnet18": 11_176_512,
    "resnet34": 21_284_672,
    "resnet50": 23_508_032,
    "resnet101": 42_500_160,
    "resnet152": 58_143_808,
    "resnet200": 62_624_832,  # summed over its convolutions and norms apart from here
    "wide_resnet50_2": 66_834_240,
    "wide_resnet50_4": 221_390_144,  # 221 M in the paper's table 9
    "wide_resnet101_2": 124_837_696,
    "resnext50_32x4d": 22_979_904,
    "resnext101_32x8d": 86_742_336,
    "resnext101_32x16d": 191_977_792,  # 191 M in the paper's table 9
    "resnext101_64x4d": 81_406_272,
    "resnet18d": 11_195_744,  # timm's from here on
    "resnet34d": 21_303_904,
    "resnet50d": 23_527_264,
}


# PyTorch's numbers, in float64. 1e-8 is for sums in another order through 50 layers
# (found 4e-13); a wrong padding, name, layout or momentum shows in the first digits.


def our_path(name):
    """Where the tensor of a PyTorch state dict lies in our variables."""
    name = re.sub(r"(layer\d)\.(\d+)", r"\1_\2", name)
    name = name.replace("downsample.0", "downsample_conv")
    *path, leaf = name.replace("downsample.1", "downsample_bn").split(".")
    place = {
        "weight": ("params", "kernel" if "conv" in path[-1] else "scale"),
        "bias": ("params", "bias"),
        "running_mean": ("batch_stats", "mean"),
        "running_var": ("batch_stats", "var"),
    }
    collection, leaf = place[leaf]
    return (collection, *path, leaf)


def torch_variables(names, wanted):
    """Our variables of these shapes with the weights of a PyTorch state dict."""
    wanted, found = flatten_dict(wanted), {}
    for name in names:
        if not name.endswith("num_batches_tracked"):
            path = our_path(name)
            shape = wanted[path].shape
            if len(shape) == 4:  # OIHW to HWIO
                oihw = [shape[axis] for axis in (3, 2, 0, 1)]
                found[path] = by_rule(name, oihw).transpose(2, 3, 1, 0)
            else:
                found[path] = by_rule(name, shape)
    assert found.keys() == wanted.keys()  # neither side has a tensor of its own
    return unflatten_dict(found)


@pytest.fixture(
    scope="module",
    params=[
        *("resnet34", "resnet50"),
        pytest.param("resnet50x2", marks=pytest.mark.long),
    ],
)
def passes(request):
    """The golden file and what we make of its images: forward and backward passes."""
    golden = dict(np.load(GOLDEN / f"{request.param}.npz"))
    name, _, width = request.param.partition("x")
    create = partial(models.create, name, width=int(width or 1))
    wanted = shapes(create(), 64, 64, 3)
    with jax.enable_x64(True):
        module = create(dtype=jnp.float64)
        variables = torch_variables(golden["state_dict_names"], wanted)
        x = jnp.asarray(golden["images_nchw"].transpose(0, 2, 3, 1))
        found = {"eval": jax.jit(partial(module.apply, train=False))(variables, x)}

        def train(params):
            y, new = module.apply(
                variables | {"params": params}, x, train=True, mutable="batch_stats"
            )
            return jnp.sum(y * golden.get("cotangent", 0)), (y, new["batch_stats"])

        if "cotangent" in golden:
            train = jax.grad(train, has_aux=True)
            grads, found["train"] = jax.jit(train)(variables["params"])
            found["grads"] = {"params": grads}
        else:  # the widest: forward alone
            _, found["train"] = jax.jit(train)(variables["params"])
    return golden, found


def at(tree, name):
    return np.asarray(flatten_dict(tree)[our_path(name)])


def test_features_in_evaluation_are_those_of_torch(passes):
    golden, found = passes
    want = golden["features_eval"]
    assert_close(found["eval"][:, : want.shape[1]], want, 1e-8)


def test_features_in_training_are_those_of_torch(passes):
    golden, found = passes
    want = golden["features_train"]
    assert_close(found["train"][0][:, : want.shape[1]], want, 1e-8)


def test_running_statistics_are_those_of_torch(passes):
    golden, found = passes
    for key, name in [("mean", "running_mean"), ("var", "running_var")]:
        for layer in ("bn1", "layer4.2.bn2"):
            got = at({"batch_stats": found["train"][1]}, f"{layer}.{name}")
            assert_close(got, golden[f"{name}/{layer}"], 1e-8), key


@pytest.mark.parametrize("passes", ["resnet34", "resnet50"], indirect=True)
def test_gradients_are_those_of_torch(passes):
    golden, found = passes
    conv = at(found["grads"], "conv1.weight").transpose(3, 2, 0, 1)
    assert_close(conv[:16], golden["grad/conv1.weight"], 1e-8)
    assert_close(at(found["grads"], "bn1.weight"), golden["grad/bn1.weight"], 1e-8)
    norms = [np.linalg.norm(at(found["grads"], n)) for n in golden["grad_names"]]
    np.testing.assert_allclose(norms, golden["grad_norms"], rtol=1e-8)


# Architecture


@pytest.mark.parametrize("name", PARAMETERS)
def test_resnets_have_the_published_number_of_parameters(name):
    module = models.create(name)
    assert count(shapes(module, 96, 96, 3)["params"]) == PARAMETERS[name]


def test_twice_the_width_is_the_published_resnet50x2():
    # 23.5 M with all channels doubled but for the three of the image.
    assert count(shapes(models.create("resnet50", width=2), 96, 96, 3)["params"]) == (
        93_907_072
    )


def features(module, *shape):
    """Number of features of images [3, *shape], without computing them."""
    init = partial(module.init_with_output, train=False)
    y, _ = jax.eval_shape(init, jax.random.key(0), jnp.zeros((3, *shape)))
    assert y.shape[0] == 3 and len(y.shape) == 2
    return y.shape[1]


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_resnet_has_512_or_2048_features_times_its_width(name):
    want = 512 if name in ("resnet18", "resnet34", "resnet18d", "resnet34d") else 2048
    assert features(models.create(name), 96, 96, 3) == want
    if resnet.LAYERS[name].deep:  # has a stem of its own
        return
    assert features(models.create(name, width=2, stem="cifar"), 32, 32, 1) == 2 * want


@pytest.mark.parametrize("size, channels", [(8, 1), (9, 3), (32, 3)])
def test_the_digits_encoder_takes_pictures_of_a_few_pixels(size, channels):
    module, wider = (models.create("digits", width=w) for w in (1, 2))
    shape = (size, size, channels)
    assert features(wider, *shape) == 2 * features(module, *shape)
    y, _ = module.init_with_output(
        jax.random.key(0), jnp.ones((2, *shape)), train=False
    )
    assert np.isfinite(y).all()


def test_stems_keep_32_pixels_or_quarter_the_image():
    def maps(stem, size):
        apply = partial(
            models.create("resnet18", stem=stem).init_with_output,
            train=False,
            capture_intermediates=True,
            mutable=True,
        )
        _, variables = jax.eval_shape(
            apply, jax.random.key(0), jnp.zeros((1, size, size, 3))
        )
        found = variables["intermediates"]
        return [
            found[name]["__call__"][0].shape[1:]
            for name in ("bn1", "layer1_0", "layer2_0", "layer4_1")
        ]

    assert maps("cifar", 32) == [(32, 32, 64), (32, 32, 64), (16, 16, 128), (4, 4, 512)]
    assert maps("imagenet", 96) == [
        (48, 48, 64),
        (24, 24, 64),
        (12, 12, 128),
        (3, 3, 512),
    ]


@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2), (7, 2)])
def test_convolutions_pad_evenly_and_keep_the_first_pixel(kernel, stride):
    rng, pad = np.random.default_rng(0), kernel // 2
    x = rng.standard_normal((2, 8, 10, 3)).astype(np.float32)
    w = rng.standard_normal((kernel, kernel, 3, 4)).astype(np.float32)
    conv = resnet.convolution(4, kernel, stride, dtype=jnp.float32, name=None)
    got = conv.apply({"params": {"kernel": w}}, x)
    padded = np.pad(x, [(0, 0), (pad, pad), (pad, pad), (0, 0)]).astype(np.float64)
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel,) * 2, (1, 2))
    want = np.einsum("nijchw,hwco->nijo", windows[:, ::stride, ::stride], w)
    assert_close(got, want, 1e-6)  # float32 sums of at most 147 products


def test_a_block_starts_as_identity():
    x = jnp.abs(jax.random.normal(jax.random.key(1), (2, 8, 8, 16)))
    for features, bottleneck in [(16, False), (4, True)]:
        layers = resnet.Layers((1,), bottleneck)
        block = resnet.Block(features, 1, layers, True, jnp.float32)
        y, _ = block.init_with_output(jax.random.key(0), x, train=True)
        np.testing.assert_array_equal(y, x)


# Initialization


@pytest.fixture(scope="module")
def fresh():
    """ResNet-18 as it starts."""
    module = models.create("resnet18")
    init = jax.jit(partial(module.init, train=False))
    return module, init(jax.random.key(0), jnp.zeros((1, 96, 96, 3)))


def test_convolutions_start_normal_with_the_variance_of_fan_out(fresh):
    kernels = [x for x in jax.tree.leaves(fresh[1]["params"]) if x.ndim == 4]
    assert len(kernels) == 20
    for kernel in kernels:
        h, w, _, out = kernel.shape
        v = np.asarray(kernel, np.float64).ravel() / np.sqrt(2 / (h * w * out))
        # Five sigma of the first two moments and the fourth (3, if not cut off).
        assert abs(v.mean()) < 5 / np.sqrt(v.size)
        assert abs((v**2).mean() - 1) < 5 * np.sqrt(2 / v.size)
        assert abs((v**4).mean() - 3) < 5 * np.sqrt(96 / v.size)


def test_only_the_last_scale_of_a_block_starts_at_zero(fresh):
    for path, x in flatten_dict(fresh[1]).items():
        last = path[1].startswith("layer") and path[-2:] == ("bn2", "scale")
        want = {"scale": 0.0 if last else 1.0, "bias": 0.0, "mean": 0.0, "var": 1.0}
        if path[-1] in want:
            np.testing.assert_array_equal(x, want[path[-1]])


# BatchNorm


def norm_case(*shape, seed=0):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape) * rng.uniform(0.5, 2, shape[-1]) + 1
    scale, bias, mean = rng.standard_normal((3, shape[-1]))
    given = [scale, bias, mean, rng.uniform(0.5, 2, shape[-1])]
    x, scale, bias, mean, var = (np.asarray(v, np.float32) for v in (x, *given))
    variables = {
        "params": {"scale": scale, "bias": bias},
        "batch_stats": {"mean": mean, "var": var},
    }
    return x, variables


@pytest.mark.parametrize("shape", [(6, 5), (2, 4, 3, 5)])
def test_batch_norm_normalizes_biased_and_keeps_unbiased_statistics(shape):
    x, variables = norm_case(*shape)
    params, old = variables["params"], variables["batch_stats"]
    y, mean, var = numpy_norm(x, **params)
    got, new = models.BatchNorm().apply(variables, x, train=True, mutable="batch_stats")
    # Float32: the variance is a difference of two means, five times as large.
    assert_close(got, y, 2e-6)
    assert_close(new["batch_stats"]["mean"], 0.9 * old["mean"] + 0.1 * mean, 1e-6)
    assert_close(new["batch_stats"]["var"], 0.9 * old["var"] + 0.1 * var, 1e-6)


def test_batch_norm_uses_its_running_statistics_in_evaluation():
    x, variables = norm_case(6, 5)
    params, old = variables["params"], variables["batch_stats"]
    got = models.BatchNorm().apply(variables, x, train=False)
    want = (x - old["mean"]) / np.sqrt(old["var"] + np.float32(1e-5))
    # Float32, in another order.
    assert_close(got, want * params["scale"] + params["bias"], 1e-6)


def test_two_passes_leave_the_statistics_of_each_view_in_order():
    a, variables = norm_case(8, 5)
    b = 3 * norm_case(8, 5, seed=1)[0]
    params, start = variables["params"], variables["batch_stats"]
    norm = models.BatchNorm(momentum=0.7)
    for x in (a, b):
        y, new = norm.apply(variables, x, train=True, mutable="batch_stats")
        variables = variables | new
        assert_close(y, numpy_norm(x, **params)[0], 2e-6)  # as above
    (_, mean_a, var_a), (_, mean_b, var_b) = (numpy_norm(x, **params) for x in (a, b))
    found = variables["batch_stats"]
    mean = 0.7 * (0.7 * start["mean"] + 0.3 * mean_a) + 0.3 * mean_b
    var = 0.7 * (0.7 * start["var"] + 0.3 * var_a) + 0.3 * var_b
    # Float32.
    assert_close(found["mean"], mean, 1e-6)
    assert_close(found["var"], var, 1e-6)


def test_initialization_leaves_the_running_statistics_alone():
    x, _ = norm_case(6, 5)
    variables = models.BatchNorm().init(jax.random.key(0), x, train=True)
    np.testing.assert_array_equal(variables["batch_stats"]["mean"], np.zeros(5))
    np.testing.assert_array_equal(variables["batch_stats"]["var"], np.ones(5))


# Half precision


@pytest.mark.parametrize(
    "module",
    [
        models.create("resnet18", stem="cifar", dtype=jnp.bfloat16),
        models.create("resnet50", dtype=jnp.bfloat16),
        models.create("digits", dtype=jnp.bfloat16),
        models.Expander((16, 8), dtype=jnp.bfloat16),
    ],
    ids=["resnet18", "resnet50", "digits", "expander"],
)
def test_bfloat16_computes_with_parameters_and_statistics_of_float32(module):
    x = jnp.zeros((4, 24) if isinstance(module, models.Expander) else (4, 96, 96, 3))

    def step(key):
        variables = module.init(key, x, train=False)

        def loss(params):
            y, new = module.apply(
                variables | {"params": params}, x, train=True, mutable="batch_stats"
            )
            return jnp.sum(y.astype(jnp.float32)), (y, new)

        grads, (y, new) = jax.grad(loss, has_aux=True)(variables["params"])
        return y, (variables, grads, new)

    y, kept = jax.eval_shape(step, jax.random.key(0))
    assert y.dtype == jnp.bfloat16
    assert {x.dtype for x in jax.tree.leaves(kept)} == {jnp.dtype("float32")}


def test_bfloat16_gives_about_the_same_features():
    x = jax.random.uniform(jax.random.key(1), (8, 16, 16, 3))
    full, half = (models.create("digits", dtype=d) for d in (jnp.float32, jnp.bfloat16))
    variables = full.init(jax.random.key(0), x, train=False)
    apply = lambda m: m.apply(variables, x, train=True, mutable="batch_stats")[0]  # noqa: E731
    # Eight bits of mantissa, 0.4 %, in each of three layers and their inputs.
    assert_close(apply(half).astype(jnp.float32), apply(full), 0.02)


# The global batch


@pytest.mark.long
def test_a_sharded_batch_has_the_features_gradients_and_statistics_of_the_whole(
    mesh, float64
):
    # Float32 would tell little: which kernels XLA takes for a part of the batch makes
    # differences of 1e-5 to 1e-3 after 18 layers and back.
    module = models.create("resnet18", stem="cifar", dtype=jnp.float64)
    x = jax.random.normal(jax.random.key(1), (16, 32, 32, 3), jnp.float64)
    variables = jax.jit(partial(module.init, train=False))(jax.random.key(0), x)
    variables = jax.tree.map(lambda v: v.astype(jnp.float64), variables)
    # A last scale of zero would hide the blocks.
    params = jax.tree.map(lambda p: p + 0.5 * (p.ndim == 1), variables["params"])

    def loss(params, x):
        y, new = module.apply(
            variables | {"params": params}, x, train=True, mutable="batch_stats"
        )
        return jnp.sum(y[:, :8] ** 2), (y, new)

    step = jax.jit(jax.grad(loss, has_aux=True))
    want = jax.tree.map(np.asarray, step(params, x))
    split = jax.device_put(x, sharding.split(mesh))
    got = step(jax.device_put(params, sharding.whole(mesh)), split)
    for a, b in zip(jax.tree.leaves(got), jax.tree.leaves(want), strict=True):
        # Sums in another order, through 18 layers and back.
        assert_close(a, b, 1e-10)


# Refusals


def test_an_unknown_encoder_is_refused_with_the_known_names():
    with pytest.raises(ValueError, match="no encoder 'resnet51'; .* resnet50, .*"):
        models.create("resnet51")


def test_an_unknown_stem_is_refused():
    with pytest.raises(ValueError, match="no stem 'torch'; there are imagenet, cifar"):
        models.create("resnet18", stem="torch")


def test_a_deep_stem_is_the_only_one_of_its_network():
    with pytest.raises(ValueError, match="resnet50d has a stem of its own.*'cifar'"):
        models.create("resnet50d", stem="cifar")


def test_a_width_below_one_is_refused():
    with pytest.raises(ValueError, match="a whole number of at least 1; got 0"):
        models.create("resnet18", width=0)
