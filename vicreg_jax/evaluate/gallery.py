"""Pictures of a finished run for its report: features, thumbnails, pairs of views."""

from dataclasses import replace
from pathlib import Path

import numpy as np

from vicreg_jax import devices
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.labels import known
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import encode
from vicreg_jax.evaluate.inputs import balanced
from vicreg_jax.refusals import Refusal
from vicreg_jax.report import Gallery
from vicreg_jax.weights import loading

__all__ = ["of_run"]

IMAGES, PAIRS, SIDE = 600, 6, 64  # side of a thumbnail of a file, in pixels


def of_run(run: Path) -> Gallery:
    """Returns what the newest encoder of a run makes of some of its images.

    Test images where there are any, else training images, with labels if some have
    them; the views are those of the
    training's augmentation.

    Raises:
      FileNotFoundError: there is no run, or it has saved nothing yet.
      Refusal: its data cannot be read.
    """
    devices.mesh()
    encoder = loading.load(run)
    config, data = encoder.config, encoder.config.data
    if data.name == "fake":
        raise Refusal(
            f"the images of {run} were fake, or a source of its user's; `report.write`"
            " from Python makes the page without pictures"
        )
    train, test = load_splits(data, seed=config.seed)
    images = train if test is None else test
    rows = known(images.labels)
    labelled = len(rows) > 0  # by which it also draws
    rows = rows if labelled else np.arange(len(images))
    labels = np.asarray(images.labels)[rows] if labelled else np.zeros(len(rows), int)
    share = min(1.0, IMAGES / len(rows))
    chosen = balanced(labels, share, config.seed, purpose="gallery")
    rows, labels = rows[chosen], labels[chosen]
    few = min(PAIRS, len(train))
    some = replace(config, data=replace(data, batch_size=few, views=2, local_views=0))
    planner = plan.Planner(
        seed=config.seed,
        examples=len(train),
        batch_size=few,
        views=2,
        numbers=draw.NUMBERS,
    )
    pairs = batches.Batches(train, some, sharding.data_mesh())
    batch = pairs.make(planner, 0, slice(None))
    seen = np.asarray(pairs.render(pairs.resident(), batch)) * data.std + data.mean
    return Gallery(
        features=encode(encoder, images, rows=rows),
        thumbnails=_shown(
            images.centres(rows, size=SIDE, shorter=SIDE, channels=len(data.mean))
        ),
        labels=labels if labelled else None,
        classes=images.classes,
        views=_shown(np.round(255 * seen.clip(0, 1)).astype(np.uint8)),
    )


def _shown(images):
    """Returns images as a page can show them: 8 bits, the first channels as RGB."""
    images = (images >> 8).astype(np.uint8) if images.dtype == np.uint16 else images
    return images[..., : 3 if images.shape[-1] >= 3 else 1]
