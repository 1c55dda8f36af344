"""VICReg with ResNet-200 of twice the width on ImageNet, 1000 epochs.

python -m vicreg_jax.main --config=configs/imagenet_resnet200x2.py \
    --config.data.path=IMAGENET/train

Cost: not published; 250 M parameters.
Result: 77.3 % top-1 by linear evaluation (arXiv:2105.04906, table 9); not yet
reproduced here.
"""

from configs import imagenet


def get_config(policy="official"):
    c = imagenet.get_config(policy)
    c.model.encoder = "resnet200"
    c.model.width = 2
    return c
