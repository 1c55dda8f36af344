"""VICReg with ResNet-18 on a folder of your own images: a start for some thousands.

python -m vicreg_jax.main --config=configs/folder.py --config.data.path=IMAGES

The folder holds image files, in class folders or not; labels are not used.

Cost: depends on the images; one GPU.
Result: depends on the images. Watch `embedding_std` (it should rise towards 1) and
`representation_rank` in metrics.jsonl.
"""

from configs import imagenet


def get_config(policy="official"):
    c = imagenet.get_config(policy)
    c.epochs = 200
    c.data.update(batch_size=256, image_size=128)
    c.augment.crop_scale = (0.2, 1.0)
    c.model.update(encoder="resnet18", expander=(2048, 2048, 2048))
    c.optimizer = dict(base_lr=0.5, weight_decay=1e-4)
    c.every = dict(log_steps=20)
    return c
