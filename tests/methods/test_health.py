"""Statistics against NumPy, and verdicts on runs that live and runs that collapse."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vicreg_jax.methods import Vicreg, health

START = {"embedding_std": 0.4, "embedding_rank": 50.0}
EQUAL = {"invariance": 25.0, "variance": 25.0, "covariance": 1.0}


def batch(n=64, d=12, seed=0):
    """Correlated columns of different scales, and means far from zero."""
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((d, d)) * rng.uniform(0.1, 2, d)
    return rng.standard_normal((n, d)) @ mixing + rng.uniform(-3, 3, d)


def rankme(z):
    s = np.linalg.svd(z, compute_uv=False)
    p = s / s.sum() + 1e-7
    return np.exp(-np.sum(p * np.log(p)))


def test_rank_of_orthonormal_columns_is_their_number():
    # Each of d terms has the 1e-7 of RankMe too much: nothing of 1e-5.
    assert health.rankme(jnp.eye(16)) == pytest.approx(16, rel=1e-5)


def test_rank_of_parallel_rows_is_one():
    z = jnp.outer(jnp.arange(1.0, 33.0), jnp.arange(1.0, 9.0))
    # Seven eps of 1e-7 add 1.6e-6 each; zeros are zero but for float32 rounding.
    assert health.rankme(z) == pytest.approx(1, abs=1e-4)


def test_rank_of_embeddings_that_are_all_zero_is_finite():
    # Eight eps of 1e-7 and nothing else: exp(8 * 1.6e-6).
    assert health.rankme(jnp.zeros((32, 8))) == pytest.approx(1, abs=1e-4)


def test_rank_is_that_of_numpy():
    z = batch()
    got = health.rankme(jnp.asarray(z, jnp.float32))
    # Float32 singular values against float64 ones.
    np.testing.assert_allclose(got, rankme(z), rtol=1e-5)


def test_rank_does_not_depend_on_scale():
    z = jnp.asarray(batch(), jnp.float32)
    # Powers of two are exact up to the tiny eps of the singular value decomposition.
    np.testing.assert_allclose(health.rankme(z * 2.0**-20), health.rankme(z), rtol=1e-5)


def test_rank_looks_at_the_first_1024_rows():
    z = jnp.asarray(batch(n=1100, d=4), jnp.float32)
    assert health.rankme(z) == health.rankme(z[:1024])


def test_mean_correlation_is_that_of_numpy():
    z = batch()
    r = np.abs(np.corrcoef(z, rowvar=False))
    want = (r.sum() - np.trace(r)) / (12 * 11)
    got = health.mean_correlation(jnp.asarray(z, jnp.float32))
    # Float32 sums of 64 products.
    np.testing.assert_allclose(got, want, rtol=1e-5)


def test_mean_correlation_looks_at_the_first_1024_dimensions():
    z = jnp.asarray(np.random.default_rng(0).standard_normal((8, 1100)), jnp.float32)
    got, want = health.mean_correlation(z), health.mean_correlation(z[:, :1024])
    assert got == want


def test_mean_correlation_of_constants_or_of_one_dimension_is_zero():
    assert health.mean_correlation(jnp.full((8, 4), 3.0)) == 0
    # Of r_11 = 1 minus itself nothing is left but rounding of float32.
    one = health.mean_correlation(jnp.arange(8.0)[:, None])
    assert one == pytest.approx(0, abs=1e-6)


def test_stds_are_unbiased_means_over_dimensions():
    y, z = batch(seed=1), batch(d=20, seed=2)
    arrays = (jnp.asarray(x, jnp.float32) for x in (y, z))
    found = jax.jit(health.statistics)(*arrays)
    want = {
        "representation_std": y.std(axis=0, ddof=1).mean(),
        "embedding_std": z.std(axis=0, ddof=1).mean(),
        "embedding_std_least": z.std(axis=0, ddof=1).min(),
        "embedding_std_greatest": z.std(axis=0, ddof=1).max(),
        "representation_rank": rankme(y),
        "embedding_rank": rankme(z),
    }
    for name, value in want.items():
        # Float32 against float64.
        np.testing.assert_allclose(found[name], value, rtol=1e-5)
    assert "embedding_correlation" in found


def test_statistics_of_bfloat16_are_computed_in_float32():
    y = jnp.asarray(batch(), jnp.bfloat16)
    low, high = health.statistics(y, y), health.statistics(y.astype(float), y)
    assert all(x.dtype == jnp.float32 and x.shape == () for x in low.values())
    assert {k: float(x) for k, x in low.items()} == {
        k: float(x) for k, x in high.items()
    }


@pytest.mark.parametrize("std", [0.4, 0.7, 1.0, 3.0])
def test_spread_out_embeddings_are_healthy(std):
    now = {"embedding_std": std, "embedding_rank": 60.0}
    verdict = Vicreg.health(START, now, EQUAL)
    assert verdict.healthy
    assert "rank 60: the embeddings are spread out" in verdict.reason


def test_a_start_far_above_the_target_is_no_collapse_once_the_target_is_met():
    start, now = START | {"embedding_std": 20.0}, START | {"embedding_std": 0.9}
    verdict = Vicreg.health(start, now, EQUAL)
    assert verdict.healthy


CAUSES = {
    0.0: "loss.variance is 0",
    1.0: "loss.variance (1) is below loss.invariance (25)",
    25.0: "lower optimizer.base_lr",
}


@pytest.mark.parametrize("variance", CAUSES)
def test_a_collapse_is_named_with_its_cause(variance):
    now = {"embedding_std": 0.02, "embedding_rank": 1.2}
    verdict = Vicreg.health(START, now, EQUAL | {"variance": variance})
    assert not verdict.healthy
    assert verdict.reason.startswith("mean embedding std 0.02 (start 0.4, target 1)")
    assert [c for c in CAUSES.values() if c in verdict.reason] == [CAUSES[variance]]


def test_a_high_rank_does_not_save_a_shrinking_embedding():
    z = batch()
    shrunk = health.statistics(*[jnp.asarray(z * 1e-3, jnp.float32)] * 2)
    start = health.statistics(*[jnp.asarray(z, jnp.float32)] * 2)
    start, now = ({k: float(x) for k, x in m.items()} for m in (start, shrunk))
    # Scale-free, see above.
    assert now["embedding_rank"] == pytest.approx(start["embedding_rank"], rel=1e-4)
    assert not Vicreg.health(start, now, EQUAL).healthy
