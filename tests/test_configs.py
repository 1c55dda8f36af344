"""The recipes that ship: each has the shapes of a run, and each family takes a step."""

import importlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vicreg_jax import config as configs
from vicreg_jax import sharding, train
from vicreg_jax.data import plan, views
from vicreg_jax.train import parts

NAMES = sorted(p.stem for p in Path(__file__).parents[1].glob("configs/*.py"))


def recipe(name, **data):
    given = importlib.import_module(f"configs.{name}").get_config()
    given.data.update(data)
    if given.data.name in ("folder", "arrays"):
        given.data.path = "somewhere"  # the user's
    return given


@pytest.mark.parametrize("name", NAMES)
def test_the_whole_step_of_a_recipe_has_consistent_shapes(name):
    config = configs.parse(recipe(name))
    model = parts.model(config, None)
    _, tx = parts.optimizer(config, steps_per_epoch=100)
    state = jax.eval_shape(parts.initializer(model, tx, config))
    data = config.data
    b, size, channels = data.batch_size, data.image_size, len(data.mean)
    numbers = plan.uniforms(0, 0, (2, 2, views.NUMBERS))
    parameters = views.parameters(numbers, np.array([64, 64]), parts.policies(config))
    parameters = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), parameters
    )
    shape = (b, 2, size, size) if data.name == "folder" else (b, size, size)
    images = jax.ShapeDtypeStruct((*shape, channels), jnp.uint8)
    step = train.make_train_step(
        model,
        tx,
        weights=dict(vars(config.loss)),
        mesh=sharding.data_mesh(jax.devices()[:1]),
        render=lambda batch: parts.render(batch, config=config),
    )
    # optax's AdamW raises a float to an integer power.
    with jax.numpy_dtype_promotion("standard" if name == "digits" else "strict"):
        new, metrics, (y, z) = jax.eval_shape(step, state, (images, parameters))
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(new.params))
    assert z.shape == (b, config.model.expander[-1]) and y.shape[0] == b
    assert set(metrics) == {"loss", "grad_norm", *vars(config.loss)}


@pytest.mark.parametrize("name", ["imagenet", "folder", "cifar10", "fake"])
def test_a_shrunk_recipe_takes_steps(name, tmp_path):
    given = recipe(name, batch_size=8, image_size=32)
    given.epochs = 2
    given.optimizer.warmup_epochs = 1.0
    encoder = "resnet18" if name == "imagenet" else "digits"  # which compiles faster
    given.model.update(encoder=encoder, stem="cifar", expander=(16, 16))
    given.evaluate.draws = 0
    pictures = np.random.default_rng(0).integers(0, 256, (16, 40, 48, 3), np.uint8)
    if given.data.name == "folder":
        (tmp_path / "images").mkdir()
        from PIL import Image

        for i, picture in enumerate(pictures):
            Image.fromarray(picture).save(tmp_path / "images" / f"{i}.jpg")
        given.data.path = str(tmp_path / "images")
    elif given.data.name == "arrays":
        np.savez(tmp_path / "images.npz", images=pictures)
        given.data.path = str(tmp_path / "images.npz")
    trained = train.run(given, tmp_path / "run")
    assert int(trained.state.step) >= 4


@pytest.mark.parametrize(("batch", "rate"), [("128", 0.8), ("512", 0.4), ("2048", 0.3)])
def test_the_ablation_recipe_has_the_papers_rate_for_each_batch(batch, rate):
    given = importlib.import_module("configs.imagenet_100ep").get_config(batch)
    assert given.data.batch_size == int(batch) and given.optimizer.base_lr == rate


def test_imagenet_is_the_published_recipe():
    c = configs.parse(recipe("imagenet"))
    assert (c.epochs, c.data.batch_size, c.optimizer.base_lr) == (1000, 2048, 0.2)
    assert c.model.expander == (8192, 8192, 8192)
    first, second = parts.policies(c)
    assert (first.blur, second.blur) == (1.0, 0.1)
    assert (first.solarize, second.solarize) == (0.0, 0.2)
    assert first._replace(blur=0, solarize=0) == second._replace(blur=0, solarize=0)
