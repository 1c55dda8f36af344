"""VICReg with ResNet-18 on CIFAR-10.

python -m vicreg_jax.main --config=configs/cifar10.py  (downloads it by tfds)
python -m vicreg_jax.main --config=configs/cifar10.py --config.data.name=arrays \
    --config.data.path=FILE.npz

FILE.npz holds `images`, uint8 [50000, 32, 32, 3], and for the table of few-label probes
at the end `labels`, `test_images` and `test_labels`.

Cost: 1000 epochs of 195 steps; one GPU, not yet measured. The table at the end takes
some minutes on few CPU cores; --config.evaluate.draws=0 leaves it out.
Result: not yet measured. Published with a related recipe: 92.07 % top-1 by an online
linear head (solo-learn; configs/cifar10_sololearn.py).
"""

from configs import imagenet


def get_config(policy="solo_learn_cifar"):
    c = imagenet.get_config(policy)
    c.data = dict(name="tfds", dataset="cifar10", batch_size=256, image_size=32)
    c.data.mean = (0.4914, 0.4822, 0.4465)
    c.data.std = (0.247, 0.2435, 0.2616)
    c.model.update(encoder="resnet18", stem="cifar", expander=(2048, 2048, 2048))
    c.optimizer = dict(base_lr=0.3, weight_decay=1e-4)
    c.optimizer.update(trust_coefficient=0.02, clip=True)
    c.every = dict(checkpoint_epochs=10)
    c.evaluate = dict(draws=20)
    return c
