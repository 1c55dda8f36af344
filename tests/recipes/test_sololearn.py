"""configs/cifar10_sololearn.py against what that library does, number by number."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax.traverse_util import flatten_dict

from vicreg_jax import losses, optim
from vicreg_jax.command import recipes
from vicreg_jax.config import fields
from vicreg_jax.train import build


@pytest.fixture(scope="module")
def config():
    return recipes.read("cifar10_sololearn").config


@pytest.fixture(scope="module")
def fresh(config):
    """The parameters at the start."""
    init = partial(build.method(config, None, None).module.init, train=False)
    variables = jax.jit(init)(jax.random.key(0), jnp.zeros((1, 32, 32, 3)))
    return flatten_dict(variables["params"], sep="/")


def test_the_recipe_has_the_published_numbers(config):
    assert (config.epochs, config.data.batch_size) == (1000, 256)
    assert config.data.image_size == 32 and config.model.encoder == "resnet18"
    assert config.model.expander == (2048, 2048, 2048)
    options = config.optimizer
    assert (options.name, options.base_lr, options.weight_decay) == ("lars", 0.3, 1e-4)
    assert (options.momentum, options.trust_coefficient) == (0.9, 0.02)
    assert options.clip and options.warmup_epochs == 10


def test_imagenet100_is_the_same_recipe_on_larger_images(config):
    other = recipes.read("imagenet100").config
    assert (other.epochs, other.data.image_size) == (400, 224)
    assert (other.optimizer, other.loss) == (config.optimizer, config.loss)
    a, b = fields.flat(config), fields.flat(other)
    assert {name for name in a if a[name] != b[name]} == {
        *("epochs", "augment.blur", "model.stem", "every.checkpoint_epochs"),
        *("data.name", "data.dataset", "data.image_size", "data.mean", "data.std"),
        "evaluate.draws",
    }


def test_its_loss_with_our_weights_is_the_summed_one(config, float64):
    za, zb = np.random.default_rng(0).standard_normal((2, 32, 8)) * 0.7
    terms = losses.vicreg(jnp.asarray(za), jnp.asarray(zb))
    weights = config.loss
    got = sum(weights[name] * getattr(terms, name) for name in weights)
    std = [np.sqrt(z.var(axis=0, ddof=1) + 1e-4) for z in (za, zb)]
    covariances = [np.cov(z.T) for z in (za, zb)]
    want = 25 * np.mean((za - zb) ** 2)
    want += 25 * sum(np.mean(np.maximum(1 - s, 0)) for s in std)
    want += sum(np.sum(c**2) - np.sum(np.diag(c) ** 2) for c in covariances) / 8
    assert float(got) == pytest.approx(want, rel=1e-12)


def test_the_stem_pads_by_two(config):
    encoder = build.method(config, None, None).encoder
    x = np.random.default_rng(0).standard_normal((1, 32, 32, 3)).astype(np.float32)
    apply = partial(
        encoder.init_with_output, train=False, capture_intermediates=True, mutable=True
    )
    _, variables = apply(jax.random.key(0), jnp.asarray(x, jnp.float32))
    found = variables["intermediates"]
    shapes = [found[n]["__call__"][0].shape[1] for n in ("conv1", "layer4_1")]
    assert shapes == [34, 5]
    corner = found["conv1"]["__call__"][0][0, 0, 0]
    kernel = np.asarray(variables["params"]["conv1"]["kernel"], np.float64)
    # The corner of the output sees one pixel, by the last tap of the kernel.
    want = x[0, 0, 0].astype(np.float64) @ kernel[2, 2]
    np.testing.assert_allclose(corner, want, rtol=0.02, atol=0.01)  # bfloat16


def test_the_first_convolution_starts_as_pytorch_makes_one(fresh):
    kernel = fresh["encoder/conv1/kernel"]
    bound = (3 * 3 * 3) ** -0.5  # uniform within one over the root of the inputs
    assert kernel.shape == (3, 3, 3, 64) and np.abs(kernel).max() <= bound
    v = np.asarray(kernel, np.float64).ravel() / bound
    # Five sigma of the moments of a uniform distribution: 1 / 3 and 1 / 5.
    assert abs(np.mean(v**2) - 1 / 3) < 5 * np.sqrt(4 / 45 / v.size)
    assert abs(np.mean(v**4) - 1 / 5) < 5 * np.sqrt(16 / 225 / v.size)


def test_no_residual_block_starts_as_the_identity(fresh):
    scales = [x for name, x in fresh.items() if name.endswith("scale")]
    assert len(scales) == 20 + 2
    assert all(np.all(x == 1) for x in scales)


def test_the_last_layer_of_the_expander_has_a_bias(fresh):
    assert {n for n in fresh if n.startswith("expander/linear2")} == {
        "expander/linear2/kernel",
        "expander/linear2/bias",
    }
    assert fresh["expander/linear2/bias"].shape == (2048,)


def test_the_rate_warms_up_from_3e_5_and_ends_at_zero(config, float64):
    epoch = 50000 // 256
    schedule, _ = build.optimizer(config, epoch)
    warmup, total = 10 * epoch, 1000 * epoch
    steps = np.array([0, 1, warmup // 2, warmup, total // 3, total - 1])
    rising = 3e-5 + (0.3 - 3e-5) * steps / (warmup - 1)
    falling = 0.15 * (1 + np.cos(np.pi * (steps - warmup) / (total - warmup)))
    want = np.where(steps < warmup, rising, falling)
    # Theirs arrives at the peak one step earlier.
    np.testing.assert_allclose(jax.vmap(schedule)(steps), want, atol=0.3 / warmup)
    assert float(schedule(0)) == pytest.approx(3e-5, rel=1e-12)
    assert float(schedule(total)) == 0


def test_a_warm_up_from_a_rate_is_linear():
    schedule = optim.warmup_cosine(
        **dict(base_lr=0.2, batch_size=512, epochs=20, steps_per_epoch=3),
        warmup_start=0.1,
    )
    got = [float(schedule(step)) for step in (0, 15, 30)]
    np.testing.assert_allclose(got, [0.1, 0.25, 0.4], rtol=1e-6)  # float32


def test_our_own_recipe_keeps_the_authors_conventions():
    ours = recipes.read("cifar10").config
    assert ours.loss["variance"] == 25 and not ours.model.expander_bias
    assert ours.model.zero_init_residual and ours.model.stem == "cifar"
