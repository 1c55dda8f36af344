"""Linear evaluation, as the authors do it: a classifier on the frozen encoder.

python -m vicreg_jax.main --config=configs/eval/linear.py --config.checkpoint=RUN

The data is the run's; of folders and files the test images lie apart:
--config.data.test_path=IMAGENET/val.

SGD with a cosine by the epoch, random crops and flips, encoder in inference mode. The
test images are read once, at the end. Several values of head.rates, weight_decay or
layers make a bank of heads for about the cost of one (see linear_bank.py).

Cost: 100 epochs of forward passes on ImageNet.
Result: published as 73.2 % top-1 and 91.1 % top-5 for ResNet-50 on ImageNet
(arXiv:2105.04906, table 1; the authors' code prints the maximum over epochs, which
head.test_every_epoch=True gives too); not yet reproduced here.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "linear"
    return c
