"""Training images held out by the seed; it never reads a pixel."""

import numpy as np

from vicreg_jax import files
from vicreg_jax.data import plan
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.source import Arrays, Source, Splits
from vicreg_jax.refusals import Refusal

__all__ = ["LEAST", "split"]

LEAST = 16  # images; fewer tell nothing


def split(source: Source, share: float, seed: int) -> Splits:
    """Returns a source without a share of its images, and those as the test split.

    A pure function of the seed and the number of images; but a class that would be held
    out whole is trained on, where labels are known at once.

    Raises:
      Refusal: that is fewer than 16 images, or they come one after the other.
    """
    if not isinstance(source, Arrays | ImageFiles):
        raise Refusal(
            f"config.data.held_out={share:g} needs images with numbers; a"
            f" {type(source).__name__} gives them as they come"
        )
    count = round(share * len(source))
    if count < LEAST:
        raise Refusal(
            f"config.data.held_out={share:g} of {len(source):,} images are {count};"
            f" expected {LEAST} or more. Hold out more of them, or none"
        )
    order = plan.shuffled("held_out_of_run", len(source), seed=seed)
    out, kept = order[:count], order[count:]
    if isinstance(source.labels, np.ndarray):
        lost = np.setdiff1d(source.labels[out], source.labels[kept])
        whole = np.isin(source.labels[out], lost)
        out, kept = out[~whole], np.concatenate([kept, out[whole]])
    return Splits(_part(source, kept, "held out"), _part(source, out, "trained on"))


def _part(source, rows, others):
    rows, labels = np.sort(rows), source.labels
    left = {others: len(source) - len(rows)}
    if isinstance(source, Arrays):
        own = labels if labels is None else labels[rows]
        part = Arrays(source.images[rows], own, classes=source.classes)
        part.skipped = {**source.skipped, **left}
        return part
    lazy = labels is not None and not isinstance(labels, np.ndarray)
    return ImageFiles(
        lambda i: source.read(int(rows[i])),
        [source.names[i] for i in rows.tolist()],
        labels=labels[rows] if labels is not None and not lazy else None,
        read_label=(lambda i: labels[int(rows[i])]) if lazy else None,
        classes=source.classes,
        threads=source.threads,
        skipped={**source.skipped, **left},
        known=lambda: {**source.fingerprint(), "part": files.digest(rows.tobytes())},
        paths=source.paths and [source.paths[i] for i in rows.tolist()],
    )
