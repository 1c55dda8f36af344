"""Linear evaluation on CIFAR, or other images of 32 x 32.

python -m vicreg_jax.main --config=configs/eval/linear_cifar.py --config.checkpoint=RUN

Random crops and flips, the rate chosen among five on a tenth of the training images.

Cost: 100 epochs of forward passes of 50,000 small images.
Result: not yet measured on CIFAR itself.
"""

from configs.eval import linear


def get_config():
    c = linear.get_config()
    c.augment = dict(crop_scale=(0.2, 1.0))
    c.head = dict(rates=(0.03, 0.1, 0.3, 1.0, 3.0), weight_decay=(0.0,))
    return c
