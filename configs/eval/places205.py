"""Transfer: a linear classifier on Places205 scenes.

python -m vicreg_jax.main --config=configs/eval/places205.py --config.checkpoint=RUN \
    --config.data.path=PLACES205/train --config.data.test_path=PLACES205/val

The images come from places.csail.mit.edu (on request); put them into class folders.

Cost: 28 epochs of forward passes of 2.4 million images.
Result: published as 54.3 % top-1 (arXiv:2105.04906, table 2); not yet reproduced here.
"""

from configs.eval import linear


def get_config():
    c = linear.get_config()
    c.epochs = 28
    c.data = dict(name="folder", image_size=224, shorter_side=256)
    c.head = dict(rates=(0.003,), weight_decay=(1e-4,), drops=(4, 8, 12))
    return c
