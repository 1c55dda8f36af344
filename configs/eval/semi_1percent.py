"""Semi-supervised: fine-tuning on a hundredth of ImageNet's labels.

python -m vicreg_jax.main --config=configs/eval/semi_1percent.py \
    --config.checkpoint=RUN --config.data.test_path=IMAGENET/val

By default a hundredth of each class, drawn by the seed. The published numbers are of
SimCLR's list: --config.data.names=1percent.txt --config.data.fraction=1 (path or URL),
or --config.data.name=tfds --config.data.dataset=imagenet2012_subset/1pct
--config.data.fraction=1 --config.data.test_split=validation.

Cost: 20 epochs of 12,800 images.
Result: published as 54.8 % top-1 and 79.4 % top-5 for ResNet-50 (arXiv:2105.04906,
table 1); not yet reproduced here.
"""

from configs.eval import finetune


def get_config():
    c = finetune.get_config()
    c.data = dict(fraction=0.01)
    c.head.rates = (0.08,)
    c.finetune = dict(encoder_rate=0.03)
    return c
