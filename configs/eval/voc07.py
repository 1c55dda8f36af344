"""Transfer: linear support vector machines on the objects of VOC2007.

python -m vicreg_jax.main --config=configs/eval/voc07.py --config.checkpoint=RUN \
    --config.data.path=VOCdevkit/VOC2007

The images come from host.robots.ox.ac.uk/pascal/VOC/voc2007. LIBLINEAR on features of
whole images, C chosen by cross-validation for each class. Any folder of the same layout
will do. Needs scikit-learn.

Cost: minutes.
Result: published as 86.6 mean average precision for ResNet-50 trained on ImageNet
(arXiv:2105.04906, table 2); not yet reproduced here.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "svm"
    c.data = dict(name="voc", split="trainval", test_split="test")
    c.data.update(image_size=224, shorter_side=256)
    return c
