"""VICReg with ViT-S/16 on ImageNet, with the optimizer of MoCo v3's ViTs.

python -m vicreg_jax.main --config=configs/imagenet_vit.py \
    --config.data.path=IMAGENET/train

AdamW, base rate 1.5e-4, weight decay 0.1, batch 4096, 40 of 300 epochs of warm-up and a
cosine are MoCo v3's (arXiv:2104.02057); it also freezes the patch projection, which
learns here. Augmentations, loss and expander are VICReg's.

Cost: unknown.
Result: not yet run here; VICReg's paper has no ViT alone.
"""

from configs import imagenet


def get_config(policy="official"):
    c = imagenet.get_config(policy)
    c.epochs = 300
    c.data.batch_size = 4096
    c.model.encoder = "vit_small_patch16"
    c.optimizer = dict(name="adamw", base_lr=1.5e-4, weight_decay=0.1)
    c.optimizer.update(warmup_epochs=40, end_scale=0.0)
    return c
