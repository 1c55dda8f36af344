"""ConvNeXt against float64 NumPy with the tensors by timm's names."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.modules import assert_close, count, shapes
from helpers.networks import numpy_convnext
from helpers.torch_files import drawn

from vicreg_jax import models
from vicreg_jax.models import convnext
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import from_torch, to_torch

SMALL = convnext.Stages((1, 1, 2, 1), (4, 6, 8, 10))
IMAGES = np.random.default_rng(0).standard_normal((2, 64, 64, 3))


def test_features_are_those_of_numpy(float64):
    module = convnext.ConvNext(SMALL)
    tensors = drawn(module)
    variables = jax.tree.map(np.float64, from_torch(tensors))
    module = module.clone(dtype=jnp.float64)
    apply = jax.jit(partial(module.apply, train=True))
    # Sums in another order; a wrong padding, eps or GELU shows in the first digits.
    want = numpy_convnext(tensors, IMAGES, SMALL.blocks)
    assert_close(apply(variables, jnp.asarray(IMAGES)), want, 1e-10)


def test_tensors_come_back_from_torchs_names():
    tensors = drawn(convnext.ConvNext(SMALL))
    again = to_torch(from_torch(tensors))
    assert again.keys() == tensors.keys() and "stages.2.blocks.1.gamma" in again
    assert all((again[name] == x).all() for name, x in tensors.items())


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.long
def test_views_go_through_as_images_do(dtype):
    module = convnext.ConvNext(SMALL, dtype=jnp.dtype(dtype))
    views = jnp.asarray(IMAGES, jnp.float32).reshape(1, 2, 64, 64, 3)
    variables = module.init(jax.random.key(0), views[0], train=False)
    assert {x.dtype for x in jax.tree.leaves(variables)} == {jnp.dtype("float32")}
    got = module.apply(variables, views, train=True)
    want = module.apply(variables, views[0], train=True)
    assert got.shape == (1, 2, 10) and got.dtype == dtype
    np.testing.assert_array_equal(got[0], want)
    params = variables["params"]
    assert float(params["stages_2_blocks_1"]["gamma"][0]) == np.float32(1e-6)
    kernel = params["stages_3_blocks_0"]["mlp_fc1"]["kernel"]
    assert abs(float(kernel.std()) / 0.02 - 1) < 0.2  # 400 numbers


@pytest.mark.parametrize(
    ("name", "parameters"),  # of timm's and torchvision's, without the classifier
    [
        ("convnext_tiny", 27_820_128),
        ("convnext_small", 49_454_688),
        ("convnext_base", 87_566_464),
    ],
)
def test_there_are_the_published_number_of_parameters(name, parameters):
    assert count(shapes(models.create(name), 224, 224, 3)["params"]) == parameters


def test_images_of_which_nothing_would_be_left_are_refused():
    with pytest.raises(Refusal, match="^a ConvNeXt needs images of 32 x 32 pixels or"):
        shapes(convnext.ConvNext(SMALL), 28, 28, 1)


def test_a_width_is_refused():
    with pytest.raises(Refusal, match="^convnext_tiny has the width .*got width 2"):
        models.create("convnext_tiny", width=2)
