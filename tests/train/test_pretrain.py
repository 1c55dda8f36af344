"""The train step and `train.run` with the user's own parts."""

import json
import os
import signal
import time
from pathlib import Path

import chex
import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest
from helpers.pictures import pictures
from helpers.records import lines
from helpers.runs import SMALL, checkpoint_hash, images, state_of
from hypothesis import given, settings
from hypothesis import strategies as st

from vicreg_jax import config as configs
from vicreg_jax import losses, methods, models, optim, train
from vicreg_jax.data.source import Arrays
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.run import session
from vicreg_jax.train import build, pretrain


class Linear(nn.Module):
    """The user's own encoder: no BatchNorm, but dropout."""

    features: int = 12

    @nn.compact
    def __call__(self, x, *, train):
        x = nn.Dropout(0.1)(x.reshape(len(x), -1), deterministic=not train)
        return nn.Dense(self.features)(x)


class Maps(nn.Module):
    """Returns [n, h, w, c] where [n, f] is expected."""

    @nn.compact
    def __call__(self, x, *, train):
        return nn.Dense(3)(x)


def test_a_step_is_the_gradient_of_the_weighted_terms_of_two_passes():
    method = methods.Vicreg(models.create("digits"), models.Expander((16, 16)))
    model = method.module
    views = tuple(jax.random.normal(jax.random.key(1), (2, 16, 8, 8, 1)))
    tx = optax.sgd(0.1)
    state = state_of(model, tx, views[0])

    def loss(params):
        stats, z = state.batch_stats, []
        for view in views:
            variables = {"params": params, "batch_stats": stats}
            (_, embedding), new = model.apply(
                variables, view, train=True, mutable="batch_stats"
            )
            stats, z = new["batch_stats"], [*z, embedding]
        terms = losses.vicreg(*z)
        total = 25 * terms.invariance + 25 * terms.variance + terms.covariance
        return total, (stats, z)

    (total, (stats, z)), grads = jax.value_and_grad(loss, has_aux=True)(state.params)
    params = jax.tree.map(lambda p, g: p - 0.1 * g, state.params, grads)
    mesh = sharding.data_mesh(jax.devices()[:1])
    step = train.make_train_step(method, tx, mesh=mesh)
    new, metrics, (_, embedding, *_) = step(
        jax.device_put(state, sharding.whole(mesh)), jnp.stack(views, axis=1)
    )
    # jit fuses and so rounds differently; a step moves parameters by 1e-2.
    close = dict(rtol=1e-4, atol=1e-5)
    chex.assert_trees_all_close(new.params, params, **close)
    chex.assert_trees_all_close(new.batch_stats, stats, **close)
    chex.assert_trees_all_close(embedding, z[0], **close)
    assert metrics["loss"] == pytest.approx(float(total), rel=1e-5)
    norm = float(optax.tree.norm(grads))
    assert metrics["grad_norm"] == pytest.approx(norm, rel=1e-4)
    assert int(new.step) == 1


@pytest.mark.parametrize(
    "widths",  # n >= d, n < d
    [(32, 16), pytest.param((16, 64), marks=pytest.mark.long)],
)
def test_a_step_on_eight_devices_is_the_step_on_one(widths):
    method = methods.Vicreg(models.create("digits"), models.Expander(widths))
    views = jax.random.normal(jax.random.key(1), (32, 2, 8, 8, 1))
    tx = optim.lars(0.1, weight_decay=1e-4)
    results = []
    for devices in (jax.devices()[:1], jax.devices()):
        mesh = sharding.data_mesh(devices)
        state = state_of(method.module, tx, views)
        state = jax.device_put(state, sharding.whole(mesh))
        batch = jax.device_put(views, sharding.split(mesh))
        step = train.make_train_step(method, tx, mesh=mesh)
        new, metrics, _ = step(state, batch)
        results.append(jax.device_get((new, metrics)))
    # Sums over the batch in another order; 1e-5 is 100 roundings of float32.
    chex.assert_trees_all_close(*results, rtol=1e-4, atol=1e-5)


def test_weights_must_name_the_terms(tmp_path):
    parts = models.create("digits"), models.Expander((16, 16))
    assert methods.Vicreg(*parts, {"covariance": 2.0}).weights["variance"] == 25.0
    with pytest.raises(ValueError, match="var is not a term of Vicreg; it has invari"):
        methods.Vicreg(*parts, {"var": 1.0})
    with pytest.raises(ValueError, match="config.loss.var is not a term of Vicreg"):
        train.run(SMALL | dict(loss={"var": 1.0}), tmp_path / "run", source=images())
    assert not (tmp_path / "run").exists()


def test_run_takes_the_users_encoder_source_and_optimizer(tmp_path):
    source = images()
    trained = train.run(
        SMALL, tmp_path, encoder=Linear(), source=source, tx=optax.sgd(1e-2)
    )
    y = trained.encoder.apply(jnp.zeros((3, 8, 8, 1)))
    assert y.shape == (3, 12)
    assert int(trained.state.step) == 8  # 2 epochs of 64 / 16
    found = lines(tmp_path)
    assert [r["step"] for r in found] == list(range(1, 9))
    assert found[-1]["loss"] < found[0]["loss"]
    assert "learning_rate" not in found[0]  # the transformation's own


def test_a_source_needs_only_a_length_and_indexing(tmp_path):
    class Lazy:
        def __len__(self):
            return 64

        def __getitem__(self, indices):
            return images()[indices]

    config = SMALL | dict(epochs=2)
    a = train.run(config, tmp_path / "a", source=Lazy())
    b = train.run(config, tmp_path / "b", source=images())
    chex.assert_trees_all_equal(a.state, b.state)


def test_a_run_that_waits_for_its_images_says_so_once(tmp_path, capsys, monkeypatch):
    # Any share will do: on a busy machine steps may be slower than what sleeps here.
    monkeypatch.setattr("vicreg_jax.run.recorder.STARVING", 0.0)

    class Slow:
        def __len__(self):
            return 64

        def __getitem__(self, indices):
            time.sleep(0.2)
            return images()[indices]

    train.run(SMALL, tmp_path / "run", source=Slow())
    found = capsys.readouterr().err
    assert found.count("of the time for images; prepare is the slowest stage") == 1


def test_other_pixels_or_labels_do_not_continue_a_run_unless_told_to(tmp_path, capsys):
    labels = np.arange(64) % 4
    longer, other = SMALL | dict(epochs=4), images()
    other[7, 0, 0, 0] ^= 1
    train.run(SMALL, tmp_path, source=Arrays(images(), labels))
    before = checkpoint_hash(tmp_path)
    given = {
        "other pixels": Arrays(other, labels),
        "other labels": Arrays(images(), labels[::-1]),
        "64 examples, now there are 48, other pixels, other labels": Arrays(
            images(48), labels[:48]
        ),
    }
    for words, source in given.items():
        with pytest.raises(Refusal, match=f"8 was made with {words}; give the old da"):
            train.run(longer, tmp_path, source=source)
    assert checkpoint_hash(tmp_path) == before
    capsys.readouterr()
    longer = longer | dict(guard=dict(other_data=True))
    trained = train.run(longer, tmp_path, source=given["other pixels"])
    said = capsys.readouterr().err
    assert (
        "step 8 was made with other pixels; it goes on with what there is now" in said
    )
    assert int(trained.state.step) == 16


@pytest.mark.long
def test_a_run_whose_images_have_moved_is_continued_bit_for_bit(tmp_path):
    pictures(tmp_path / "here")

    def run(path, workdir, epochs):
        data = dict(name="folder", path=str(path), batch_size=8, image_size=8)
        config = dict(data=data, model=SMALL["model"], optimizer=SMALL["optimizer"])
        return train.run(config | dict(epochs=epochs), tmp_path / workdir)

    whole = run(tmp_path / "here", "whole", 4)
    run(tmp_path / "here", "run", 2)
    (tmp_path / "here").rename(tmp_path / "there")
    again = run(tmp_path / "there", "run", 4)
    chex.assert_trees_all_equal(again.state, whole.state)


def test_a_run_opens_with_what_it_is_to_do(tmp_path, capsys):
    source = Arrays(images(70), np.arange(70) % 7, classes=list("abcdefg"))
    train.run(SMALL, tmp_path, source=source)
    said = capsys.readouterr().err.splitlines()
    assert said[:3] == [
        "VICReg on digits: 70 images in 7 classes; 2 epochs of 4 steps of 16 images"
        " (6 left out of each epoch); 8 devices of 1 process (cpu)",
        f"in {tmp_path}",
        "compiling",
    ]
    assert said[-1].startswith("time: ") and said[-1].endswith("(1 start)")
    train.run(SMALL | dict(epochs=4), tmp_path, source=source)
    said = capsys.readouterr().err.splitlines()
    line = "config.epochs was 2, is 4: the learning rate goes from "
    assert said[1].startswith(line)
    old, new = map(float, said[1].removeprefix(line).split(" to "))
    assert old == pytest.approx(lines(tmp_path)[7]["learning_rate"], rel=1e-2)
    assert new == pytest.approx(lines(tmp_path)[8]["learning_rate"], rel=1e-2)
    assert new > 2 * old
    assert said[2] == f"continuing {tmp_path} at step 8 of 16"
    assert said[-1].endswith("(2 starts)")


def test_a_method_whose_code_has_changed_is_continued_and_it_is_said(tmp_path, capsys):
    class Mine(methods.Vicreg):
        pass

    def changed():
        class Mine(methods.Vicreg):
            def loss(self, outputs):
                return super().loss(outputs)

        return Mine

    train.run(SMALL, tmp_path, source=images(), method=Mine)
    train.run(SMALL | dict(epochs=3), tmp_path, source=images(), method=Mine)
    assert "other code" not in capsys.readouterr().err
    train.run(SMALL | dict(epochs=4), tmp_path, source=images(), method=changed())
    assert "step 12 was made with other code of the meth" in capsys.readouterr().err


def test_two_at_once_in_one_workdir(tmp_path):
    class Second:
        """Images whose first reader starts the same run."""

        def __len__(self):
            return 64

        def __getitem__(self, indices):
            if (tmp_path / "environment.json").exists() and not said:
                said.append("")
                with pytest.raises(Refusal) as refusal:
                    train.run(SMALL, tmp_path, source=images())
                said.append(str(refusal.value))
            return images()[indices]

    said = []
    train.run(SMALL, tmp_path, source=Second())
    assert f"{tmp_path} is held by process {os.getpid()} on " in said[1]
    assert [line["step"] for line in lines(tmp_path)] == list(range(1, 9))


def test_another_data_set_or_fewer_epochs_do_not_continue_a_run(tmp_path):
    train.run(SMALL, tmp_path, source=images())
    with pytest.raises(ValueError, match="made with 64 examples, now there are 96"):
        train.run(SMALL | dict(epochs=4), tmp_path, source=images(96))
    shorter = SMALL | dict(epochs=1, optimizer=dict(warmup_epochs=0))
    with pytest.raises(ValueError, match="holds another run: optimizer.warmup_epochs"):
        train.run(shorter, tmp_path, source=images())
    before = (tmp_path / "config.json").read_bytes()
    (tmp_path / "b").mkdir()
    config = SMALL | dict(optimizer=dict(warmup_epochs=0))
    train.run(config, tmp_path / "b", source=images())
    with pytest.raises(ValueError, match="at step 8, but config.epochs=1 asks for 4"):
        train.run(config | dict(epochs=1), tmp_path / "b", source=images())
    assert (tmp_path / "config.json").read_bytes() == before


def test_a_workdir_in_which_nothing_was_trained_is_free(tmp_path):
    def fails(step):
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        train.run(SMALL, tmp_path, source=images(), tx=optax.sgd(fails))
    other = SMALL | dict(seed=7)
    assert int(train.run(other, tmp_path, source=images()).state.step) == 8


def test_a_signal_while_it_compiles_is_kept_until_a_step_is_saved(tmp_path):
    def rate(step):  # called when the step is traced
        signal.raise_signal(signal.SIGINT)
        return 1e-3

    with pytest.raises(KeyboardInterrupt):
        train.run(SMALL, tmp_path, source=images(), tx=optax.sgd(rate))
    assert [p.name for p in (tmp_path / "checkpoints").iterdir()] == ["1"]


@pytest.mark.parametrize(
    ("encoder", "message"),
    [
        (nn.Dense(3), r"encoder\(images \[n, h, w, c\], train=bool\)"),
        (Maps(), r"must return \[n, f\]; for \(2, 8, 8, 1\) it returns"),
    ],
)
def test_an_encoder_that_does_not_fit_is_refused(encoder, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.run(SMALL, tmp_path / "run", encoder=encoder, source=images())
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_optax_transformations_with_keys_or_values_work(tmp_path):
    noisy = optax.chain(optax.sgd(1e-3), optax.add_noise(0.1, 0.5, 0))
    plateau = optax.chain(optax.sgd(1e-3), optax.contrib.reduce_on_plateau())
    for name, tx in (("noisy", noisy), ("plateau", plateau)):
        with jax.numpy_dtype_promotion("standard"):  # optax's own
            trained = train.run(SMALL, tmp_path / name, source=images(), tx=tx)
            again = train.run(SMALL, tmp_path / name, source=images(), tx=tx)
        chex.assert_trees_all_equal(trained.encoder.variables, again.encoder.variables)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (dict(data=dict(batch_size=12, image_size=8)), "over 8 devices; use 8 or 16"),
        (
            dict(data=SMALL["data"] | dict(batch_size=128)),
            "has 64 examples, fewer than",
        ),
        (
            dict(data=dict(batch_size=16, image_size=8)),
            r"images \[n, h, w, 3\].*got uint8 \(64, 8, 8, 1\)",
        ),
        (
            dict(model=dict(encoder="vgg")),
            "no encoder 'vgg'; there are digits, resnet18",
        ),
        (dict(augment=dict(flip=1.5)), "config.augment.flip must be between 0 and 1"),
    ],
)
def test_run_refuses_before_it_writes(change, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        train.run(SMALL | change, tmp_path / "run", source=images())
    assert not (tmp_path / "run").exists()


def test_run_refuses_another_bucket_and_a_file_as_workdir(tmp_path):
    with pytest.raises(ValueError, match="must be a folder.*got hdfs://b/run"):
        train.run(SMALL, "hdfs://b/run", source=images())
    with pytest.raises(ValueError, match="expected gs://BUCKET/NAME; got 'gs:/B/run"):
        train.run(SMALL, Path("gs://B/run"), source=images())
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(ValueError, match="file cannot be made: File exists"):
        train.run(SMALL, file, source=images())


def test_the_untrained_encoder_is_where_the_run_starts(tmp_path):
    config = configs.parse(SMALL)
    method = build.method(config, None, None)
    init = build.initializer(method, optax.sgd(1.0), config)
    chex.assert_trees_all_equal(
        train.untrained(config).variables, build.encoder_variables(jax.jit(init)())
    )


def test_several_steps_in_one_dispatch_are_the_steps_one_by_one(tmp_path, monkeypatch):
    config = SMALL | dict(every=dict(log_steps=1000))
    one = train.run(config, tmp_path / "one", source=images())
    monkeypatch.setattr(pretrain, "AT_ONCE", 3)
    monkeypatch.setattr(jax, "default_backend", lambda: "one that gains from it")
    many = train.run(config, tmp_path / "many", source=images())
    assert int(many.state.step) == int(one.state.step)
    records = [
        [
            json.loads(x)
            for x in (tmp_path / name / "metrics.jsonl").read_text().splitlines()
        ]
        for name in ("one", "many")
    ]
    assert [r["step"] for r in records[0]] == [r["step"] for r in records[1]]
    for a, b in zip(*records, strict=True):
        for name in ("loss", "invariance", "variance", "covariance"):
            assert a[name] == pytest.approx(b[name], rel=1e-3)  # rounding of 8 steps
    leaves = (jax.tree.leaves(t.encoder.variables) for t in (one, many))
    for a, b in zip(*leaves, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-4)


@settings(max_examples=200, deadline=None)
@given(
    stop=st.integers(1, 200),
    most=st.integers(1, 9),
    ends=st.lists(st.integers(1, 50), min_size=1, max_size=3),
    data=st.data(),
)
def test_spans_cover_the_steps_stop_at_the_ends_and_do_not_depend_on_the_start(
    stop, most, ends, data
):
    whole = list(session.spans(0, stop, most=most, ends=ends))
    assert [step for span in whole for step in span] == list(range(stop))
    assert {len(span) for span in whole} <= {1, most} and len(whole[0]) == 1
    for span in whole:
        assert not any(step % end == 0 for step in span[1:] for end in ends)
    begin = data.draw(st.sampled_from([span[0] for span in whole]))
    rest = list(session.spans(begin, stop, most=most, ends=ends))
    assert rest == [span for span in whole if span[0] >= begin]
