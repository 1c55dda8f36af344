"""VICReg with ResNet-50 of twice the width on ImageNet, 1000 epochs.

python -m vicreg_jax.main --config=configs/imagenet_resnet50x2.py \
    --config.data.path=IMAGENET/train

Cost: not published.
Result: 75.5 % top-1 by linear evaluation (arXiv:2105.04906, table 9); not yet
reproduced here.
"""

from configs import imagenet


def get_config(policy="official"):
    c = imagenet.get_config(policy)
    c.model.width = 2
    return c
