"""What the spectrum of a trained encoder's features says of them, without labels.

Float64 NumPy, for looking at once; methods/health.py holds what a step can afford.
"""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from vicreg_jax.methods import health
from vicreg_jax.refusals import Refusal

__all__ = ["alpha_req", "diagnose", "effective_rank", "lidar", "verdict"]

DEAD = 0.01  # a std; the root of the eps that VICReg adds to the variance
RANKS = (4, 100)  # first and last rank of an eigenvalue that alpha-ReQ is fitted to


def diagnose(
    representations: np.ndarray,
    embeddings: np.ndarray | None = None,
    pairs: np.ndarray | None = None,
) -> dict[str, Any]:
    """Returns statistics of features by name, ready for JSON.

    For `representation_` and, where given, `embedding_`:
      `_std`: the mean of the standard deviations of dimensions.
      `_stds`: all of them.
      `_dead`: how many are below 0.01.
      `_correlation`: the mean absolute correlation of two dimensions, of the first
        1,024.
      `_singular_values`: of the features as they are, the largest first.
      `_rank`: RankMe, see `effective_rank`; of all rows, where a step takes 1,024.
      `_alpha`: see `alpha_req`; null where the spectrum ends before rank 5.
    `lidar` of the pairs, where given; and `healthy` with its `reason`, see `verdict`,
    of the embeddings if given, else of the representations.

    Args:
      representations: [n >= 2, f], of n images. A rank is at most n, and a spectrum
        costs n f min(n, f) operations: some 10,000 images are enough for most encoders.
      embeddings: [n, d] of the same images, which training pulls towards a std of 1.
      pairs: [n, q, d], q views of each of n images, of what LiDAR shall judge.

    Raises:
      Refusal: features of another shape, or not finite.
    """
    found: dict[str, Any] = {}
    for name, x in (("representation", representations), ("embedding", embeddings)):
        if x is not None:
            found |= {f"{name}_{key}": v for key, v in _statistics(x, name).items()}
    if pairs is not None:
        found["lidar"] = lidar(pairs)
    name, target = ("representation", None) if embeddings is None else ("embedding", 1)
    judged = verdict(np.array(found[f"{name}_stds"]), target=target)
    return {**found, "healthy": judged.healthy, "reason": judged.reason}


def effective_rank(values: np.ndarray) -> float:
    """Returns exp of the entropy of singular values or eigenvalues [r], all >= 0.

    1 for a single value, r for r equal ones, 0 for none but zeros. Scale-free: it
    stays high while everything shrinks. Of singular values of features, not centred,
    it is RankMe.

    Source: arXiv:2210.02885, eq. 1, without the 1e-7 that it adds to every share: in
    float64 zeros need no help.
    """
    total = np.sum(values)
    if total == 0:
        return 0.0
    p = values[values > 0] / total
    return float(np.exp(-np.sum(p * np.log(p))))


def alpha_req(features: np.ndarray) -> float:
    """Returns the exponent alpha of the decay i^-alpha of the covariance's eigenvalues.

    The slope of log eigenvalue against log rank i, by least squares with weights 1 / i
    over the ranks 4 to 100, or to the last eigenvalue that is not rounding. The paper
    finds the best features near alpha = 1.

    Args:
      features: [n, f]; they are centred here.

    Raises:
      Refusal: fewer than five eigenvalues, or not [n >= 2, f] and finite.

    Source: Agrawal et al., alpha-ReQ, NeurIPS 2022. It states no range; ranks and
    weights are those of its authors' code.
    """
    x, rounding = _checked(features, "features")
    return _alpha(_centred_values(x, rounding))


def lidar(views: np.ndarray, *, delta: float = 1e-4) -> float:
    """Returns the effective rank of what tells images apart rather than their views.

    Every image is a class of its own, its views the examples. With S_b the covariance
    of the images' means and S_w that of views around them plus delta I, it is the
    effective rank of S_w^-1/2 S_b S_w^-1/2: at most n - 1 and d. Noise of the views
    alone has the rank of noise, so compare runs at equal n, q and d, with n > d. It
    costs n q d^2 + 10 d^3 operations and 16 d^2 bytes, or so.

    Args:
      views: [n >= 2, q >= 2, d].
      delta: added to the variances within images, in squared units of the features.
        The paper states none.

    Raises:
      Refusal: views of another shape, or not finite; delta <= 0.

    Source: arXiv:2312.04000v1, eq. 1 to 4, without the eps of the shares, as in
    `effective_rank`.
    """
    views = np.asarray(views, np.float64)
    if views.ndim != 3 or min(views.shape[:2]) < 2 or not views.shape[2]:
        raise Refusal(f"LiDAR needs views [n >= 2, q >= 2, d]; got shape {views.shape}")
    _check_finite(views.reshape(len(views), -1), "views")
    if not delta > 0:
        raise Refusal(f"delta must be > 0; got {delta}")
    n, q, _ = views.shape
    means = views.mean(axis=1)
    within = (views - means[:, None]).reshape(n * q, -1)
    between = means - means.mean(axis=0)
    variances, directions = np.linalg.eigh(within.T @ within / (n * q))
    whitened = between @ directions / np.sqrt(np.maximum(variances, 0) + delta)
    return effective_rank(np.linalg.svd(whitened, compute_uv=False) ** 2)


def verdict(std: np.ndarray, *, target: float | None) -> health.Verdict:
    """Returns whether features have collapsed, by the absolute std of dimensions.

    They have if most dimensions are dead, or if the mean std is below a quarter of its
    target. (A rank is scale-free and cannot tell; a training run's own verdict, against
    its start, is `methods.health.judge`.)

    Args:
      std: [d]. target: the std that training asked for: 1 for embeddings of VICReg;
        None for representations, of which nothing is asked.
    """
    dead, d, mean = np.count_nonzero(std < DEAD), len(std), np.mean(std)
    found = f"mean std {mean:.3g}" + (f" (target {target:g})" if target else "")
    found += f", {dead} of {d} dimensions below {DEAD}"
    if 2 * dead > d:
        return health.Verdict(False, f"{found}: collapsed, most dimensions are dead")
    if target and mean < target / 4:
        return health.Verdict(False, f"{found}: collapsed, far below the target")
    return health.Verdict(True, f"{found}: the features are spread out")


def _statistics(x, name):
    x, rounding = _checked(x, f"{name}s")
    std = x.std(axis=0, ddof=1)
    singular, centred = np.linalg.svd(x, compute_uv=False), _centred_values(x, rounding)
    with jax.enable_x64(True):
        correlation = float(health.mean_correlation(jnp.asarray(x)))
    return {
        "std": float(std.mean()),
        "stds": std.tolist(),
        "dead": int(np.count_nonzero(std < DEAD)),
        "correlation": correlation,
        "singular_values": singular.tolist(),
        "rank": effective_rank(singular),
        "alpha": _alpha(centred) if len(centred) > RANKS[0] else None,
    }


def _centred_values(x, rounding):
    """Returns the singular values of centred features that are not rounding."""
    values = np.linalg.svd(x - x.mean(axis=0), compute_uv=False)
    return values[values > rounding]


def _alpha(values):
    first, last = RANKS
    i = np.arange(first, min(last, len(values)) + 1)
    if len(i) < 2:
        raise Refusal(
            f"alpha-ReQ needs eigenvalues of rank {first} and {first + 1}; the"
            f" features have {len(values)}"
        )
    x, y, weight = np.log(i), 2 * np.log(values[i - 1]), 1 / i
    x, y = (v - np.average(v, weights=weight) for v in (x, y))
    return float(-np.sum(weight * x * y) / np.sum(weight * x**2))


def _checked(x, name):
    """Returns features in float64, and what their own rounding adds to its values."""
    x = np.asarray(x)
    if x.ndim != 2 or len(x) < 2 or not x.shape[1]:
        raise Refusal(f"{name} must be [n >= 2, f]; got shape {x.shape}")
    _check_finite(x, name)
    eps = np.finfo(x.dtype if x.dtype == np.float32 else np.float64).eps
    return x.astype(np.float64), max(x.shape) * eps * float(np.abs(x).max())


def _check_finite(x, name):
    wrong = np.count_nonzero(~np.isfinite(x).all(axis=1))
    if wrong:
        raise Refusal(f"{wrong} of the {len(x)} rows of the {name} are not finite")
