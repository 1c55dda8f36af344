"""Continues from public weights on a folder of your own images, with VICReg.

python -m vicreg_jax.main --config=configs/continue.py --config.data.path=IMAGES \
    --config.model.weights=resnet50.pth

The folder holds image files, in class folders or not; labels are not used. The weights
are a .pth, .ckpt, .bin or .safetensors file (docs/weights.md), an export, or the folder
of a run; model.encoder names their network. The expander is new: for the first epochs
only it learns, then the encoder with it, at a tenth of its rate.

A tenth of the images is held out. On them the encoder is judged before and after, and
the last line says whether it is better, worse, or within noise.

Cost: depends on the images; one GPU.
Result: depends on the images; not yet measured.
"""

from configs import folder


def get_config(policy="official"):
    c = folder.get_config(policy)
    c.epochs = 50
    c.data.update(image_size=224, held_out=0.1)
    c.model.encoder = "resnet50"
    c.optimizer = dict(base_lr=0.5, weight_decay=1e-4, warmup_epochs=5.0)
    c.optimizer.update(encoder_scale=0.1, frozen_epochs=2.0)
    return c
