"""The weights of the three terms: table 7 of the paper, all of its rows.

python -m vicreg_jax.main --config=configs/studies/table7.py

A row is named by the weights of invariance, variance and covariance. Short runs of the
digits; any other data and recipe by --config.recipe and --config.changes.

Cost: 33 runs, see docs/claims.md.
Result: there. Published: linear top-1 of a ResNet-50 on ImageNet after 100 epochs, 0
where it collapsed.
"""

from configs.studies import collapse, short

PUBLISHED = {
    (1, 0, 0): 0.0,
    (25, 0, 1): 0.0,
    (0, 25, 1): 0.0,
    (1, 1, 0): 57.5,
    (1, 1, 1): 0.0,
    (1, 10, 1): 0.0,
    (10, 1, 1): 0.0,
    (5, 5, 1): 68.1,
    (10, 10, 1): 68.2,
    (25, 25, 1): 68.6,
    (50, 50, 1): 68.3,
}


def get_config():
    c = short.get_config()
    c.rows = tuple(map(collapse.row, PUBLISHED))
    c.published = {
        row[0]: PUBLISHED[w] for row, w in zip(c.rows, PUBLISHED, strict=True)
    }
    c.published_as = "linear top-1"
    return c
