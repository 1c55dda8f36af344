"""VICReg on scikit-learn's handwritten digits: 1,437 images of 8 x 8, no download.

python -m vicreg_jax.main --config=configs/digits.py

Cost: 990 steps, about half a minute on 2 CPU cores.
Result: with 1, 5, 10 labels per class or all, 92.6, 96.5, 97.9 and 99.2 % of the test
images by 1-NN, against 63.6, 83.9, 89.5 and 96.9 % for raw pixels (see the README).
Training for longer gains nothing (chosen with --config.data.validation=True).
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "pretrain"
    c.seed = 0
    c.epochs = 90

    c.data = dict(name="digits", path="", dataset="", split="train")
    c.data.validation = False
    c.data.batch_size = 128
    c.data.image_size = 8
    c.data.resize = "auto"
    c.data.mean = (0.0,)
    c.data.std = (1.0,)

    c.augment = dict(crop_scale=(0.5, 1.0), crop_ratio=(1 / 2, 2.0))
    c.augment.update(interpolation="bicubic", flip=0.0, rotation=15.0, shear=0.4)
    c.augment.update(jitter=1.0, brightness=0.5, contrast=0.5, saturation=0.0, hue=0.0)
    c.augment.update(grey=0.0, blur=(0.0, 0.0), sigma=(0.1, 2.0), solarize=(0.0, 0.0))
    c.augment.colour = "device"

    c.model = dict(encoder="digits", width=1, stem="imagenet")
    c.model.zero_init_residual = True
    c.model.update(expander=(128, 128, 128), expander_bias=False)
    c.model.dtype = "float32"

    c.loss = dict(invariance=25.0, variance=25.0, covariance=1.0)

    c.optimizer = dict(name="adamw", base_lr=2e-2, weight_decay=1e-4)
    c.optimizer.update(momentum=0.9, trust_coefficient=1e-3, clip=False)
    c.optimizer.update(warmup_epochs=9.0, warmup_start=0.0, end_scale=1e-3)
    c.optimizer.sharded = False

    c.every = dict(log_steps=10, checkpoint_epochs=10)
    c.guard = dict(skipped_steps=10, broken_images=0.01, stuck_seconds=120.0)
    c.evaluate = dict(labels_per_class=(1, 5, 10), draws=100)
    c.evaluate.update(knn_epochs=0, probe=False)
    c.prepare = dict(shards=64, shorter_side=0, quality=0)
    c.wandb = ""
    return c
