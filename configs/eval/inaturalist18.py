"""Transfer: a linear classifier on the species of iNaturalist 2018.

python -m vicreg_jax.main --config=configs/eval/inaturalist18.py \
    --config.checkpoint=RUN --config.data.path=INAT18/train \
    --config.data.test_path=INAT18/val

The images come from github.com/visipedia/inat_comp; put them into class folders. VISSL,
which the authors say they used here, has BatchNorm before the linear layer; that a bare
linear layer falls far short is likely the reason why users could not reproduce the
number: --config.head.batch_norm=True.

Cost: 84 epochs of forward passes of 438,000 images.
Result: published as 47.0 % top-1 (arXiv:2105.04906, table 2); not yet reproduced here.
"""

from configs.eval import linear


def get_config():
    c = linear.get_config()
    c.epochs = 84
    c.data = dict(name="folder", image_size=224, shorter_side=256)
    c.head = dict(rates=(0.005,), weight_decay=(1e-4,), drops=(24, 48, 72))
    return c
