"""Pictures of a finished run for its report: features, thumbnails, pairs of views."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vicreg_jax import devices, loading
from vicreg_jax.data import batches, plan, sources, views
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.evaluate import encode
from vicreg_jax.evaluate.inputs import balanced
from vicreg_jax.report import Gallery

IMAGES, PAIRS, SIDE = 600, 6, 64  # side of a thumbnail of a file, in pixels


def gallery(run: Path) -> Gallery:
    """Returns what the newest encoder of a run makes of some of its images.

    Test images where there are any, else training images; the views are those of the
    training's augmentation.

    Raises:
      FileNotFoundError: there is no run, or it has saved nothing yet.
      ValueError: its data cannot be read.
    """
    devices.mesh()
    encoder = loading.load(run)
    config, data = encoder.config, encoder.config.data
    if data.name == "fake":
        raise ValueError(
            f"the images of {run} were fake, or a source of its user's; `report.write`"
            " from Python makes the page without pictures"
        )
    splits = sources.load(data, seed=config.seed)
    images, labels = splits.test or splits.train
    n = len(images)
    groups = np.zeros(n, int) if labels is None else np.asarray(labels)
    rows = balanced(groups, min(1.0, IMAGES / n), config.seed, purpose=7)
    if isinstance(images, Encoded):
        channels = len(data.mean)
        where = dict(size=SIDE, shorter=SIDE, channels=channels)
        thumbnails = images.centres(rows, **where)
    else:
        thumbnails = images[rows]
    few = min(PAIRS, len(splits.train.images))
    some = replace(config, data=replace(data, batch_size=few))
    planner = plan.Planner(
        seed=config.seed,
        examples=len(splits.train.images),
        batch_size=few,
        views=2,
        numbers=views.NUMBERS,
    )
    train = splits.train.images
    batch = batches.batch(planner, train, some, 0, rows=slice(None))
    held = batches.is_small(train)
    everything = (train.reshape(len(train), -1),) if held else ()
    shape = train.shape[1:] if held else ()
    pair = batches.render((*everything, *batch), config=some, shape=shape)
    seen = np.asarray(pair) * data.std + data.mean
    return Gallery(
        features=encode(encoder, images, rows=rows),
        thumbnails=thumbnails,
        labels=None if labels is None else groups[rows],
        classes=getattr(images, "classes", ()),
        views=np.round(255 * seen.clip(0, 1)).astype(np.uint8),
    )
