"""All methods on the digits, each at the best of five rates.

python -m vicreg_jax.main --config=configs/studies/methods.py:rates
python -m vicreg_jax.main --config=configs/studies/methods.py

The first chooses: five rates, one seed, 1-NN with all labels on a part of the training
images, of equals by 5 labels. The second has three seeds at the rates chosen and the
test images.

Cost: 35 and 21 short runs of the digits, see docs/claims.md.
Result: there, S6.
"""

from configs.studies import short

ROWS = (
    ("vicreg",),
    ("barlow_twins", "method=barlow_twins"),
    ("simclr", "method=simclr"),
    (
        *("simsiam", "method=simsiam", "model.predictor=(64,)"),
        "model.embedding_norm=batch",
    ),
    ("byol", "method=byol", "model.predictor=(64,)"),
    ("sigreg", "method=sigreg"),
    ("visreg", "method=visreg"),
)
CHOSEN = {
    "vicreg": 5e-3,
    "barlow_twins": 5e-3,
    "simclr": 2e-3,
    "simsiam": 5e-3,
    "byol": 2e-3,
    "sigreg": 1e-2,
    "visreg": 5e-2,
}
RATES = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)


def get_config(variant="test"):
    if variant not in ("test", "rates"):
        raise ValueError(f"no variant {variant!r}; there are test and rates")
    c = short.get_config()
    c.rows = tuple((*row, f"optimizer.base_lr={CHOSEN[row[0]]}") for row in ROWS)
    if variant == "rates":
        c.changes += ("data.validation=True",)
        c.rows = tuple(
            (f"{name}_{rate:.0e}", *changes, f"optimizer.base_lr={rate}")
            for name, *changes in ROWS
            for rate in RATES
        )
        c.seeds = (100,)
    return c
