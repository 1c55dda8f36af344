"""Runs that start from weights: what they start with, what moves, what is refused."""

import json
import shutil
from dataclasses import replace

import chex
import jax
import numpy as np
import optax
import pytest
from helpers.refusals import refused
from helpers.runs import SMALL, images
from helpers.torch_files import drawn

from vicreg_jax import config as configs
from vicreg_jax import models, optim, train
from vicreg_jax.models.heads import JointEmbedding
from vicreg_jax.refusals import Refusal
from vicreg_jax.train.pretrain import Pretraining
from vicreg_jax.weights import Encoder, contents, export, torch_names

GREY = dict(mean=(0.5,), std=(0.5,))


def config(**groups):
    given = {
        k: v | groups.pop(k, {}) if isinstance(v, dict) else v for k, v in SMALL.items()
    }
    return configs.parse(given | groups)


def job(given, **parts):
    return Pretraining(given, None, None, images(), None, **parts)


def digits(seed=1, **options):
    """A digits encoder for grey images with variables of its own."""
    module = models.create("digits", **options)
    like = contents.abstract(module, size=8, channels=1)
    rng = np.random.default_rng(seed)
    draw = lambda x: rng.uniform(0.5, 1, x.shape).astype(x.dtype)  # noqa: E731
    return Encoder(module, jax.tree.map(draw, like), image_size=8, **GREY)


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    folder = tmp_path_factory.mktemp("weights") / "digits"
    export.write(digits(), folder, formats=["safetensors"])
    return folder


def begin(given, **parts):
    """The encoder of step 0."""
    made = job(given, **parts)
    return train.build.trained(made.method, made.init(), given, source="step 0")


def test_features_of_step_0_are_those_of_the_file(exported):
    given = config(model=dict(weights=str(exported / "encoder.safetensors")))
    first = begin(given)
    chex.assert_trees_all_equal(jax.device_get(first.variables), digits().variables)
    seen = images(16)
    want = np.asarray(digits()(seen))
    np.testing.assert_allclose(
        first(seen), want, rtol=0, atol=1e-6 * np.abs(want).max()
    )
    # The expander is that of a run from nothing.
    chex.assert_trees_all_equal(first.expander, begin(config()).expander)


def test_a_file_of_pytorch_names_is_what_a_resnet_starts_from(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy", reason="safetensors is missing")
    state_dict = drawn(models.create("resnet18"))
    numpy.save_file(state_dict, tmp_path / "model.safetensors")
    given = config(
        data=dict(mean=(0.4, 0.5, 0.6), std=(0.2,) * 3, image_size=32),
        model=dict(encoder="resnet18", weights=str(tmp_path / "model.safetensors")),
    )
    state = Pretraining(given, None, None, images(channels=3), None).init()
    found = jax.device_get(train.build.encoder_variables(state))
    chex.assert_trees_all_equal(found, torch_names.from_torch(state_dict))


@pytest.mark.long
def test_a_run_gives_its_encoder_and_its_expander_where_that_is_asked_for(tmp_path):
    before = train.run(config(), tmp_path / "a", source=images())
    weights = dict(weights=str(tmp_path / "a"), weights_expander=True)
    first = begin(config(seed=5, model=weights))
    for name in ("variables", "expander"):
        pair = getattr(first, name), getattr(before.encoder, name)
        chex.assert_trees_all_equal(*jax.device_get(pair))
    given = config(model=dict(width=2, weights=str(tmp_path / "a")))
    with refused(Refusal, "holds digits, width 1; expected digits, width 2"):
        train.run(given, tmp_path / "b", source=images())
    assert not (tmp_path / "b").exists()


@pytest.mark.long
def test_a_target_begins_as_a_copy_of_the_weights(exported):
    given = config(
        method="byol",
        loss={},
        model=dict(weights=str(exported), predictor=(8,)),
    )
    made = job(given)
    state = made.init()
    chex.assert_trees_all_equal(state.target["encoder"], state.params["encoder"])
    chex.assert_trees_all_equal(state.target["expander"], state.params["expander"])
    span = range(0, 1)
    made.step(state, made.make(span), 1)  # donates: no buffer is in it twice


@pytest.mark.slow
def test_a_run_continues_without_the_file(exported, tmp_path, capsys):
    gone = tmp_path / "gone"
    shutil.copytree(exported, gone)
    given = config(epochs=3, model=dict(weights=str(gone)))
    train.run(replace(given, epochs=2), tmp_path / "b", source=images())
    assert f"it begins with the encoder from {gone}" in capsys.readouterr().err
    shutil.rmtree(gone)
    assert train.run(given, tmp_path / "b", source=images()).encoder.step == 12
    facts = [
        json.loads(path.read_text())["record"]["facts"]["weights"]
        for path in sorted((tmp_path / "b" / "checkpoints").glob("*/record.json"))
    ]
    start = job(config(model=dict(weights=str(exported))))
    assert set(facts) == {start.facts["weights"]} and len(facts) == 2
    with refused(Refusal, "holds another run: model.weights was .*gone, is "):
        train.run(replace(given, model=config().model), tmp_path / "b", source=images())
    with refused(Refusal, "config.model.weights: there is no file or folder"):
        train.run(given, tmp_path / "c", source=images())
    assert not (tmp_path / "c").exists()


@pytest.mark.long
def test_variables_are_of_the_encoder_or_of_its_parts(tmp_path):
    own = digits().variables
    first = begin(config(), variables=own)
    chex.assert_trees_all_equal(jax.device_get(first.variables), own)
    other = begin(config(seed=3))
    whole = {
        name: {"encoder": own[name], "expander": other.expander[name]} for name in own
    }
    both = begin(config(), variables=jax.device_get(whole))
    chex.assert_trees_all_equal(both.expander, other.expander)
    trained = train.run(config(), tmp_path, source=images(), variables=own)
    with refused(Refusal, "was made with [0-9]+ weights, now there are [0-9]+"):
        train.run(config(), tmp_path, source=images(), variables=digits(2).variables)
    again = train.run(config(), tmp_path, source=images())
    chex.assert_trees_all_equal(again.state.params, trained.state.params)
    with refused(Refusal, "did not start from these weights; give those"):
        train.replay(tmp_path, 1, source=images(), variables=digits(2).variables)
    with refused(Refusal, "did not start from these weights; give those"):
        train.replay(tmp_path, 1, source=images())


@pytest.mark.long
def test_the_encoder_stands_still_in_its_frozen_epochs(exported, tmp_path):
    given = config(
        epochs=3,
        model=dict(weights=str(exported), frozen_norm=True),
        optimizer=dict(frozen_epochs=2, name="adamw", base_lr=0.1),
    )
    with jax.numpy_dtype_promotion("standard"):  # optax's AdamW counts in integers
        made = job(given)
        state, start = made.init(), digits().variables
        for step in range(made.total):
            state, _, _ = made.step(state, made.make(range(step, step + 1)), 1)
            found = jax.device_get(train.build.encoder_variables(state))
            chex.assert_trees_all_equal(found["batch_stats"], start["batch_stats"])
            moved = jax.tree.map(
                lambda a, b: (a != b).any(), found["params"], start["params"]
            )
            assert any(jax.tree.leaves(moved)) == (step >= 2 * made.epoch)


def test_updates_of_a_part_are_scaled_and_begin_late():
    params = {
        "encoder": {"w": np.float32([2.0, 4.0])},
        "expander": np.ones(1, np.float32),
    }
    grads = jax.tree.map(lambda x: 0 * x + 1, params)
    tx = optim.slowed(optax.sgd(0.5, momentum=0.9), "encoder", scale=0.1, frozen=2)
    state = tx.init(params)
    velocity = 0.0
    for step in range(4):
        updates, state = tx.update(grads, state, params)
        velocity = 0.9 * velocity + 1  # of gradients that are 1 throughout
        want = -0.5 * velocity
        np.testing.assert_allclose(updates["expander"], want, rtol=1e-6)
        slow = 0.0 if step < 2 else 0.1 * want
        np.testing.assert_allclose(updates["encoder"]["w"], slow, rtol=1e-6)


def test_a_frozen_norm_normalizes_by_its_running_statistics():
    encoder, head = models.create("digits"), models.Expander((8, 4))
    x = np.random.default_rng(0).normal(size=(6, 2, 8, 8, 1)).astype(np.float32)
    frozen = JointEmbedding(encoder, head, frozen_norm=True)
    variables = frozen.init(jax.random.key(0), x, train=False)
    (y, z), new = frozen.apply(variables, x, train=True, mutable="batch_stats")
    own, rest = (contents.part(variables, name) for name in ("encoder", "expander"))
    want = np.stack([encoder.apply(own, x[:, i], train=False) for i in (0, 1)], axis=1)
    np.testing.assert_allclose(y, want, rtol=0, atol=1e-6)
    seen, _ = head.apply(rest, y, train=True, mutable="batch_stats")
    np.testing.assert_allclose(z, seen, rtol=0, atol=1e-6)
    kept = new["batch_stats"]["encoder"]
    chex.assert_trees_all_equal(kept, own["batch_stats"])


def changed(encoder, **changes):
    """The encoder with some arrays of its first layer changed, None: removed."""
    first = dict(encoder.variables["params"]["conv1"]) | changes
    first = {name: x for name, x in first.items() if x is not None}
    params = encoder.variables["params"] | {"conv1": first}
    return encoder.variables | {"params": params}


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (lambda x: changed(x, kernel=None), "1 missing: params/conv1/kernel"),
        (lambda x: changed(x, bias=np.zeros(32)), "1 unknown: params/conv1/bias"),
        (
            lambda x: changed(x, kernel=np.zeros((3, 3, 4, 32), np.float32)),
            r"params/conv1/kernel float32\[3,? ?3, 4, 32\] for float32\[3, 3, 1, 32\]",
        ),
        (
            lambda x: digits(width=2).variables,
            "25 of another shape or dtype: batch_stats/bn1",
        ),
        (lambda x: {"params": {}}, "25 missing: batch_stats/bn1/mean"),
        (lambda x: [1], "variables= are a mapping with 'params'.*; got list"),
        (
            lambda x: {"params": {"encoder": {}, "head": {}}},
            "have a part 'head'; the run",
        ),
    ],
)
def test_variables_of_another_network_are_refused(tmp_path, given, message):
    with refused(Refusal, message):
        train.run(config(), tmp_path / "a", source=images(), variables=given(digits()))
    assert not (tmp_path / "a").exists()


@pytest.mark.parametrize(
    ("groups", "message"),
    [
        (dict(model=dict(width=2)), "digits, width 1; expected digits, width 2"),
        (dict(model=dict(encoder="resnet18")), "holds digits, .* expected resnet18, "),
        (dict(data=dict(mean=(0.4,))), "normalized otherwise; add --config.data.mean="),
        (dict(model=dict(weights_expander=True)), "has no expander; leave it out"),
    ],
)
def test_weights_that_do_not_fit_are_refused(exported, tmp_path, groups, message):
    model = groups.get("model", {}) | dict(weights=str(exported))
    given = config(**groups | dict(model=model))
    with refused(Refusal, f"config.model.weights.*{message}"):
        train.run(given, tmp_path / "a", source=images())
    assert not (tmp_path / "a").exists()


def test_what_says_twice_or_nothing_is_refused(exported, tmp_path):
    given = config(model=dict(weights=str(exported)))
    with refused(Refusal, "both say what the run starts from; give one"):
        own = digits().variables
        train.run(given, tmp_path / "a", source=images(), variables=own)
    with refused(
        Refusal, "weights_expander takes the expander of config.model.weights"
    ):
        config(model=dict(weights_expander=True))
    with refused(Refusal, r"frozen_epochs \(2\) must be less than config.epochs \(2\)"):
        config(optimizer=dict(frozen_epochs=2))
    assert not (tmp_path / "a").exists()


def test_a_decay_over_layers_is_refused_before_anything_is_written(tmp_path):
    given = SMALL | dict(optimizer=dict(warmup_epochs=1, layer_decay=0.5))
    with refused(Refusal, "an encoder of bn1, .*conv5 has no blocks"):
        train.run(given, tmp_path / "run", source=images())
    assert not (tmp_path / "run" / "checkpoints").exists()
