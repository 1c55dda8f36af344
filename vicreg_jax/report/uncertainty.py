"""How far chance may move an accuracy: halves of 95 % intervals, for any table."""

import numpy as np

__all__ = ["interval", "margin"]


# Standard errors on either side that hold 95 % of a normal distribution.
Z95 = 1.96


def interval(accuracy: float, n: int) -> float:
    """Returns half the width of the 95 % interval of an accuracy, all in per cent.

    Wilson's score interval of a binomial share, which is never empty, as the normal
    one is at 0 and 100 per cent. Its middle is nearer to 50 % than the accuracy is, by
    less than 3.85 / n of the way.

    Args:
      accuracy: in per cent, 0 to 100. n: the images that it was measured on.

    Raises:
      ValueError: an accuracy outside 0 to 100, n < 1.

    Source: E. B. Wilson, Probable inference, 1927.
    """
    from scipy import stats  # takes a second, which most programs need not wait

    if not 0 <= accuracy <= 100 or n < 1:
        raise ValueError(
            "an interval needs an accuracy from 0 to 100 per cent of n >= 1 images;"
            f" got {accuracy} of {n}"
        )
    share = stats.binomtest(round(accuracy * n / 100), n)
    low, high = share.proportion_ci(confidence_level=0.95, method="wilson")
    return float(50 * (high - low))


def margin(values: np.ndarray) -> float:
    """Returns half the normal 95 % interval of the mean of values [n]; 0 of one."""
    if len(values) < 2:
        return 0.0
    return float(Z95 * np.std(values, ddof=1) / np.sqrt(len(values)))
