"""What watches a run by labels: right in itself, and without any effect on the run."""

import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from helpers.processes import DIGITS, TINY, environment, main
from helpers.records import lines, without_times
from helpers.runs import SMALL
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from vicreg_jax import config as configs
from vicreg_jax import models, train
from vicreg_jax.data.source import Arrays
from vicreg_jax.data.sources.digits import load_digits
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import encode
from vicreg_jax.evaluate.inputs import balanced
from vicreg_jax.refusals import Refusal
from vicreg_jax.train import online
from vicreg_jax.weights import loading

WATCHED = ("--config.evaluate.draws=0", "--config.evaluate.probe=True")
SEEN = {"probe_top1", "knn_top1"}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same run, unwatched and watched."""
    root = tmp_path_factory.mktemp("runs")
    for name, flags in {
        "plain": WATCHED[:1],
        "watched": (*WATCHED, "--config.evaluate.knn_epochs=2"),
    }.items():
        done = main(DIGITS, f"--workdir={root / name}", *TINY, *flags)
        assert done.returncode == 0, done.stderr
    return root


def test_watching_changes_no_bit_of_the_run(runs):
    plain, watched = (without_times(lines(runs / x)) for x in ("plain", "watched"))
    kept = [{k: v for k, v in line.items() if k not in SEEN} for line in watched]
    # An accuracy of neighbours is recorded at the end of its epoch.
    steps = {line["step"] for line in plain}
    assert [line for line in kept if line["step"] in steps] == plain
    a, b = (loading.load(runs / x).variables for x in ("plain", "watched"))
    jax.tree.map(np.testing.assert_array_equal, a, b)


def test_neighbours_are_scikit_learns_on_images_of_the_training_split(runs):
    loaded = loading.load(runs / "watched")
    train_split = load_digits().train
    queries = balanced(train_split.labels, 0.1, 0, purpose="knn_queries")
    bank = np.setdiff1d(np.arange(1437), queries)
    features = encode(loaded, train_split)

    def weights(distances):
        return np.exp((1 - distances) / 0.07)

    oracle = KNeighborsClassifier(20, weights=weights, metric="cosine")
    oracle.fit(features[bank], train_split.labels[bank])
    right = oracle.predict(features[queries]) == train_split.labels[queries]
    recorded = [line for line in lines(runs / "watched") if "knn_top1" in line]
    assert [line["epoch"] for line in recorded] == [2, 4]
    assert recorded[-1]["knn_top1"] == pytest.approx(100 * right.mean(), abs=1e-6)


def test_the_probe_reaches_what_is_there_and_is_recorded(runs):
    recorded = [line["probe_top1"] for line in lines(runs / "watched")]
    assert all(0 <= x <= 100 for x in recorded) and recorded[-1] > 30  # chance: 10


def test_the_probe_learns_a_separable_problem_like_a_mean_of_its_steps():
    rng = np.random.default_rng(0)
    labels = np.arange(64) % 2
    examples = Arrays(np.zeros((64, 4, 4, 1), np.uint8), labels)
    probe = online.Probe(examples, width=3, mesh=sharding.data_mesh(), seed=0)
    state, total, weight = probe.init(), 0.0, 0.0
    for _ in range(30):
        x = rng.normal(size=(64, 3)).astype(np.float32) + 4 * labels[:, None]
        # The accuracy of the step, of the weights before it.
        p = jax.tree.map(lambda leaf: np.asarray(leaf)[0], state["params"]["0"])
        z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
        z = z * p["norm_scale"] + p["norm_bias"]
        now = np.mean(np.argmax(z @ p["kernel"] + p["bias"], 1) == labels)
        total, weight = 0.99 * total + 0.01 * now, 0.99 * weight + 0.01
        y = jnp.asarray(labels, jnp.int32)
        state, seen = probe.step(state, jnp.asarray(x, jnp.float32), y)
        # float32 against float64
        assert float(seen["probe_top1"]) == pytest.approx(
            100 * total / weight, rel=1e-4
        )
    assert float(seen["probe_top1"]) > 90


@pytest.mark.long
def test_a_watched_run_continues_bit_for_bit(tmp_path, runs):
    flags = (DIGITS, f"--workdir={tmp_path}", *TINY, *WATCHED)
    flags = (*flags, "--config.evaluate.knn_epochs=2")
    code = """if True:
        import sys
        from vicreg_jax import main as program
        from vicreg_jax.run import session
        class Early(session.Stop):
            reads = 0
            @property
            def signal(self):
                Early.reads += 1
                return 15 if Early.reads == 20 else 0
            @signal.setter
            def signal(self, value):
                pass
        session.Stop = Early
        program.console()
    """
    first = subprocess.run(
        [sys.executable, "-c", code, *flags], env=environment(), capture_output=True
    )
    assert b"stopped and saved at step 20 of 56" in first.stderr, first.stderr
    done = main(*flags)
    assert done.returncode == 0, done.stderr
    assert without_times(lines(tmp_path)) == without_times(lines(runs / "watched"))


def among_others(n=64, more=40):
    """Images with labels, and the same among some that have none."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = rng.integers(0, 150, (n, 8, 8, 1))
    images[np.arange(n), 2 * labels] += 105
    where = np.sort(rng.permutation(n + more)[:n])
    pixels = rng.integers(0, 256, (n + more, 8, 8, 1), np.uint8)
    numbers = np.full(n + more, -1)
    pixels[where], numbers[where] = images, labels
    return Arrays(images.astype(np.uint8), labels), Arrays(pixels, numbers)


def test_neighbours_are_asked_of_images_with_a_label_alone():
    given = dict(data=dict(image_size=8, mean=(0.4,), std=(0.3,), batch_size=16))
    module, mesh = models.create("digits"), sharding.data_mesh()
    variables = module.init(jax.random.key(0), jnp.zeros((2, 8, 8, 1)), train=False)
    without, among = (
        online.nearest_neighbours(module, images, configs.parse(given), mesh)
        for images in among_others()
    )
    found = without(variables)
    assert among(variables) == found and 0 < found["knn_top1"] <= 100


def test_the_probe_counts_images_with_a_label_alone():
    """Held to the cross-entropy of these rows, and to their share of right answers."""
    rng, rows = np.random.default_rng(0), np.array([0, 3, 4, 5, 11, 15])
    labels = np.full(16, -1, np.int32)
    labels[rows] = np.arange(6) % 3
    source = Arrays(np.zeros((16, 4, 4, 1), np.uint8), labels)
    probe = online.Probe(source, width=5, mesh=sharding.data_mesh(), seed=0)
    x = rng.normal(size=(16, 5)).astype(np.float32)
    state = probe.init()
    p = jax.tree.map(lambda leaf: np.asarray(leaf)[0], state["params"]["0"])
    none = np.full(16, -1, np.int32)
    state, seen = probe.step(state, jnp.asarray(x), jnp.asarray(none))
    assert np.isnan(seen["probe_top1"])  # which is not recorded
    after = jax.tree.map(lambda leaf: np.asarray(leaf)[0], state["params"]["0"])
    jax.tree.map(np.testing.assert_array_equal, after, p)
    z = (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    scores = z @ p["kernel"] + p["bias"]
    guess = np.exp(scores) / np.exp(scores).sum(axis=1, keepdims=True)
    guess[rows, labels[rows]] -= 1
    gradient = z[rows].T @ guess[rows] / len(rows)
    state, seen = probe.step(state, jnp.asarray(x), jnp.asarray(labels))
    after = np.asarray(state["params"]["0"]["kernel"][0])
    # float32 against float64
    np.testing.assert_allclose(after, p["kernel"] - 0.1 * gradient, rtol=0, atol=1e-6)
    right = np.mean(scores[rows].argmax(axis=1) == labels[rows])
    assert float(seen["probe_top1"]) == pytest.approx(100 * right, rel=1e-5)


@pytest.mark.long
def test_images_without_a_label_train_and_a_run_records_what_others_say(tmp_path):
    watch = dict(probe=True, knn_epochs=1)
    config = SMALL | dict(evaluate=watch)
    _, among = among_others()
    blind = Arrays(among.array)
    trained = train.run(config, tmp_path / "a", source=among)
    plain = train.run(SMALL, tmp_path / "b", source=blind)
    a, b = trained.encoder.variables, plain.encoder.variables
    jax.tree.map(np.testing.assert_array_equal, a, b)
    last = lines(tmp_path / "a")[-1]
    assert last["epoch"] == 2 and last["step"] == 12  # 104 images, 16 at a time
    assert 0 <= last["probe_top1"] <= 100 and 0 <= last["knn_top1"] <= 100


@pytest.mark.parametrize("wrong", [[-2], [10**12], [-1] * 32])
def test_wrong_labels_are_refused_before_anything_compiles(tmp_path, wrong):
    labels = np.concatenate([np.arange(32 - len(wrong)) % 3, wrong]).astype(int)
    images = np.zeros((32, 8, 8, 1), np.uint8)
    np.savez(tmp_path / "x.npz", images=images, labels=labels)
    given = dict(SMALL, evaluate=dict(probe=True))
    given["data"] = SMALL["data"] | dict(name="arrays", path=str(tmp_path / "x.npz"))
    message = "image 31 has the label|evaluate.probe need labels of the training"
    with pytest.raises(Refusal, match=message):
        train.run(given, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_watching_needs_labels(tmp_path):
    images = np.zeros((32, 8, 8, 1), np.uint8)
    given = dict(
        data=dict(batch_size=8, image_size=8, mean=(0.5,), std=(0.5,)),
        model=dict(encoder="digits", expander=(8, 8)),
        evaluate=dict(probe=True, knn_epochs=1),
    )
    message = "evaluate.knn_epochs and config.evaluate.probe need labels of the tr"
    with pytest.raises(ValueError, match=message):
        train.run(configs.parse(given), tmp_path / "run", source=images)
    assert not (tmp_path / "run").exists()


@pytest.mark.long
def test_a_file_that_nearest_neighbours_cannot_see_does_not_end_the_run(
    tmp_path, capsys
):
    rng = np.random.default_rng(0)
    for i in range(32):
        path = tmp_path / "images" / "ab"[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(rng.integers(0, 256, (8, 8, 3), np.uint8)).save(path)
    path.write_bytes(path.read_bytes()[:60])
    config = SMALL | dict(
        data=dict(name="folder", path=str(tmp_path / "images"), batch_size=16)
        | dict(image_size=8),
        guard=dict(broken_images=0.5),
        evaluate=dict(knn_epochs=1),
    )
    trained = train.run(config, tmp_path / "run")
    assert int(trained.state.step) == 4
    said = capsys.readouterr().err
    assert "no k-NN accuracy at step 2: " in said and "31.png cannot be read" in said
    assert not any("knn_top1" in line for line in lines(tmp_path / "run"))
