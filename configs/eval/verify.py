"""Checks published weights: the k-NN accuracy of the authors' ResNet-50 on ImageNet.

python -m vicreg_jax.main --config=configs/eval/verify.py \
    --config.checkpoint=resnet50.pth --config.data.path=IMAGENET/train \
    --config.data.test_path=IMAGENET/val

with the authors' file from dl.fbaipublicfiles.com/vicreg/resnet50.pth. For their larger
encoders there is no published k-NN accuracy.

Cost: one pass over ImageNet; 10 GB of features.
Result: published as 64.5 % with 20 and 62.8 % with 200 neighbours (arXiv:2105.04906,
table 11). The paper gives no temperature; ours is 0.07. Not yet run here.
"""

from configs.eval import knn


def get_config():
    c = knn.get_config()
    c.data = dict(name="folder", image_size=224, shorter_side=256)
    c.knn.neighbours = (20, 200)
    return c
