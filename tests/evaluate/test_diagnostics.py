"""Statistics of features whose spectrum is known exactly."""

import json
import re

import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vicreg_jax.evaluate import diagnostics
from vicreg_jax.methods import health

PARTS = ("std", "stds", "dead", "correlation", "singular_values", "rank", "alpha")


def with_singular_values(values, n=300, seed=0):
    """Returns centred features [n, f] of exactly these singular values."""
    rng = np.random.default_rng(seed)
    f = len(values)
    noise = rng.standard_normal((n, f))
    left = np.linalg.qr(noise - noise.mean(axis=0))[0]  # orthogonal to the ones
    right = np.linalg.qr(rng.standard_normal((f, f)))[0]
    return left * np.asarray(values) @ right.T


def test_spectrum_and_std_are_those_put_in():
    values = np.linspace(5, 1, 12)
    found = diagnostics.diagnose(with_singular_values(values))
    # Float64 decompositions.
    np.testing.assert_allclose(
        found["representation_singular_values"], values, rtol=1e-12
    )
    # The variances of all dimensions add up to the squared singular values.
    total = np.sum(np.square(found["representation_stds"])) * 299
    assert total == pytest.approx(np.sum(values**2), rel=1e-12)
    assert found["representation_std"] == np.mean(found["representation_stds"])


def test_rank_of_equal_values_is_their_number():
    assert diagnostics.effective_rank(np.ones(7)) == pytest.approx(7, rel=1e-14)
    assert diagnostics.effective_rank(np.r_[np.ones(5), np.zeros(9)]) == pytest.approx(
        5
    )
    assert diagnostics.effective_rank(np.zeros(3)) == 0


def test_rank_of_halving_values_is_four():
    # p_i = 2^-i has the entropy sum of i 2^-i ln 2 = 2 ln 2.
    assert diagnostics.effective_rank(0.5 ** np.arange(80)) == pytest.approx(4)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=20), st.floats(1e-9, 1e9))
def test_rank_is_between_one_and_the_count_and_free_of_scale(values, scale):
    rank = diagnostics.effective_rank(np.array(values))
    assert 1 - 1e-9 <= rank <= len(values) + 1e-9
    assert diagnostics.effective_rank(scale * np.array(values)) == pytest.approx(rank)


def test_rank_is_that_which_training_shows():
    x = with_singular_values(np.linspace(9, 1, 12)) + 0.3  # not centred
    got = diagnostics.diagnose(x)["representation_rank"]
    # Training adds 1e-7 to every share and computes in float32.
    want = float(health.rankme(jnp.asarray(x, jnp.float32)))
    assert got == pytest.approx(want, rel=1e-4)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("f", [5, 60, 150])
def test_power_law_gives_its_exponent(alpha, f):
    values = 3 * np.arange(1, f + 1) ** (-alpha / 2)
    values[:3] *= 7, 2, 1.5  # ranks 1 to 3 are not looked at
    values[100:] *= 0.1  # nor those beyond 100
    x = with_singular_values(values) + 11  # a mean has no part in it
    # Float64 decompositions; two ranks amplify their rounding by 1 / log(5 / 4).
    assert diagnostics.alpha_req(x) == pytest.approx(alpha, rel=1e-9)


def test_alpha_weighs_ranks_as_numpy_does():
    values = np.sort(np.random.default_rng(0).uniform(1, 9, 120))[::-1]
    i = np.arange(4, 101)
    # polyfit squares its weights.
    slope, _ = np.polyfit(np.log(i), np.log(values[3:100] ** 2), 1, w=i**-0.5)
    got = diagnostics.alpha_req(with_singular_values(values))
    assert got == pytest.approx(-slope, rel=1e-10)


def test_alpha_does_not_fit_the_rounding_of_features():
    values = np.arange(1.0, 21) ** -0.5
    x = with_singular_values(np.r_[values, np.zeros(30)]) + 1
    for dtype, error in ((np.float64, 1e-9), (np.float32, 1e-4)):
        # The last value, 0.22, is of 300 rows that float32 rounds by 6e-8.
        assert diagnostics.alpha_req(x.astype(dtype)) == pytest.approx(1, rel=error)


def test_alpha_of_a_spectrum_that_ends_early_is_refused_or_null():
    x = with_singular_values([3, 2, 1, 1])
    with pytest.raises(ValueError, match="rank 4 and 5; the features have 4"):
        diagnostics.alpha_req(x)
    assert diagnostics.diagnose(x)["representation_alpha"] is None


def views(between, within):
    """Two views of 2 d images: S_b is diag(between), S_w is diag(within)."""
    d = len(between)
    signs = np.concatenate([np.eye(d), -np.eye(d)])
    means = signs * np.sqrt(d * np.asarray(between))
    noise = signs * np.sqrt(d * np.asarray(within))
    return np.stack([means + noise, means - noise], axis=1) + 5


@pytest.mark.parametrize("r", [1, 3, 8])
def test_lidar_of_images_that_differ_in_r_equal_ways_is_r(r):
    between = np.r_[np.full(r, 4.0), np.zeros(8 - r)]
    got = diagnostics.lidar(views(between, np.full(8, 0.5)))
    assert got == pytest.approx(r, rel=1e-9)


def test_lidar_weighs_directions_by_the_noise_of_views():
    between, within = np.array([5.0, 3, 2, 1]), np.array([1.0, 0.2, 3, 0.5])
    eigenvalues = between / (within + 0.1)
    got = diagnostics.lidar(views(between, within), delta=0.1)
    want = diagnostics.effective_rank(eigenvalues)
    assert got == pytest.approx(want, rel=1e-9)


def test_lidar_is_that_of_its_definition():
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 5, 6)) @ rng.standard_normal((6, 6))
    x += 2 * rng.standard_normal((40, 1, 6))
    means = x.mean(axis=1)
    b = np.cov(means.T, ddof=0)
    w = sum(np.cov(c.T, ddof=0) for c in x) / 40 + 1e-4 * np.eye(6)
    p = np.linalg.eigvals(np.linalg.inv(w) @ b).real
    p /= p.sum()
    want = np.exp(-np.sum(p * np.log(p)))
    assert diagnostics.lidar(x) == pytest.approx(want, rel=1e-9)


def test_lidar_of_one_image_shown_n_times_is_zero():
    x = np.broadcast_to(np.random.default_rng(0).integers(0, 9, (1, 4, 3)), (6, 4, 3))
    assert diagnostics.lidar(x) == 0


def test_collapse_is_judged_by_the_absolute_std():
    good = diagnostics.verdict(np.full(8, 0.9), target=1)
    assert good.healthy and "mean std 0.9 (target 1), 0 of 8" in good.reason
    for std, target, words in (
        (np.full(8, 0.2), 1, "far below the target"),
        (np.r_[np.full(3, 9.0), np.zeros(5)], 1, "5 of 8 .* most dimensions are dead"),
        (np.full(8, 0.009), None, "most dimensions are dead"),
    ):
        bad = diagnostics.verdict(std, target=target)
        assert not bad.healthy
        assert re.search(words, bad.reason)
    assert diagnostics.verdict(np.full(8, 0.2), target=None).healthy


def test_a_shrunken_embedding_keeps_its_rank_and_is_found_collapsed():
    x = with_singular_values(np.full(16, 17.0))  # std near 1
    well, ill = (diagnostics.diagnose(x, s * x) for s in (1.0, 1e-3))
    assert well["healthy"] and not ill["healthy"]
    assert ill["embedding_rank"] == pytest.approx(well["embedding_rank"])
    assert (well["embedding_dead"], ill["embedding_dead"]) == (0, 16)


def test_constant_features_are_described_and_found_collapsed():
    for x in (np.zeros((20, 6)), np.full((20, 6), 3.0)):
        found = diagnostics.diagnose(x)
        assert not found["healthy"] and found["representation_dead"] == 6
        json.dumps(found, allow_nan=False)


def test_everything_is_ready_for_json():
    x = with_singular_values(np.linspace(9, 1, 12)).astype(np.float32)
    found = diagnostics.diagnose(x, 20 * x, np.stack([x, x[::-1]], axis=1))
    assert json.loads(json.dumps(found, allow_nan=False)) == found
    assert set(found) == {
        *(f"{x}_{key}" for x in ("representation", "embedding") for key in PARTS),
        *("lidar", "healthy", "reason"),
    }
    r = np.abs(np.corrcoef(x.T))
    want = (r.sum() - 12) / (12 * 11)
    assert found["embedding_correlation"] == pytest.approx(want, rel=1e-9)


@pytest.mark.parametrize(
    ("call", "x", "message"),
    [
        ("diagnose", np.zeros(5), r"representations must be \[n >= 2, f\]; got shape"),
        ("diagnose", np.zeros((1, 5)), r"got shape \(1, 5\)"),
        ("diagnose", np.array([[1, np.nan], [0, 0]]), "1 of the 2 rows"),
        ("alpha_req", np.zeros((3, 0)), r"features must be .* got shape \(3, 0\)"),
        ("lidar", np.zeros((4, 3)), r"\[n >= 2, q >= 2, d\]; got shape \(4, 3\)"),
        ("lidar", np.zeros((4, 1, 3)), r"got shape \(4, 1, 3\)"),
        ("lidar", np.full((4, 2, 3), np.inf), "4 of the 4 rows of the views"),
    ],
)
def test_what_has_no_statistics_is_refused(call, x, message):
    with pytest.raises(ValueError, match=message):
        getattr(diagnostics, call)(x)


def test_lidar_needs_a_delta():
    with pytest.raises(ValueError, match="delta must be > 0; got 0"):
        diagnostics.lidar(np.zeros((4, 2, 3)), delta=0)
