"""All methods on the digits, each at the best of five rates.

python -m vicreg_jax.main --config=configs/studies/methods.py:rates
python -m vicreg_jax.main --config=configs/studies/methods.py

The first chooses: five rates, one seed, accuracies of a part of the training images.
The second has three seeds at the rates chosen and the test images.

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
RATES = (2e-3, 5e-3, 1e-2, 2e-2, 5e-2)


def get_config(variant="test"):
    if variant not in ("test", "rates"):
        raise ValueError(f"no variant {variant!r}; there are test and rates")
    c = short.get_config()
    c.rows = ROWS
    if variant == "rates":
        c.changes += ("data.validation=True",)
        c.rows = tuple(
            (f"{name}_{rate:.0e}", *changes, f"optimizer.base_lr={rate}")
            for name, *changes in ROWS
            for rate in RATES
        )
        c.seeds = (100,)
    return c
