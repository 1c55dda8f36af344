"""VICReg on scikit-learn's handwritten digits: 1,437 images of 8 x 8, no download.

python -m vicreg_jax.main --config=configs/digits.py

Cost: 990 steps, about half a minute on 2 CPU cores.
Result: with 1, 5, 10 labels per class or all, 92.7, 96.4, 97.6 and 99.2 % of the test
images by 1-NN, against 63.6, 83.9, 89.5 and 96.9 % for raw pixels (see the README).
Training for longer gains nothing (chosen with --config.data.validation=True).
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.epochs = 90
    c.data = dict(name="digits", batch_size=128, image_size=8, mean=(0.0,), std=(1.0,))
    c.augment = dict(crop_scale=(0.5, 1.0), crop_ratio=(1 / 2, 2.0), flip=0.0)
    c.augment.update(rotation=15.0, shear=0.4)
    c.augment.update(jitter=1.0, brightness=0.5, contrast=0.5, saturation=0.0, hue=0.0)
    c.augment.update(grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0))
    c.model = dict(encoder="digits", expander=(128, 128, 128))
    c.optimizer = dict(name="adamw", base_lr=2e-2, weight_decay=1e-4, warmup_epochs=9.0)
    c.every = dict(log_steps=10, checkpoint_epochs=10)
    c.evaluate = dict(draws=100)
    return c
