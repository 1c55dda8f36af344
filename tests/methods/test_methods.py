"""Methods: views in one pass, keys, targets, methods of the user's own."""

import itertools
import json
import re

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.records import lines
from helpers.runs import SMALL, images

from vicreg_jax import losses, methods, models, train
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.run.state import TrainState

ENCODERS = {
    "digits": (models.create("digits", dtype=jnp.float64), 8, 1),
    "resnet": (
        models.create("resnet18", zero_init_residual=False, dtype=jnp.float64),
        96,
        3,
    ),
}


def in_passes(module, variables, views):
    """Returns outputs and statistics of a pass for each view, as published."""
    seen, stats = [], variables["batch_stats"]
    for view in jnp.unstack(views, axis=1):
        output, new = module.apply(
            variables | {"batch_stats": stats}, view, train=True, mutable="batch_stats"
        )
        stats = new["batch_stats"]
        seen.append(output)
    return jax.tree.map(lambda *x: jnp.stack(x, axis=1), *seen), stats


@pytest.mark.parametrize(
    "name, count",
    [("digits", 3), pytest.param("resnet", 2, marks=pytest.mark.long)],
)
def test_views_in_one_pass_are_a_pass_for_each(name, count, float64):
    encoder, size, channels = ENCODERS[name]
    expander = models.Expander((16, 8), dtype=jnp.float64)
    module = models.JointEmbedding(encoder, expander)
    shape = (3, count, size, size, channels)
    views = jax.random.normal(jax.random.key(0), shape, jnp.float64)
    variables = module.init(jax.random.key(1), views, train=False)
    chex.assert_trees_all_equal(
        variables, module.init(jax.random.key(1), views[:, 0], train=False)
    )

    def value(params, function):
        outputs, stats = function(module, variables | {"params": params}, views)
        return jnp.sum(jnp.sin(outputs[1])), (outputs, stats)

    def in_one(module, variables, views):
        outputs, new = module.apply(variables, views, train=True, mutable="batch_stats")
        return outputs, new["batch_stats"]

    both = [
        jax.jit(jax.value_and_grad(lambda p, f=f: value(p, f), has_aux=True))(
            variables["params"]
        )
        for f in (in_one, in_passes)
    ]
    # Parameters and statistics are of float32 either way; sums in another order.
    chex.assert_trees_all_close(*both, rtol=1e-5, atol=1e-6)


def test_an_encoder_that_takes_no_views_sees_them_one_after_the_other():
    class Own(nn.Module):
        @nn.compact
        def __call__(self, x, *, train):
            x = nn.BatchNorm(not train, name="bn")(x)
            return nn.Dense(6, name="dense")(x.reshape(len(x), -1))

    module = models.JointEmbedding(Own(), models.Expander((8, 4)))
    views = jax.random.normal(jax.random.key(0), (4, 3, 8, 8, 1))
    variables = module.init(jax.random.key(1), views, train=False)
    output, new = module.apply(variables, views, train=True, mutable="batch_stats")
    want = in_passes(module, variables, views)
    chex.assert_trees_all_close((output, new["batch_stats"]), want, rtol=1e-5)


class Masks(nn.Module):
    """Returns which of its features dropout has kept."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dropout(0.5)(jnp.ones((len(x), 64)), deterministic=not train)


class Kept(methods.Method):
    weights = {"kept": 1.0}

    def loss(self, outputs):
        return {"kept": jnp.sum(outputs.embeddings)}


@pytest.mark.parametrize("count", [2, 3, 4])
def test_no_two_views_of_any_steps_share_a_random_key(count):
    method = Kept(Masks(), models.Expander((4,)))
    views = jnp.zeros((2, count, 8, 8, 1))
    variables = method.init(jax.random.key(0), views)
    seen = set()
    for step in range(5):
        key = train.dropout_key(0, jnp.asarray(step))
        outputs, _ = method.forward(variables, views, key=key)
        seen |= {x.tobytes() for x in np.asarray(outputs.representations[0])}
    assert len(seen) == 5 * count


class Follows(methods.Method):
    """The distance to what a slowly following copy of the encoder sees."""

    weights = {"distance": 1.0}
    share = 0.9

    def init(self, key, views):
        variables = super().init(key, views)
        return variables | {"target": jax.tree.map(jnp.copy, variables["params"])}

    def forward(self, variables, views, *, key, capture=False):
        target, own = variables["target"], dict(variables)
        del own["target"]
        outputs, kept = super().forward(own, views, key=key, capture=capture)
        aims, _ = super().forward(own | {"params": target}, views, key=key)
        both = jnp.concatenate([outputs.embeddings, aims.embeddings], axis=2)
        return outputs._replace(embeddings=both), kept

    def loss(self, outputs):
        own, aim = jnp.split(outputs.embeddings, 2, axis=2)
        aim = jax.lax.stop_gradient(aim[:, ::-1])
        return {"distance": jnp.mean((own - aim) ** 2)}

    def after_step(self, target, params, step):
        return jax.tree.map(
            lambda t, p: self.share * t + (1 - self.share) * p, target, params
        )


@pytest.mark.long
def test_a_target_follows_the_parameters_and_is_part_of_the_run(tmp_path):
    config = SMALL | dict(epochs=1, optimizer=dict(warmup_epochs=0))
    how = dict(source=images(), method=Follows, tx=optax.sgd(0.1))
    one = train.run(config, tmp_path / "one", **how)
    chex.assert_trees_all_equal_structs(one.state.target, one.state.params)
    # The moving average of the parameters after each step, by hand.
    method = Follows(models.create("digits"), models.Expander((16, 16)))
    mesh = sharding.data_mesh(jax.devices()[:1])
    step = train.make_train_step(method, optax.sgd(0.1), mesh=mesh)
    views = jax.random.normal(jax.random.key(1), (8, 2, 8, 8, 1))
    variables = method.init(jax.random.key(0), views)
    want = jax.device_get(variables["target"])
    state = TrainState(
        jnp.zeros([], jnp.int32),
        variables["params"],
        variables["batch_stats"],
        optax.sgd(0.1).init(variables["params"]),
        target=variables["target"],
    )
    for _ in range(3):
        state, _, _ = step(state, views)
        params = jax.device_get(state.params)
        want = jax.tree.map(
            lambda t, p: np.float32(0.9) * t + np.float32(0.1) * p, want, params
        )
    chex.assert_trees_all_close(
        jax.device_get(state.target), want, rtol=1e-5, atol=1e-7
    )
    assert "distance" in lines(tmp_path / "one")[0]
    longer = config | dict(epochs=2)
    whole = train.run(longer, tmp_path / "whole", **how)
    again = train.run(longer, tmp_path / "one", **how)
    chex.assert_trees_all_equal(again.state, whole.state)
    found = json.loads((tmp_path / "one" / "config.json").read_text())
    assert found["method"] == "Follows" and found["loss"] == {"distance": 1.0}
    with pytest.raises(ValueError, match="holds another run: method was Follows, is v"):
        train.run(longer, tmp_path / "one", source=images())


@pytest.mark.parametrize(
    "name",
    [
        pytest.param(x, marks=() if x == "vicreg" else pytest.mark.long)
        for x in methods.METHODS
    ],
)
def test_three_views_train_by_the_mean_over_pairs(name, tmp_path):
    config = SMALL | dict(
        epochs=1,
        method=name,
        data=SMALL["data"] | dict(views=3),
        optimizer=dict(warmup_epochs=0),
    )
    trained = train.run(config, tmp_path, source=images())
    assert int(trained.state.step) == 4
    written = lines(tmp_path)
    weights = methods.METHODS[name].weights
    for line in written:
        total = sum(weight * line[term] for term, weight in weights.items())
        assert line["loss"] == pytest.approx(total, rel=1e-5)


@pytest.mark.parametrize("name", ["vicreg", "barlow_twins", "simclr"])
def test_the_terms_are_those_of_the_loss_on_all_views(name):
    method = methods.METHODS[name](models.create("digits"), models.Expander((8, 8)))
    z = jax.random.normal(jax.random.key(0), (12, 3, 8))
    found = method.loss(methods.Outputs(z, z))
    want = [
        vars(getattr(losses, name)(a, b))
        for a, b in itertools.combinations(jnp.unstack(z, axis=1), 2)
    ]
    assert list(found) == list(method.weights)
    for term, value in found.items():
        mean = np.mean([float(pair[term]) for pair in want])
        assert float(value) == pytest.approx(mean, rel=1e-5)


def test_a_barlow_twins_run_is_judged_by_its_spread():
    start = {"embedding_std": 2.0, "embedding_rank": 20.0}
    weights = methods.BarlowTwins.weights
    for std, healthy in ((1.5, True), (0.3, True), (0.1, False)):
        now = start | {"embedding_std": std}
        verdict = methods.BarlowTwins.health(start, now, weights)
        assert verdict.healthy == healthy and "start 2" in verdict.reason


def test_an_unknown_method_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no method 'moco'; there are vicreg, barlow"):
        train.run(SMALL | dict(method="moco"), tmp_path / "run", source=images())
    assert not (tmp_path / "run").exists()


def test_a_method_has_a_title_by_default_its_name():
    class Mine(methods.Vicreg):
        pass

    titles = [x.title for x in (methods.Vicreg, methods.BarlowTwins, Mine, Kept)]
    assert titles == ["VICReg", "Barlow Twins", "Mine", "Kept"]


def test_a_method_of_fewer_terms_than_its_parent_trains(tmp_path):
    class Spread(methods.Vicreg):
        weights = {"variance": 25.0}

    train.run(SMALL, tmp_path, source=images(), method=Spread)
    for line in lines(tmp_path):
        assert line["loss"] == pytest.approx(25 * line["variance"], rel=1e-5)
        assert "embedding_std" in line and "covariance_over_noise" not in line


def test_a_method_logs_what_it_wants_beside_what_every_run_logs(tmp_path):
    class Logs(Kept):
        def loss(self, outputs):
            z = outputs.embeddings
            return {"kept": jnp.mean(z**2), "unweighted": jnp.float32(7)}

        def statistics(self, representation, embedding, terms):
            return {"twice": 2 * terms["kept"]}

    train.run(SMALL, tmp_path, source=images(), method=Logs)
    for line in lines(tmp_path):
        assert line["twice"] == pytest.approx(2 * line["kept"])
        assert line["unweighted"] == 7 and "embedding_std" in line


def test_batch_statistics_that_a_method_does_not_change_are_kept():
    class Frozen(methods.Vicreg):
        def forward(self, variables, views, *, key, capture=False):
            outputs = self.module.apply(variables, views, train=False)
            return methods.Outputs(*outputs), {}

    method = Frozen(models.create("digits"), models.Expander((8, 8)))
    views = jax.random.normal(jax.random.key(0), (4, 2, 8, 8, 1))
    variables = method.init(jax.random.key(1), views)
    params = variables.pop("params")
    _, found = method.objective(params, variables, views, key=jax.random.key(2))
    chex.assert_trees_all_equal(found[2], variables["batch_stats"])


def returns(terms, **weights):
    """A method of these weights whose loss returns these terms."""

    class Made(methods.Method):
        def loss(self, outputs):
            return terms

    Made.weights = weights
    return Made


ONE = np.float32(1)


class NoLoss(methods.Method):
    weights = {"term": 1.0}


@pytest.mark.parametrize(
    "method, text",
    [
        (returns({}), "all weights of Made are zero (it names no terms)"),
        (returns({"a": ONE}, a=0.0, b=0.0), "all weights of Made are zero (a, b)"),
        (returns({"a": ONE}, a=-1.0), "config.loss.a must be zero or more; got -1.0"),
        (returns({"a": ONE}, a=jnp.nan), "config.loss.a must be zero or more; got nan"),
        (NoLoss, "NoLoss has no loss(outputs); write one"),
        (returns({"a": ONE}, a=1.0, b=1.0), "returns a; it lacks b, which has a wei"),
        (returns({}, a=1.0), "Made.loss returns nothing; it lacks a"),
        (returns(ONE, a=1.0), "returns a float32; expected a dict of the terms a"),
        (returns(None, a=1.0), "returns a NoneType; expected a dict of the terms a"),
        (
            returns({"a": np.ones(3, np.float32)}, a=1.0),
            "a float scalar; it is float32 [",
        ),
        (returns({"a": np.int32(1)}, a=1.0), "a float scalar; it is int32 []"),
        (returns({"loss": ONE}, loss=1.0), "rename loss, which is logged already"),
        (returns({"a": ONE, "grad_norm": ONE}, a=1.0), "rename grad_norm, which is lo"),
        ("vicreg", "method='vicreg' makes no method; expected a subclass of methods.M"),
        (Kept(Masks(), models.Expander((4,))), "makes no method; expected a subclass"),
        (lambda encoder: None, "makes no method; expected a subclass"),
        (lambda encoder, expander, weights: None, "makes no method; expected a subcla"),
    ],
)
def test_a_method_that_cannot_train_is_refused(method, text, tmp_path):
    with pytest.raises(Refusal, match=re.escape(text)) as caught:
        train.run(SMALL, tmp_path / "run", source=images(), method=method)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "given, text",
    [
        (dict(encoder="resnet18"), "encoder='resnet18' is no Linen module; give an o"),
        (dict(encoder=models.Expander), "is no Linen module; give an object such as"),
        (dict(tx=optax.adam), "is no optax transformation; give one such as optax.ad"),
        (dict(tx=0.1), "tx=0.1 is no optax transformation"),
    ],
)
def test_what_is_no_encoder_and_no_optimizer_is_refused(given, text, tmp_path):
    with pytest.raises(Refusal, match=re.escape(text)):
        train.run(SMALL, tmp_path / "run", source=images(), **given)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "weights, total", [(dict(covariance=0.0), 2), (dict(invariance=0.0), 2)]
)
def test_one_weight_of_zero_leaves_the_others(weights, total):
    method = methods.Vicreg(models.create("digits"), models.Expander((8, 8)), weights)
    assert sum(weight > 0 for weight in method.weights.values()) == total
