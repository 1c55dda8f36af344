"""Weights and architectures of the branches: table 5 of the paper, a cell at a time.

python -m vicreg_jax.main --config=configs/paper/table5.py:vicreg+own \
    --config.data.path=IMAGENET/train

The variant is a method, vicreg, barlow_twins or simclr, with shared weights (alone), or
with a second branch: +own (of the same architecture) or +resnet101.

Cost: not measured here.
Result: published linear top-1 in docs/methods.md; not yet reproduced here.

The paper gives no recipes of the other methods: those here are of their own papers, but
all parameters have one learning rate. Its column ResNet-50 / ViT-S is not here, for
there is no such encoder.
"""

from configs import imagenet_100ep

METHODS = ("vicreg", "barlow_twins", "simclr")
SECOND = {"shared": "", "own": "resnet50", "resnet101": "resnet101"}


def get_config(variant="vicreg+own"):
    method, _, branches = variant.partition("+")
    branches = branches or "shared"
    if method not in METHODS or branches not in SECOND:
        raise ValueError(
            f"no variant {variant!r}; there are {', '.join(METHODS)}, each alone or"
            " with +own or +resnet101"
        )
    c = imagenet_100ep.get_config()
    c.method = method
    c.model.second_encoder = SECOND[branches]
    if method == "barlow_twins":
        c.optimizer = dict(base_lr=0.2, weight_decay=1.5e-6)
    if method == "simclr":
        c.data.batch_size = 4096
        c.model.expander = (2048, 128)
        c.optimizer = dict(base_lr=0.3)
    return c
