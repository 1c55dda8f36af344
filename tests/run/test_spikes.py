"""Losses that leave their range: found after ten steps, and by none that we ship."""

import json

import numpy as np
import pytest
from helpers.paths import ROOT

from vicreg_jax.config import Guard
from vicreg_jax.run.spikes import KNOWN, LASTS, Spikes

RECORDED = sorted((ROOT / "benchmarks" / "results" / "losses").glob("*.json"))


def noisy(n, seed=0):
    return (20 + np.random.default_rng(seed).laplace(size=n)).tolist()


def found(losses, limit=50.0):
    spikes = Spikes(limit)
    return [(i, first) for i, x in enumerate(losses, 1) if (first := spikes.look(i, x))]


def test_a_row_of_ten_is_found_with_its_first_step():
    calm = noisy(KNOWN + 50)
    known = np.array(calm[-KNOWN:])
    bound = known.mean() + 50 * np.abs(known - known.mean()).mean()
    spikes = Spikes(50.0)
    for step, loss in enumerate(calm):
        spikes.look(step, loss)
    assert spikes.bound() == pytest.approx(bound, rel=1e-12)
    start = len(calm)
    assert found(calm + [bound * 1.001] * 30) == [(start + LASTS, start + 1)]
    assert found(calm + [bound * 0.999] * 30) == []


def test_what_is_short_early_or_no_number_is_none():
    calm = noisy(KNOWN)
    assert found(calm + 3 * ([1e9] * (LASTS - 1) + calm)) == []
    assert found(noisy(KNOWN - 60) + [1e9] * 50) == []  # its range is not known yet
    assert found(calm + [float("nan")] * 50 + [float("inf")] * 50) == []
    twice = calm + [1e9] * LASTS + calm + [1e9] * LASTS
    assert [first for _, first in found(twice)] == [KNOWN + 1, 2 * KNOWN + LASTS + 1]
    assert found(twice, limit=0.0) == []


@pytest.mark.parametrize("path", RECORDED, ids=lambda path: path.stem)
def test_no_recipe_that_was_recorded_step_by_step_trips_it(path):
    losses = json.loads(path.read_text())["loss"]
    assert len(losses) > KNOWN and found(losses, Guard.spike) == []
    assert found(losses, Guard.spike / 5) == []  # not by far


def test_there_are_records():
    assert {path.stem for path in RECORDED} >= {"digits", "digits_barlow_twins"}
