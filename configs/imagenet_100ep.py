"""VICReg with ResNet-50 on ImageNet: the 100 epochs of the paper's ablations.

python -m vicreg_jax.main --config=configs/imagenet_100ep.py \
    --config.data.path=IMAGENET/train
python -m vicreg_jax.main --config=configs/imagenet_100ep.py:512 ...  (batch of 512)

Cost: published as about 11 hours on 32 V100 GPUs.
Result: linear top-1 by batch as in the table below (arXiv:2105.04906, table 13); not
yet reproduced here.
"""

from configs import imagenet

# batch -> base learning rate (linear top-1): 67.3, 67.9, 68.2, 68.3, 68.6, 67.8 %
BASE_LR = {128: 0.8, 256: 0.5, 512: 0.4, 1024: 0.3, 2048: 0.3, 4096: 0.3}


def get_config(batch_size="2048"):
    if batch_size not in map(str, BASE_LR):
        raise ValueError(f"no rate for a batch of {batch_size}; there are {BASE_LR}")
    c = imagenet.get_config()
    c.epochs = 100
    c.data.batch_size = int(batch_size)
    c.optimizer = dict(base_lr=BASE_LR[int(batch_size)])
    return c
