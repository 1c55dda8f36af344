"""Linear evaluation with a bank of heads: rates and layers, chosen on held-out images.

python -m vicreg_jax.main --config=configs/eval/linear_bank.py --config.checkpoint=RUN

A tenth of the training images chooses among the heads; the test images are read once.

Cost: about that of linear.py with ten epochs.
Result: not yet measured.
"""

from configs.eval import linear


def get_config():
    c = linear.get_config()
    c.epochs = 10
    c.head = dict(rates=(0.003, 0.01, 0.03, 0.1, 0.3, 1.0))
    c.head.update(weight_decay=(0.0, 1e-4), layers=(0, 2))
    return c
