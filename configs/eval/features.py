"""Writes the representations, and of a run of ours the embeddings, of all images.

python -m vicreg_jax.main --config=configs/eval/features.py --config.checkpoint=RUN

RUN/eval/features/features/train/part-00000.npz and so on (65,536 images each) hold
`representations`, `embeddings`, `labels` and `names`; those of test images are beside
them. diagnostics.json has RankMe, alpha-ReQ, LiDAR, the spectrum and more of the
training images.

Cost: one pass over the images and 10,000 augmented views; the same command goes on.
Result: files.
"""

from configs.eval import knn


def get_config():
    c = knn.get_config()
    c.task = "features"
    del c.knn
    c.lidar = dict(images=1000, views=10)
    return c
