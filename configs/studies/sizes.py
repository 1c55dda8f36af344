"""Width of the expander and size of the batch: tables 12 and 13 of the paper.

python -m vicreg_jax.main --config=configs/studies/sizes.py

Short runs of the digits, with widths and batches that fit them; the rate of a batch
follows its size.

Cost: 36 runs, see docs/claims.md.
Result: there, S4. The paper's rows are wider and larger; docs/claims.md has them.
"""

from configs.studies import short


def get_config():
    c = short.get_config()
    sizes = (16, 32, 64, 128, 256, 512)
    c.rows = tuple((f"width_{x}", f"model.expander=({x},{x},{x})") for x in sizes)
    c.rows += tuple((f"batch_{x}", f"data.batch_size={x}") for x in sizes)
    return c
