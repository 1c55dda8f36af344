"""A study of short runs of the digits, that others start from; alone it has one row.

python -m vicreg_jax.main --config=configs/studies/short.py

A third of the demo's epochs, ten draws of labels: 2 CPU cores take about 20 seconds.

Cost: 3 runs.
Result: the page and the table of VICReg alone.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "study"
    c.changes = ("epochs=30", "optimizer.warmup_epochs=3", "evaluate.draws=10")
    c.rows = (("vicreg",),)
    c.columns = ("healthy", "embedding_std", "embedding_rank")
    c.columns += ("1-NN, 5 labels", "1-NN, all labels", "linear, all labels")
    return c
