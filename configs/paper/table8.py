"""How expander and embedding are standardized: table 8 of the paper, a row at a time.

python -m vicreg_jax.main --config=configs/paper/table8.py:batch_batch \
    --config.data.path=IMAGENET/train

The variant is what the hidden layers of the expander and what the embedding have.

Cost: not measured here.
Result: published linear top-1: batch_none 68.6, batch_batch 68.4, none_batch 67.4,
none_none 67.2 (printed as a second batch_none; surely this), none_l2 65.1 %; not yet
reproduced here.
"""

from configs import imagenet_100ep

ROWS = ("batch_none", "batch_batch", "none_batch", "none_none", "none_l2")


def get_config(row="batch_none"):
    if row not in ROWS:
        raise ValueError(f"no row {row!r}; there are {', '.join(ROWS)}")
    c = imagenet_100ep.get_config()
    hidden, c.model.embedding_norm = row.split("_")
    c.model.expander_norm = hidden == "batch"
    return c
