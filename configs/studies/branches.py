"""The variance term with and without BatchNorm in the expander, and shared weights.

python -m vicreg_jax.main --config=configs/studies/branches.py

Each with the three terms of VICReg, and without its variance; short runs of the digits.

Cost: 24 runs, see docs/claims.md.
Result: there, S2.
"""

from configs.studies import short


def get_config():
    c = short.get_config()
    c.rows = ()
    for norm in ("norm", "plain"):
        for weights in ("shared", "own"):
            for variance in ("variance", "none"):
                changes = [f"model.expander_norm={norm == 'norm'}"]
                changes += ["model.second_encoder=digits"] * (weights == "own")
                changes += ["loss.variance=0"] * (variance == "none")
                c.rows += ((f"{norm}+{weights}+{variance}", *changes),)
    return c
