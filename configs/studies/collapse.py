"""What collapses and what does not: agreement alone, with covariance, with variance.

python -m vicreg_jax.main --config=configs/studies/collapse.py

A row is named by the weights of invariance, variance and covariance; five seeds of
short runs of the digits.

Cost: 20 runs, see docs/claims.md.
Result: there, S1 and S5.
"""

from configs.studies import short

NAMES = ("invariance", "variance", "covariance")
ROWS = ((25, 0, 0), (25, 0, 1), (25, 25, 0), (25, 25, 1))


def row(weights):
    """Returns the row with these weights: its name, and changes."""
    pairs = zip(NAMES, weights, strict=True)
    name = "_".join(map(str, weights))
    return (name, *(f"loss.{term}={weight}" for term, weight in pairs))


def get_config():
    c = short.get_config()
    c.seeds = (0, 1, 2, 3, 4)
    c.rows = tuple(map(row, ROWS))
    c.baseline = "25_25_1"
    c.columns = ("healthy", "embedding_std at first", "embedding_std_least")
    c.columns += ("embedding_std", "embedding_std_greatest", "embedding_rank")
    c.columns += ("1-NN, 5 labels", "untrained encoder: 1-NN, 5 labels")
    return c
