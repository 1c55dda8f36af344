"""VICReg with ResNet-18 on ImageNet-100, a folder of 100 classes: solo-learn's recipe.

python -m vicreg_jax.main --config=configs/imagenet100.py --config.data.path=IN100/train

As in configs/cifar10_sololearn.py, with the usual stem for images of 224 x 224.

Cost: 400 epochs of 494 or 495 steps; published on 2 GPUs, without a time.
Result: 79.40 % top-1 by linear evaluation (published by solo-learn); not yet reproduced
here.
"""

from configs import cifar10_sololearn


def get_config(policy="solo_learn"):
    c = cifar10_sololearn.get_config(policy)
    c.epochs = 400
    c.data = dict(name="folder", batch_size=256)
    c.model.stem = "imagenet"
    del c.every, c.evaluate  # what small images allow
    return c
