"""k nearest neighbours: no training, the first number to ask of an encoder.

python -m vicreg_jax.main --config=configs/eval/knn.py --config.checkpoint=RUN

The data is the run's unless config.data says otherwise; of folders and files the test
images lie apart: --config.data.test_path=IMAGENET/val. The features stay in the
workdir, RUN/eval/knn by default. Votes weighted by similarity, and plain ones.

Cost: one pass over the training images; on ImageNet 10 GB of features.
Result: published as 64.5 % (20 neighbours) and 62.8 % (200) for ResNet-50 on ImageNet
(arXiv:2105.04906, table 11, which does not say how votes are weighted); not yet
reproduced here.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "knn"
    c.knn = dict(neighbours=(1, 20, 200))
    return c
