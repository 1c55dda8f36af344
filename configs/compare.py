"""Writes a page that compares runs: their curves over each other, and what differs.

python -m vicreg_jax.main --config=configs/compare.py --config.runs="('A','B')"

A and B are workdirs, 2 to 10 of them. One file, WORKDIR/comparison.html, by default in
runs/compare, that needs no network.

Cost: seconds.
Result: the page.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "compare"
    return c
