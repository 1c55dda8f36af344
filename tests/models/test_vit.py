"""Vision transformers against float64 NumPy with the tensors by timm's names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.modules import assert_close, count, shapes
from helpers.networks import numpy_vit
from helpers.torch_files import NO_TORCH, drawn

from vicreg_jax import models
from vicreg_jax.models import vit
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import from_torch, to_torch

SMALL = vit.Shape(width=24, depth=2, heads=3, patch=16)
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 64, 3))


@pytest.mark.parametrize("pool", vit.POOLS)
def test_features_are_those_of_numpy(pool, float64):
    module = vit.VisionTransformer(SMALL, pool)
    tensors = drawn(module)
    variables = jax.tree.map(np.float64, from_torch(tensors))
    apply = jax.jit(partial(module.clone(dtype=jnp.float64).apply, train=True))
    got = apply(variables, jnp.asarray(IMAGES))
    # Sums in another order; a wrong axis, eps or GELU shows in the first digits.
    assert_close(got, numpy_vit(tensors, IMAGES, heads=3, pool=pool), 1e-10)


def test_tensors_come_back_from_torchs_names():
    tensors = drawn(vit.VisionTransformer(SMALL))
    again = to_torch(from_torch(tensors))
    assert again.keys() == tensors.keys() and "blocks.1.attn.qkv.weight" in again
    assert all((again[name] == x).all() for name, x in tensors.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_views_go_through_as_images_do(dtype):
    module = vit.VisionTransformer(SMALL, dtype=jnp.dtype(dtype))
    views = jnp.asarray(IMAGES, jnp.float32).reshape(1, 2, 64, 64, 3)
    variables = module.init(jax.random.key(0), views[0], train=False)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    got = module.apply(variables, views, train=True)
    want = module.apply(variables, views[0], train=True)
    assert got.shape == (1, 2, 24) and got.dtype == dtype
    np.testing.assert_array_equal(got[0], want)


@pytest.mark.parametrize(
    ("name", "parameters"),  # of timm's, without the classifier, 224 pixels
    [
        ("vit_small_patch16", 21_665_664),
        ("vit_large_patch14", 303_178_752),
    ],
)
def test_there_are_the_published_number_of_parameters(name, parameters):
    assert count(shapes(models.create(name), 224, 224, 3)["params"]) == parameters


def test_the_start_is_timms():
    module = vit.VisionTransformer(vit.Shape(384, 1, 6, 16))
    init = jax.jit(partial(module.init, train=False))
    params = init(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))["params"]
    assert abs(float(params["blocks_0"]["mlp_fc1"]["kernel"].std()) / 0.02 - 1) < 0.01
    assert abs(float(params["pos_embed"].std()) / 0.02 - 1) < 0.1
    assert not params["blocks_0"]["attn_qkv"]["bias"].any()
    patches = params["patch_embed_proj"]
    for tensor in (patches["kernel"], patches["bias"]):  # uniform, +-1 / sqrt(fan-in)
        assert 0.95 < float(abs(tensor).max()) * np.sqrt(768) <= 1.0001
    assert float(abs(params["cls_token"]).max()) < 1e-5


# Position embeddings


def cubic(old, new):
    """Weights [new, old]: Keys' kernel, a = -1/2, widened where it shrinks."""
    scale = max(old / new, 1)
    centres = (np.arange(new)[:, None] + 0.5) * old / new - 0.5
    x = np.abs(centres - np.arange(old)) / scale
    near, far = 1.5 * x**3 - 2.5 * x**2 + 1, -0.5 * x**3 + 2.5 * x**2 - 4 * x + 2
    weights = np.where(x < 1, near, np.where(x < 2, far, 0))
    return weights / weights.sum(axis=1, keepdims=True)


@pytest.mark.parametrize("grid", [(7, 7), (2, 3), (4, 4)])
def test_positions_are_interpolated_bicubically_with_antialiasing(grid):
    old = np.random.default_rng(0).standard_normal((1, 17, 5)).astype(np.float32)
    got = vit.resized(jnp.asarray(old), grid)
    image = old[0, 1:].reshape(4, 4, 5)
    rows, columns = (cubic(4, size) for size in grid)
    want = np.einsum("ai,bj,ijf->abf", rows, columns, image).reshape(-1, 5)
    np.testing.assert_allclose(got[0, 1:], want, rtol=1e-5, atol=1e-6)  # float32
    np.testing.assert_array_equal(got[:, 0], old[:, 0])


@pytest.mark.parametrize("size", [7, 3])
def test_so_does_torch(size):
    torch = pytest.importorskip("torch", reason=NO_TORCH)
    old = np.random.default_rng(0).standard_normal((1, 17, 5)).astype(np.float32)
    image = torch.tensor(old[:, 1:].reshape(1, 4, 4, 5).transpose(0, 3, 1, 2).copy())
    want = torch.nn.functional.interpolate(
        image, size=(size, size), mode="bicubic", antialias=True, align_corners=False
    )
    got = vit.resized(jnp.asarray(old), (size, size))[:, 1:]
    want = want.numpy().transpose(0, 2, 3, 1).reshape(1, -1, 5)
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-6)


def test_images_of_another_size_are_taken_with_interpolated_positions():
    module = vit.VisionTransformer(SMALL)
    variables = from_torch(drawn(module))
    apply = partial(module.apply, train=False)
    images = jnp.asarray(IMAGES[:, :32, :48], jnp.float32)
    params = variables["params"]
    moved = params | {"pos_embed": vit.resized(params["pos_embed"], (2, 3))}
    want = apply({"params": moved}, images)
    np.testing.assert_array_equal(apply(variables, images), want)


# Refusals


def test_an_image_that_does_not_divide_into_patches_is_refused():
    said = "^images of 60 x 64 pixels do not divide into patches of 16; give a multiple"
    with pytest.raises(Refusal, match=said):
        shapes(vit.VisionTransformer(SMALL), 60, 64, 3)


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("vit_small_patch16", {"width": 2}, "has the width and the stem of its name"),
        ("vit_small_patch16", {"stem": "cifar"}, "got width 1, stem 'cifar'"),
        ("vit_small_patch16", {"pool": "max"}, "no pool 'max'; there are token, mean"),
        ("resnet18", {"pool": "mean"}, "no class token, so there is no pool to choose"),
        ("vit_small_patch7", {}, "no encoder 'vit_small_patch7'; there are digits"),
    ],
)
def test_options_without_a_meaning_are_refused(name, options, said):
    with pytest.raises(Refusal, match=said):
        models.create(name, **options)
