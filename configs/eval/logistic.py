"""Logistic regression on frozen features of whole images, by L-BFGS: no augmentation.

python -m vicreg_jax.main --config=configs/eval/logistic.py --config.checkpoint=RUN

Features are centred and scaled as a whole. Of several logistic.c, inverse strengths of
the L2 penalty, a tenth of the training images chooses.

Cost: one pass over the images, then minutes or less for 50,000 of them.
Result: not yet measured on published data sets.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "logistic"
    c.logistic = dict(c=(0.01, 0.1, 1.0, 10.0))
    return c
