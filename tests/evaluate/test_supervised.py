"""Linear heads and fine-tuning against NumPy, optax and a head trained alone."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from helpers.evaluations import BATCH, CLASSES, SIZE, fit, load, newest, protocol
from PIL import Image

from vicreg_jax import config as configs
from vicreg_jax import models
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.source import How
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import heads, supervised
from vicreg_jax.evaluate.features import encode
from vicreg_jax.evaluate.inputs import held_out
from vicreg_jax.run import session
from vicreg_jax.weights import Encoder


def numpy_sgd(x, labels, w, *, rate, decay, momentum, nesterov, epochs, seed=5):
    """A linear classifier by SGD in float64, as torch.optim.SGD documents it."""
    planner = plan.Planner(
        seed=seed, examples=len(x), batch_size=BATCH, views=1, numbers=draw.NUMBERS
    )
    w, b = w.astype(np.float64), np.zeros(CLASSES)
    buffers = [np.zeros_like(w), np.zeros_like(b)]
    for step in range(epochs * planner.steps_per_epoch):
        epoch = step // planner.steps_per_epoch
        lr = rate * 0.5 * (1 + np.cos(np.pi * epoch / epochs))
        chosen = planner(step).indices
        z, y = x[chosen].astype(np.float64), labels[chosen]
        p = np.exp(z @ w + b)
        p /= p.sum(axis=1, keepdims=True)
        p[np.arange(BATCH), y] -= 1
        grads = [z.T @ p / BATCH + decay * w, p.mean(axis=0) + decay * b]
        for i, g in enumerate(grads):
            buffers[i] = momentum * buffers[i] + g
        steps = [
            g + momentum * m if nesterov else m
            for g, m in zip(grads, buffers, strict=True)
        ]
        w, b = w - lr * steps[0], b - lr * steps[1]
    return w, b


@pytest.mark.parametrize("nesterov", [False, True])
def test_a_head_is_what_numpy_makes_of_the_frozen_features(
    nesterov, trained, data, tmp_path
):
    config, encoder, variables = trained
    options = dict(rates=(0.5,), weight_decay=(1e-2,), nesterov=nesterov)
    given = protocol(data, head=options)
    outcome = fit(given, trained, tmp_path / "run")
    found = load(given, config)
    judged = Encoder(encoder, variables, mean=[0.4], std=[0.3], image_size=SIZE)
    x, asked = (encode(judged, part) for part in (found.train, found.test))
    start, _ = heads.init(
        jax.random.key(5), {"0": x.shape[1]}, heads=1, classes=CLASSES, norm=False
    )
    w, b = numpy_sgd(
        x,
        found.train.labels,
        np.asarray(start["0"]["kernel"][0]),
        **dict(rate=0.5, decay=1e-2, momentum=0.9, nesterov=nesterov, epochs=3),
    )
    restored = newest(tmp_path / "run")
    # float32 against float64 over nine steps
    np.testing.assert_allclose(restored["0"]["kernel"][0], w, rtol=0, atol=2e-5)
    np.testing.assert_allclose(restored["0"]["bias"][0], b, rtol=0, atol=2e-5)
    right = 100 * np.mean(np.argmax(asked @ w + b, axis=1) == found.test.labels)
    assert outcome.test[0, 0] == pytest.approx(right) and outcome.chosen == 0
    assert outcome.test[0, 1] == 100.0  # three classes are among the first five


def test_each_head_of_a_bank_is_the_head_trained_alone(trained, data, tmp_path):
    options = dict(rates=(0.05, 0.5), weight_decay=(0.0, 0.1), held_out=0.25)
    bank = protocol(data, head=options | dict(batch_norm=True))
    outcome = fit(bank, trained, tmp_path / "bank")
    assert outcome.held_out.shape == (4, 2) and outcome.test.shape == (4, 2)
    assert outcome.chosen == np.argmax(outcome.held_out[:, 0])
    together = newest(tmp_path / "bank")["0"]
    config, encoder, variables = trained
    found = load(bank, config)
    kept, _ = held_out(found.kept, found.train.labels, 0.25, 5)
    for i, (_, rate, decay) in enumerate(heads.combinations(bank.head)):
        one = dict(rates=(rate,), weight_decay=(decay,), batch_norm=True)
        given = protocol(data, head=one)
        folder = tmp_path / f"{i}"
        folder.mkdir()
        images = found._replace(kept=kept)
        supervised.fit(given, folder, encoder, variables, images)
        alone = newest(folder)["0"]
        assert set(alone) == {"kernel", "bias", "norm_scale", "norm_bias"}
        for name, value in alone.items():
            np.testing.assert_allclose(together[name][i], value[0], rtol=0, atol=1e-6)


def test_batch_norm_before_the_head_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    x = rng.normal(3, 2, (20, 5)).astype(np.float32)
    params, stats = heads.init(
        jax.random.key(0), {"0": 5}, heads=2, classes=3, norm=True
    )
    params["0"] = jax.tree.map(
        lambda p: jnp.asarray(rng.normal(size=p.shape), jnp.float32), params["0"]
    )
    got, new = heads.logits(params, stats, {"0": jnp.asarray(x)}, train=True)
    p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params["0"])
    mean, var = x.astype(np.float64).mean(0), x.astype(np.float64).var(0)
    for h in range(2):
        y = (x - mean) / np.sqrt(var + 1e-5) * p["norm_scale"][h] + p["norm_bias"][h]
        want = y @ p["kernel"][h] + p["bias"][h]
        np.testing.assert_allclose(got[h], want, rtol=0, atol=2e-5)
    # As PyTorch keeps them: 0.9 of the old, 0.1 of the new, the variance unbiased.
    np.testing.assert_allclose(new["0"]["mean"], 0.1 * mean, rtol=1e-5)
    unbiased = x.astype(np.float64).var(0, ddof=1)
    np.testing.assert_allclose(new["0"]["var"], 0.9 + 0.1 * unbiased, rtol=1e-5)


def test_the_last_blocks_are_pooled_and_joined():
    encoder = models.create("resnet18", stem="cifar")
    images = jax.random.normal(jax.random.key(0), (2, 32, 32, 3))
    variables = encoder.init(jax.random.key(1), images, train=False)
    found = heads.features(encoder, variables, images, (0, 1, 3))
    assert {k: x.shape for k, x in found.items()} == {
        "0": (2, 512),
        "1": (2, 512),
        "3": (2, 512 + 512 + 256),
    }
    # The representation is the pooled output of the last block.
    np.testing.assert_array_equal(found["0"], found["1"])
    np.testing.assert_array_equal(found["3"][:, -512:], found["1"])
    with pytest.raises(ValueError, match="the last 9 residual blocks; the encoder has"):
        heads.features(encoder, variables, images, (9,))


@pytest.mark.parametrize(
    "drops, want", [((), [1.0, 0.75, 0.25]), ((1, 2), [1, 0.1, 0.01])]
)
def test_the_rate_follows_a_cosine_or_drops_by_the_epoch(drops, want):
    got = [heads.factor(e, epochs=3, drops=drops) for e in range(3)]
    np.testing.assert_allclose(got, want, rtol=1e-6)


def test_accuracies_count_the_first_and_the_first_five():
    top = np.array([[[1, 0, 2, 3, 4]], [[0, 1, 2, 3, 4]], [[5, 4, 3, 2, 1]]])
    assert supervised.accuracies(top, np.array([1, 4, 0])).tolist() == [
        [pytest.approx(100 / 3), pytest.approx(200 / 3)]
    ]


def test_fine_tuning_is_what_optax_makes_of_the_same_batches(trained, data, tmp_path):
    config, encoder, variables = trained
    options = dict(rates=(0.3,), weight_decay=(0.0,))
    given = protocol(
        data, task="finetune", head=options, finetune=dict(encoder_rate=0.05)
    )
    fit(given, trained, tmp_path / "run")
    found = load(given, config)
    planner = plan.Planner(
        seed=5, examples=52, batch_size=BATCH, views=1, numbers=draw.NUMBERS
    )
    epoch = planner.steps_per_epoch

    def rate(base):
        return lambda step: base * 0.5 * (1 + np.cos(np.pi * (step // epoch) / 3))

    head, _ = heads.init(jax.random.key(5), {"0": 64}, heads=1, classes=3, norm=False)
    params = {
        "encoder": variables["params"],
        "head": jax.tree.map(lambda p: p[0], head),
    }
    stats = variables["batch_stats"]
    labelled = {"encoder": "encoder", "head": "head"}
    rates = {"encoder": rate(0.05), "head": rate(0.3)}
    tx = optax.multi_transform(
        {name: optax.sgd(r, momentum=0.9) for name, r in rates.items()}, labelled
    )
    state = tx.init(params)

    def loss_fn(params, stats, images, labels):
        y, new = encoder.apply(
            {"params": params["encoder"], "batch_stats": stats},
            images,
            train=True,
            mutable=["batch_stats"],
        )
        scores = y @ params["head"]["0"]["kernel"] + params["head"]["0"]["bias"][None]
        each = optax.softmax_cross_entropy_with_integer_labels(scores, labels)
        return each.mean(), new["batch_stats"]

    grad_fn = jax.jit(jax.grad(loss_fn, has_aux=True))
    with jax.numpy_dtype_promotion("standard"):
        for step in range(3 * epoch):
            chosen = planner(step).indices
            images = (found.train.array[chosen] / np.float32(255) - 0.4) / 0.3
            labels = jnp.asarray(found.train.labels[chosen], jnp.int32)
            grads, stats = grad_fn(params, stats, images.astype(np.float32), labels)
            updates, state = tx.update(grads, state, params)
            params = optax.apply_updates(params, updates)
    got = newest(tmp_path / "run")
    np.testing.assert_allclose(
        got["head"]["0"]["kernel"][0],
        params["head"]["0"]["kernel"],
        **dict(rtol=0, atol=1e-4),  # float32, sums in another order over nine steps
    )
    for (path, a), b in zip(
        jax.tree_util.tree_leaves_with_path(params["encoder"]),
        jax.tree.leaves(got["encoder"]),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4, err_msg=str(path))


@pytest.mark.parametrize(
    "task", ["linear", pytest.param("finetune", marks=pytest.mark.long)]
)
def test_one_device_and_eight_find_the_same(task, trained, data, tmp_path, monkeypatch):
    given = protocol(data, task=task, augment={}, head=dict(rates=(0.1,)))
    fit(given, trained, tmp_path / "eight")
    one = sharding.data_mesh(jax.devices()[:1])
    monkeypatch.setattr(supervised.devices, "mesh", lambda batch: one)
    fit(given, trained, tmp_path / "one")
    a, b = (jax.tree.leaves(newest(tmp_path / x)) for x in ("eight", "one"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_allclose(x, y, rtol=0, atol=1e-4)


@pytest.mark.parametrize("task", ["linear", "finetune"])
def test_stopped_and_continued_ends_where_the_uninterrupted_ends(
    task, trained, data, tmp_path, monkeypatch
):
    given = protocol(data, task=task, augment={}, head=dict(rates=(0.1,)))
    whole = fit(given, trained, tmp_path / "whole")

    class StopAt(session.Stop):
        """SIGTERM as if during step 5 of 9, in the middle of an epoch."""

        @property
        def signal(self):
            self.reads = getattr(self, "reads", 0) + 1
            return 15 if self.reads == 5 else 0

        @signal.setter
        def signal(self, value):
            pass

    with monkeypatch.context() as patch:
        patch.setattr(session, "Stop", StopAt)
        with pytest.raises(SystemExit):
            fit(given, trained, tmp_path / "parts")
    continued = fit(given, trained, tmp_path / "parts")
    np.testing.assert_array_equal(whole.test, continued.test)
    a, b = (jax.tree.leaves(newest(tmp_path / x)) for x in ("whole", "parts"))
    for x, y in zip(a, b, strict=True):
        np.testing.assert_array_equal(x, y)
    steps = [
        [json.loads(line)["step"] for line in text.splitlines()]
        for text in (
            (tmp_path / x / "metrics.jsonl").read_text() for x in ("whole", "parts")
        )
    ]
    assert steps[0] == steps[1] == [1, 3, 6, 9]


def test_the_maximum_over_epochs_is_that_of_the_chosen_head(trained, data, tmp_path):
    options = dict(rates=(0.1,), test_every_epoch=True)
    outcome = fit(protocol(data, head=options), trained, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    lines = [json.loads(line) for line in text.splitlines()]
    every = [line["test_top1_0"] for line in lines if "test_top1_0" in line]
    assert len(every) == 3 and outcome.maximum[0] == max(every)
    assert every[-1] == outcome.test[0, 0]
    # Of a finished one it is read again; a damaged line may have had it.
    (tmp_path / "run" / "metrics.jsonl").write_text(text.replace("test_top1", "tes", 1))
    again = fit(protocol(data, head=options), trained, tmp_path / "run")
    assert again.maximum is None and again.test[0, 0] == every[-1]


def test_an_image_that_was_replaced_has_the_label_of_its_substitute(tmp_path):
    for c, name in enumerate(("a", "b")):
        (tmp_path / "x" / name).mkdir(parents=True)
        for i in range(100):
            path = tmp_path / "x" / name / f"{i:03}.png"
            Image.new("L", (8, 8), 200 * c).save(path)
    (tmp_path / "x" / "a" / "099.png").write_bytes(b"no image")
    images = open_folder(tmp_path / "x")
    uniforms = plan.uniforms(0, 0, (2, 1, draw.NUMBERS))
    policies = batches.policies(configs.Config())[:1]
    found, _ = images.views(np.array([98, 99]), uniforms, policies, How("crops", 8, 1))
    assert found[:, 0].max(axis=(1, 2, 3)).tolist() == [0, 200]
    chosen = images.chosen(np.array([98, 99]))
    assert images.labels[chosen].tolist() == [0, 1]


def test_a_subset_smaller_than_a_batch_is_refused(trained, data, tmp_path):
    config, encoder, variables = trained
    given = protocol(data)
    found = load(given, config)._replace(kept=np.arange(10))
    with pytest.raises(ValueError, match="10 examples, fewer than one batch of 16"):
        supervised.fit(given, tmp_path, encoder, variables, found)
    assert not list(tmp_path.glob("checkpoints*"))
