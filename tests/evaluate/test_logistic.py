"""Logistic regression against scikit-learn and closed forms."""

import io
import os
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
import scipy.special
import scipy.stats
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from vicreg_jax.evaluate import logistic

DATA = os.environ.get("VICREG_JAX_TEST_DATA")
needs_data = pytest.mark.skipif(
    not DATA, reason="needs real images: set VICREG_JAX_TEST_DATA"
)


def scikit_learn(x, y, *, C, tol):
    model = LogisticRegression(C=C, tol=tol, max_iter=5000)
    with threadpool_limits(1):  # on busy cores its threads wait for each other
        return model.fit(np.float64(x), y)


def objective(weights, bias, features, labels, C):
    """scikit-learn's, in float64."""
    log_p = scipy.special.log_softmax(features @ weights + bias, axis=1)
    return -C * log_p[np.arange(len(labels)), labels].sum() + np.sum(weights**2) / 2


def digits():
    """Centred, which scikit-learn needs to converge soon."""
    images, labels = load_digits(return_X_y=True)
    images = (images - images.mean(axis=0)) / 4
    return images[:900], labels[:900], images[900:], labels[900:]


def agree(x, y, asked, C):
    """Checks a fit against scikit-learn, and returns it."""
    got = logistic.fit(x, y, classes=10, C=C)
    want = scikit_learn(x, y, C=C, tol=1e-7)
    least = objective(want.coef_.T, want.intercept_, x, y, C)
    found = objective(got.weights, got.bias, x, y, C)
    # The tolerance of the fit is 1e-5, estimated; scikit-learn's own is about as good.
    assert found == pytest.approx(least, rel=1e-4)
    assert got.objective == pytest.approx(found, rel=1e-9)
    assert got.gap <= 1e-5
    same = logistic.predict(got, asked) == want.predict(np.float64(asked))
    assert same.mean() >= 0.995
    return got


@pytest.mark.parametrize("C", [0.01, 1.0, 100.0])
def test_digits_are_classified_as_by_scikit_learn(C):
    x, y, asked, answers = digits()
    got = agree(x, y, asked, C)
    assert np.mean(logistic.predict(got, asked) == answers) > 0.85


@needs_data
def test_cifar_is_classified_as_by_scikit_learn():
    import PIL.Image

    z = np.load(Path(DATA) / "cifar10_train_jpeg.npz")
    ends, header, data = z["offsets"], z["header"].tobytes(), z["data"].tobytes()
    images = [
        np.asarray(PIL.Image.open(io.BytesIO(header + data[a:b])).convert("RGB"))
        for a, b in zip(ends[:1500], ends[1:1501], strict=True)
    ]
    x = projected(np.stack(images))
    y = np.asarray(z["labels"][:1500], np.int64)
    agree(x[:1000], y[:1000], x[1000:], 1.0)


@needs_data
def test_imagenette_is_classified_as_by_scikit_learn():
    import PIL.Image

    folders = sorted((Path(DATA) / "imagenette2_224" / "train").iterdir())
    paths = [p for folder in folders for p in sorted(folder.iterdir())[:60]]
    images = [PIL.Image.open(p).convert("RGB").resize((32, 32)) for p in paths]
    x, y = projected(np.stack(images)), np.repeat(np.arange(10), 60)
    known = np.arange(600) % 3 > 0
    agree(x[known], y[known], x[~known], 1.0)


def projected(images, f=48):
    """Pixels in 48 random directions, float32, as features come."""
    pixels = images.reshape(len(images), -1) / 255
    directions = np.random.default_rng(0).standard_normal((pixels.shape[1], f))
    return (pixels @ directions / np.sqrt(pixels.shape[1])).astype(np.float32)


def test_offset_and_scale_of_features_only_cost_what_they_mean():
    x, y, *_ = digits()
    plain = logistic.fit(x, y, classes=10, C=1.0)
    moved = logistic.fit(x + 100, y, classes=10, C=1.0)  # the bias takes it up
    scaled = logistic.fit(16 * x, y, classes=10, C=1 / 256)  # and so does C
    # Three descents to a gap of 1e-5.
    assert moved.objective == pytest.approx(plain.objective, rel=1e-5)
    assert scaled.objective == pytest.approx(plain.objective / 256, rel=1e-5)


def test_two_classes_are_those_of_scikit_learn_with_twice_the_c():
    x, y, *_ = digits()
    x, y = x[y < 2], y[y < 2]
    got = logistic.fit(x, y, classes=2, C=0.05, tolerance=1e-12)
    want = scikit_learn(x, y, C=0.1, tol=1e-9)
    difference = got.weights[:, 1] - got.weights[:, 0]
    # A gap of 1e-12 leaves about its square root in the weights.
    np.testing.assert_allclose(difference, want.coef_[0], atol=1e-5)
    assert got.bias[1] - got.bias[0] == pytest.approx(want.intercept_[0], abs=1e-5)


def test_features_without_information_give_the_shares_of_the_classes():
    y = np.repeat([0, 1, 2], [10, 20, 70])
    got = logistic.fit(np.full((100, 4), 3.0), y, classes=3, tolerance=1e-12)
    np.testing.assert_allclose(got.weights, 0, atol=1e-12)
    # A gap of 1e-12 leaves about its square root.
    np.testing.assert_allclose(
        scipy.special.softmax(got.bias), [0.1, 0.2, 0.7], atol=1e-5
    )
    entropy = 100 * scipy.stats.entropy([0.1, 0.2, 0.7])
    assert got.objective == pytest.approx(entropy, rel=1e-9)


def test_a_fit_that_has_not_converged_says_so():
    x, y, *_ = digits()
    with pytest.warns(
        RuntimeWarning, match="not converged: after 3 steps .* max_steps"
    ):
        got = logistic.fit(x, y, classes=10, max_steps=3)
    assert got.steps == 3 and got.gap > 1e-5


def test_the_default_precision_is_left_as_it_was():
    x, y, *_ = digits()
    logistic.fit(x[:50], y[:50], classes=10)
    assert jnp.ones(1).dtype == np.float32


@pytest.mark.parametrize(
    ("labels", "settings", "message"),
    [
        ([0, 1, 2, 3], {}, "from 0 to 2; got 0 to 3"),
        ([0, 1, 2, -1], {}, "got -1 to 2"),
        ([0, 0, 2, 2], {}, "1 of the 3 classes have no examples, first class 1"),
        ([0, 0, 0, 0], dict(classes=1), "two classes or more; got 1"),
        ([0.0, 1.0, 2.0, 0.0], {}, "must be integers; got float64"),
        ([0, 1, 2], {}, r"got \(4, 2\) and \(3,\)"),
        ([0, 1, 2, 0], dict(C=0.0), "C must be > 0; got 0.0"),
    ],
)
def test_what_cannot_be_fitted_is_refused(labels, settings, message):
    with pytest.raises(ValueError, match=message):
        logistic.fit(np.eye(4, 2), labels, **{"classes": 3, **settings})


def test_features_that_are_not_finite_are_refused():
    x = np.eye(4, 2)
    x[2, 0] = np.nan
    with pytest.raises(ValueError, match="1 of the 4 rows are not finite"):
        logistic.fit(x, [0, 1, 2, 0], classes=3)


def test_features_of_another_width_are_refused():
    fitted = logistic.fit(np.eye(4, 2), [0, 1, 0, 1], classes=2)
    with pytest.raises(ValueError, match=r"fitted to 2 features; got shape \(4, 3\)"):
        logistic.predict(fitted, np.ones((4, 3)))
