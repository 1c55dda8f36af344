"""Prepares images for fast reading: a data set as ArrayRecord files, with checksums.

python -m vicreg_jax.main --config=configs/prepare.py --config.data.path=IMAGES \
    --workdir=PREPARED

then trains on it by --config.data.name=prepared --config.data.path=PREPARED. Images may
also come from tfds or TFRecords (data.name). With prepare.shorter_side=320 larger ones
shrink: they decode faster and take less room, but small crops show fewer details.

Cost: one pass over the files; stopped, the same command goes on.
Result: PREPARED, of about the size of the images.
"""

from configs import imagenet


def get_config():
    c = imagenet.get_config()
    c.task = "prepare"
    c.data.dataset = ""
    return c
