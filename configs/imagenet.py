"""VICReg with ResNet-50 on ImageNet: the published recipe of 1000 epochs.

python -m vicreg_jax.main --config=configs/imagenet.py --config.data.path=IMAGENET/train

Cost: published as about 11 hours per 100 epochs on 32 V100 GPUs.
Result: 73.2 % top-1 by linear evaluation (arXiv:2105.04906, table 1); not yet
reproduced here.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "pretrain"
    c.seed = 0
    c.epochs = 1000

    c.data = dict(name="folder", path="", validation=False)  # path: of class folders
    c.data.batch_size = 2048
    c.data.image_size = 224
    c.data.mean = (0.485, 0.456, 0.406)
    c.data.std = (0.229, 0.224, 0.225)

    # Of the authors' code, which they found slightly better than the paper's text, that
    # has blur=(0.5, 0.5) and solarize=(0.1, 0.1).
    c.augment = dict(crop_scale=(0.08, 1.0), crop_ratio=(3 / 4, 4 / 3))
    c.augment.update(flip=0.5, rotation=0.0, shear=0.0)
    c.augment.update(jitter=0.8, brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1)
    c.augment.update(grey=0.2, blur=(1.0, 0.1), sigma=(0.1, 2.0), solarize=(0.0, 0.2))

    c.model = dict(encoder="resnet50", width=1, stem="imagenet")
    c.model.update(expander=(8192, 8192, 8192), dtype="bfloat16")

    c.loss = dict(invariance=25.0, variance=25.0, covariance=1.0)

    c.optimizer = dict(name="lars", base_lr=0.2, weight_decay=1e-6)
    c.optimizer.update(momentum=0.9, trust_coefficient=1e-3, clip=False)
    c.optimizer.update(warmup_epochs=10.0, end_scale=1e-3)

    c.every = dict(log_steps=100, checkpoint_epochs=1)
    c.evaluate = dict(labels_per_class=(1, 5, 10), draws=0)
    c.wandb = ""
    return c
