"""How far chance may move an accuracy: halves of 95 % intervals, for any table."""

import numpy as np

__all__ = ["interval", "margin", "wilson"]


def interval(accuracy: float, n: int) -> float:
    """Returns half the width of the 95 % interval of an accuracy, all in per cent.

    That of `wilson`. Its middle is nearer to 50 % than the accuracy is, by less than
    3.85 / n of the way.

    Args:
      accuracy: in per cent, 0 to 100. n: the images that it was measured on.

    Raises:
      ValueError: an accuracy outside 0 to 100, n < 1.
    """
    if not 0 <= accuracy <= 100 or n < 1:
        raise ValueError(
            "an interval needs an accuracy from 0 to 100 per cent of n >= 1 images;"
            f" got {accuracy} of {n}"
        )
    low, high = wilson(round(accuracy * n / 100), n)
    return (high - low) / 2


def wilson(count: int, n: int) -> tuple[float, float]:
    """Returns the bounds of the 95 % interval of a share, count of n, in per cent.

    Wilson's score interval, which is never empty, as the normal one is at 0 and 100.

    Source: E. B. Wilson, Probable inference, 1927.
    """
    from scipy import stats  # takes a second, which most programs need not wait

    found = stats.binomtest(count, n).proportion_ci(0.95, method="wilson")
    return float(100 * found.low), float(100 * found.high)


def margin(values: np.ndarray) -> float:
    """Returns half Student's 95 % interval of the mean of values [n]; 0 of one."""
    from scipy import stats

    n = len(values)
    if n < 2:
        return 0.0
    return float(stats.t.ppf(0.975, n - 1) * np.std(values, ddof=1) / np.sqrt(n))
