"""Few-label probes against scikit-learn and closed forms."""

import json

import flax.linen as nn
import numpy as np
import pytest
import scipy.stats
from sklearn.neighbors import KNeighborsClassifier

from vicreg_jax import config as configs
from vicreg_jax import evaluate
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.evaluate import probes
from vicreg_jax.evaluate.features import encode
from vicreg_jax.evaluate.probes import Accuracy
from vicreg_jax.weights import Encoder

CONFIG = configs.parse(
    dict(
        data=dict(batch_size=8, image_size=6, mean=(0.5,), std=(0.25,)),
        evaluate=dict(labels_per_class=(1, 3), draws=4),
    )
)


class Flatten(nn.Module):
    @nn.compact
    def __call__(self, x, *, train):
        return x.reshape(len(x), -1)


ENCODERS = {"VICReg": Encoder(Flatten(), {}, mean=(0.5,), std=(0.25,), image_size=6)}


def splits(n=60, size=6):
    """Three classes of noisy images, each with its own bright row."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % 3
    images = rng.integers(0, 200, (n, size, size, 1))
    images[np.arange(n), labels] += 55
    images = images.astype(np.uint8)
    return Splits(
        Arrays(images[: n // 2], labels[: n // 2]),
        Arrays(images[n // 2 :], labels[n // 2 :]),
    )


def test_encoding_pads_the_last_batch_and_normalizes():
    images = splits(n=600).train.array
    got = encode(ENCODERS["VICReg"], images)
    want = (images / 255 - 0.5) / 0.25
    # Float32 resizing with weights of 0 and 1.
    np.testing.assert_allclose(got, want.reshape(len(images), -1), atol=1e-5)


def test_nearest_neighbour_agrees_with_scikit_learn():
    train, test = splits()
    table = evaluate.few_labels(splits(), ENCODERS, CONFIG)
    a, b = (x.array.reshape(len(x), -1) / 255 for x in (train, test))
    a, b = a - a.mean(0), b - a.mean(0)
    model = KNeighborsClassifier(1, metric="cosine").fit(a, train.labels)
    want = 100 * np.mean(model.predict(b) == test.labels)
    (found,) = [r for r in table if r[:3] == ("raw pixels", "1-NN", 0)]
    assert found.draws == [pytest.approx(want)]


def test_every_row_uses_the_same_draws():
    # This encoder returns normalized pixels: as centred cosines, the pixels themselves.
    table = evaluate.few_labels(splits(), ENCODERS, CONFIG)
    rows = {r[:3]: r.draws for r in table}
    for probe in ("1-NN", "linear"):
        for n in (1, 3, 0):
            assert rows["VICReg", probe, n] == pytest.approx(
                rows["raw pixels", probe, n]
            )
    assert len(rows["VICReg", "1-NN", 3]) == 4
    assert len({tuple(x) for x in rows.values()}) > 3


def test_a_draw_has_n_labels_of_each_class_and_differs_from_the_next():
    labels = splits().train.labels
    draws = [probes._draw(labels, 3, 0, i) for i in range(5)]
    for draw in draws:
        assert np.bincount(labels[draw]).tolist() == [3, 3, 3]
        assert len(set(draw)) == 9
    assert len({tuple(sorted(d)) for d in draws}) == 5


@pytest.mark.parametrize(
    ("count", "draw", "want"),
    [
        (1, 0, [996, 737]),
        (5, 0, [356, 258, 700, 908, 934, 499, 593, 117, 793, 163]),
        (5, 2, [364, 272, 264, 822, 686, 67, 359, 493, 587, 313]),
    ],
)
def test_the_draws_of_labels_never_change(count, draw, want):
    assert probes._draw(np.arange(1000) % 2, count, 7, draw).tolist() == want


def test_gains_are_paired_means_with_their_interval():
    rng = np.random.default_rng(0)
    a, b = rng.normal(70, 5, 100), rng.normal(75, 5, 100)
    table = [
        Accuracy("raw pixels", "1-NN", 1, list(a)),
        Accuracy("VICReg", "1-NN", 1, list(b)),
    ]
    mean, low, high = evaluate.gains(table)["1-NN", 1]
    d = b - a
    want = scipy.stats.t.interval(0.95, len(d) - 1, d.mean(), scipy.stats.sem(d))
    assert mean == pytest.approx(d.mean())
    assert (low, high) == pytest.approx(want, rel=1e-9)


def test_whitened_features_are_uncorrelated_with_unit_variance():
    rng = np.random.default_rng(0)
    x = (rng.normal(size=(200, 8)) @ rng.normal(size=(8, 8))).astype(np.float32)
    train, _ = probes._whitened(x, x)
    assert 1 <= train.shape[1] <= 8
    np.testing.assert_allclose(np.cov(train.T), np.eye(train.shape[1]), atol=1e-3)


def test_a_constant_feature_does_no_harm():
    data = splits()
    for part in data:
        part.array[:, 0, 0] = 7
    table = evaluate.few_labels(data, ENCODERS, CONFIG)
    assert all(np.isfinite(r.draws).all() for r in table)


def test_the_table_is_saved_and_shown(tmp_path, capsys):
    table = evaluate.few_labels(splits(), ENCODERS, CONFIG)
    evaluate.save(table, tmp_path / "t.json")
    saved = json.loads((tmp_path / "t.json").read_text())
    assert saved[0] == table[0]._asdict()
    evaluate.show(table)
    out = capsys.readouterr().out
    assert "PCA-whitened pixels" in out and "VICReg - raw pixels" in out


def test_more_labels_than_a_class_has_are_refused():
    config = configs.parse(dict(evaluate=dict(labels_per_class=(11,), draws=1)))
    with pytest.raises(ValueError, match="asks for 11; a class has only 10"):
        evaluate.few_labels(splits(), {}, config)


def test_data_without_labels_is_refused():
    train, test = splits()
    for bad in (Splits(train, None), Splits(Arrays(train.array, None), test)):
        with pytest.raises(ValueError, match="set config.evaluate.draws=0"):
            evaluate.few_labels(bad, {}, CONFIG)


def test_the_gain_is_that_of_the_last_features_whatever_their_name(capsys):
    rows = (("raw pixels", [70.0]), ("untrained", [60.0]), ("Barlow Twins", [75.0]))
    table = [Accuracy(name, "1-NN", 1, draws) for name, draws in rows]
    assert evaluate.gains(table)["1-NN", 1][0] == 5
    assert evaluate.gains(table, better="untrained")["1-NN", 1][0] == -10
    evaluate.show(table)
    assert "Barlow Twins - raw pixels" in capsys.readouterr().out
