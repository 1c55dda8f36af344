"""VICReg with ResNet-18 on CIFAR-10, from arrays.

python -m vicreg_jax.main --config=configs/cifar10.py --config.data.path=cifar10.npz

The file holds `images`, uint8 [50000, 32, 32, 3], and for the table of few-label probes
at the end `labels`, `test_images` and `test_labels`.

Cost: 1000 epochs of 195 steps; one GPU.
Result: not yet measured. Published with a related recipe: 92.07 % top-1 by an online
linear head (solo-learn).
"""

from configs import imagenet


def get_config():
    c = imagenet.get_config()
    c.data.name = "arrays"
    c.data.batch_size = 256
    c.data.image_size = 32
    c.data.mean = (0.4914, 0.4822, 0.4465)
    c.data.std = (0.247, 0.2435, 0.2616)
    c.augment.crop_scale = (0.2, 1.0)
    c.augment.blur = (0.0, 0.0)
    c.augment.solarize = (0.1, 0.1)
    c.model.encoder = "resnet18"
    c.model.stem = "cifar"
    c.model.expander = (2048, 2048, 2048)
    c.optimizer.base_lr = 0.3
    c.optimizer.weight_decay = 1e-4
    c.optimizer.trust_coefficient = 0.02
    c.optimizer.clip = True
    c.every.checkpoint_epochs = 10
    c.evaluate.draws = 20
    return c
