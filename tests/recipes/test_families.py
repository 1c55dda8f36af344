"""The recipes that ship: each has the shapes of a run, and each family takes a step."""

from dataclasses import asdict

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from ml_collections import ConfigDict

from vicreg_jax import config as configs
from vicreg_jax import train
from vicreg_jax.command import recipes
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import Arrays
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.train import build

NAMES = [
    x
    for x in recipes.names()
    if "/" not in x and isinstance(recipes.read(x).config, configs.Config)
]
FAMILIES = {
    "imagenet": "folder",
    "folder": "folder",
    "imagenette": "folder",
    "cifar10": "arrays",
    "cifar10_sololearn": "arrays",
    "fake": "fake",
    "imagenet_vit": "folder",
}
LATER = {
    "imagenet_vit": pytest.mark.long,
    **dict.fromkeys(
        ("imagenet", "imagenette", "fake", "cifar10_sololearn"), pytest.mark.long
    ),
}


def recipe(which, **data):
    """All fields of a recipe, to be changed."""
    given = ConfigDict(asdict(recipes.read(which).config))
    given.data.update(data)
    if given.data.name in configs.NEEDS_PATH:
        given.data.path = "somewhere"  # the user's
    return given


@pytest.mark.parametrize(
    "name",
    [pytest.param(x, marks=() if x in FAMILIES else pytest.mark.long) for x in NAMES],
)
def test_the_whole_step_of_a_recipe_has_consistent_shapes(name):
    config = configs.parse(recipe(name))
    method = build.method(config, None, None)
    _, tx = build.optimizer(config, steps_per_epoch=100)
    state = jax.eval_shape(build.initializer(method, tx, config))
    data = config.data
    b, size, channels = data.batch_size, data.image_size, len(data.mean)
    numbers = plan.uniforms(0, 0, (2, 2, draw.NUMBERS))
    parameters = draw.parameters(numbers, np.array([64, 64]), batches.policies(config))
    parameters = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct((b, *x.shape[1:]), x.dtype), parameters
    )
    crops = data.name == "folder" or name == "imagenette"
    shape = (b, 2, size, size) if crops else (b, size, size)
    images = jax.ShapeDtypeStruct((*shape, channels), jnp.uint8)
    batch = batches.Batch(images, parameters, "crops" if crops else "whole")
    mesh = sharding.data_mesh(jax.devices()[:1])
    one = Arrays(np.zeros((1, 8, 8, channels), np.uint8))
    made = batches.Batches(one, config, mesh)
    step = train.make_train_step(
        method,
        tx,
        mesh=mesh,
        render=lambda batch: made.render((), batch),
    )
    adamw = config.optimizer.name == "adamw"  # raises a float to an integer power
    with jax.numpy_dtype_promotion("standard" if adamw else "strict"):
        new, metrics, (y, z, *_) = jax.eval_shape(step, state, batch)
    assert jax.tree.map(jnp.shape, new) == jax.tree.map(jnp.shape, state)
    assert all(x.dtype == jnp.float32 for x in jax.tree.leaves(new.params))
    assert z.shape == (b, config.model.expander[-1]) and y.shape[0] == b
    skipped = {"skipped_in_a_row", "skipped_steps"}
    assert set(metrics) == {"loss", "grad_norm", *skipped, *method.weights}


# family -> where the images come from


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=LATER.get(name, ())) for name in FAMILIES]
)
def test_a_shrunk_recipe_takes_steps(name, tmp_path):
    given = recipe(name, batch_size=8, image_size=32, name=FAMILIES[name])
    given.epochs = 2
    given.optimizer.warmup_epochs = 1.0
    stem = "cifar" if given.model.stem == "imagenet" else given.model.stem
    slow = name in ("imagenet", "cifar10_sololearn")
    encoder = "resnet18" if slow else "digits"  # which compiles faster
    if name == "imagenet_vit":
        stem, encoder = "imagenet", "vit_small_patch16"
    given.model.update(encoder=encoder, stem=stem, expander=(16, 16))
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
    adamw = given.optimizer.name == "adamw"
    with jax.numpy_dtype_promotion("standard" if adamw else "strict"):
        trained = train.run(given, tmp_path / "run")
    assert int(trained.state.step) >= 4


@pytest.mark.parametrize(("batch", "rate"), [("128", 0.8), ("512", 0.4), ("2048", 0.3)])
def test_the_ablation_recipe_has_the_papers_rate_for_each_batch(batch, rate):
    given = recipes.read(f"imagenet_100ep:{batch}").config
    assert given.data.batch_size == int(batch) and given.optimizer.base_lr == rate


@pytest.mark.parametrize("name", ["imagenet", "folder", "cifar10", "imagenet_100ep"])
def test_an_unknown_variant_is_refused_with_the_known_ones(name):
    known = "there are {128" if "100ep" in name else "there are official, paper, solo"
    with pytest.raises(Refusal, match=f"^--config={name}:other: no .*{known}"):
        recipes.read(f"{name}:other")


# blur and solarize of both views, least share of the crop: official in the authors'
# code, paper in its section 4.1, and solo-learn's scripts/pretrain
PUBLISHED = {
    "official": ((1.0, 0.1), (0.0, 0.2), 0.08),
    "paper": ((0.5, 0.5), (0.1, 0.1), 0.08),
    "solo_learn": ((0.5, 0.5), (0.1, 0.1), 0.2),
    "solo_learn_cifar": ((0.0, 0.0), (0.1, 0.1), 0.2),
}


@pytest.mark.parametrize("policy", PUBLISHED)
def test_a_policy_is_the_published_one(policy):
    config = configs.parse(recipe(f"imagenet:{policy}"))
    blur, solarize, least = PUBLISHED[policy]
    first, second = batches.policies(config)
    assert ((first.blur, second.blur), (first.solarize, second.solarize)) == (
        blur,
        solarize,
    )
    shared = first._replace(blur=0, solarize=0)
    assert shared == second._replace(blur=0, solarize=0)
    assert shared == draw.Policy(
        **dict(crop_scale=(least, 1.0), crop_ratio=(3 / 4, 4 / 3), flip=0.5),
        interpolation="bicubic",
        **dict(rotation=0.0, shear=0.0, jitter=0.8, brightness=0.4, contrast=0.4),
        **dict(saturation=0.2, hue=0.1, grey=0.2, blur=0, sigma=(0.1, 2.0)),
        solarize=0,
    )


def test_there_are_no_other_policies():
    with pytest.raises(Refusal, match=f"there are {', '.join(PUBLISHED)};"):
        recipes.read("imagenet:other")


def test_imagenet_is_the_published_recipe():
    c = configs.parse(recipe("imagenet"))
    assert (c.epochs, c.data.batch_size, c.optimizer.base_lr) == (1000, 2048, 0.2)
    assert c.model.expander == (8192, 8192, 8192)
    assert c.augment == recipes.read("imagenet_resnet50x2").config.augment
    assert batches.policies(c)[0].blur == 1.0  # "official"
