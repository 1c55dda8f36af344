"""Halves of 95 % intervals against their closed forms and published numbers."""

import numpy as np
import pytest
import scipy.stats

from vicreg_jax.report.uncertainty import interval, margin


@pytest.mark.parametrize(
    ("right", "n"), [(0, 10), (1, 1), (7, 10), (730, 1000), (36_600, 50_000)]
)
def test_interval_is_that_of_wilson(right, n):
    z, p = scipy.stats.norm.ppf(0.975), right / n
    half = z * np.sqrt(p * (1 - p) / n + z**2 / (4 * n**2)) / (1 + z**2 / n)
    assert interval(100 * right / n, n) == pytest.approx(100 * half, rel=1e-6)
    low, high = scipy.stats.binomtest(right, n).proportion_ci(method="wilson")
    assert interval(100 * right / n, n) == pytest.approx(50 * (high - low), rel=1e-6)


def test_interval_is_that_of_published_tables():
    # 81 of 263: the interval of 0.2553 to 0.3662 is R. G. Newcombe's (1998), table I.
    assert interval(100 * 81 / 263, 263) == pytest.approx(5.545, abs=0.01)
    assert interval(50.0, 10_000) == pytest.approx(0.98, abs=0.001)
    assert interval(100.0, 100) == pytest.approx(1.85, abs=0.01)


@pytest.mark.parametrize(("accuracy", "n"), [(101.0, 5), (-1.0, 5), (50.0, 0)])
def test_intervals_of_nothing_are_refused(accuracy, n):
    with pytest.raises(ValueError, match=f"got {accuracy} of {n}"):
        interval(accuracy, n)


def test_margin_is_that_of_student():
    # Of the mean of three, t is 4.3027 in every table; of a hundred, 1.9842.
    for n, t in ((3, 4.3027), (100, 1.9842)):
        values = np.random.default_rng(0).normal(70, 5, n)
        error = values.std(ddof=1) / np.sqrt(n)
        assert margin(values) == pytest.approx(t * error, rel=1e-4)
    assert margin(values[:1]) == 0
