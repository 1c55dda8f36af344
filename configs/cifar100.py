"""VICReg with ResNet-18 on CIFAR-100.

python -m vicreg_jax.main --config=configs/cifar100.py  (downloads it by tfds)

Cost: 1000 epochs of 195 steps; one GPU, not yet measured.
Result: not yet measured. Published with a related recipe: 68.54 % top-1 by an online
linear head (solo-learn).
"""

from configs import cifar10


def get_config(policy="solo_learn_cifar"):
    c = cifar10.get_config(policy)
    c.data.dataset = "cifar100"
    c.data.mean = (0.5071, 0.4865, 0.4409)
    c.data.std = (0.2673, 0.2564, 0.2762)
    return c
