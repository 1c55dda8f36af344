"""Variance and covariance in other methods: table 4 of the paper, all of its rows.

python -m vicreg_jax.main --config=configs/studies/table4.py

The rows are those of configs/paper/table4.py. Short runs of the digits, all with the
rate of the demo; the paper gave every method its own. A predictor has one hidden layer.

Cost: 72 runs, see docs/claims.md.
Result: there. Published: linear top-1 of a ResNet-50 on ImageNet after 100 epochs, 0
where it collapsed.
"""

from configs.paper import table4
from configs.studies import short

PUBLISHED = {
    "byol": (69.3, 70.2, 69.5),
    "simsiam": (67.9, 68.1, 67.6),
    "simsiam_plain": (35.1, 67.3, 67.1),
    "simsiam_bare": (0.0, 56.8, 66.1),
    "vicreg_predictor_plain": (0.0, 56.2, 67.3),
    "vicreg_predictor": (0.0, 57.1, 68.7),
    "vicreg": (0.0, 57.5, 68.6),
    "vicreg_plain": (0.0, 56.5, 67.4),
}


def get_config():
    c = short.get_config()
    c.rows, c.published = (), {}
    for row, numbers in PUBLISHED.items():
        for terms, number in zip(table4.TERMS, numbers, strict=True):
            full = table4.get_config(f"{row}+{terms}")
            changes = [f"method={full.method}"]
            changes += [f"loss.{name}={weight}" for name, weight in full.loss.items()]
            changes += [f"model.expander_norm={full.model.expander_norm}"]
            changes += ["model.predictor=(64,)"] * bool(full.model.predictor)
            if full.method == "simsiam" and full.model.expander_norm:
                changes += ["model.embedding_norm=batch"]
            name = row if terms == "none" else f"{row}+{terms}"
            c.rows += ((name, *changes),)
            c.published[name] = number
    c.published_as = "linear top-1"
    return c
