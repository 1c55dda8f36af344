"""How sure an accuracy is."""

import math

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
    if not 0 <= accuracy <= 100 or n < 1:
        raise ValueError(
            "an interval needs an accuracy from 0 to 100 per cent of n >= 1 images;"
            f" got {accuracy} of {n}"
        )
    p = accuracy / 100
    error = math.sqrt(p * (1 - p) / n + Z95**2 / (4 * n**2))
    return float(100 * Z95 * error / (1 + Z95**2 / n))
