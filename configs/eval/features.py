"""Writes the representations, and of a run of ours the embeddings, of all images.

python -m vicreg_jax.main --config=configs/eval/features.py --config.checkpoint=RUN

RUN/eval/features/features/train/part-00000.npz and so on (65,536 images each) hold
`representations`, `embeddings`, `labels` and `names`; those of test images are beside
them. diagnostics.json has RankMe, alpha-ReQ, LiDAR, the spectrum and more of the
training images.

Cost: one pass over the images and 10,000 augmented views; the same command goes on.
Result: files.
"""

import ml_collections


def get_config():
    c = ml_collections.ConfigDict()
    c.task = "features"
    return c
