"""Semi-supervised: fine-tuning on a tenth of ImageNet's labels.

python -m vicreg_jax.main --config=configs/eval/semi_10percent.py \
    --config.checkpoint=RUN --config.data.test_path=IMAGENET/val

By default a tenth of each class, drawn by the seed. The published numbers are of
SimCLR's list: --config.data.names=10percent.txt --config.data.fraction=1 (path or URL),
or --config.data.name=tfds --config.data.dataset=imagenet2012_subset/10pct
--config.data.fraction=1 --config.data.test_split=validation.

Cost: 20 epochs of 128,000 images.
Result: published as 69.5 % top-1 and 89.5 % top-5 for ResNet-50 (arXiv:2105.04906,
table 1); not yet reproduced here.
"""

from configs.eval import finetune


def get_config():
    c = finetune.get_config()
    c.data = dict(fraction=0.1)
    return c
