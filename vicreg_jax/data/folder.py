"""A folder of image files as a source; it never decodes one."""

import os
from pathlib import Path

import numpy as np

from vicreg_jax.data.encoded import Encoded

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")


def folder(root: str | os.PathLike, *, threads: int | None = None) -> Encoded:
    """Returns the images of a folder.

    Args:
      root: class folders of images (`root/CLASS/**`, classes in alphabetic order, as
        torchvision's ImageFolder has them); or images without classes, which it is too
        if some lie beside the folders.
      threads: see `Encoded`.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it holds no images.
    """
    root = Path(root)
    if not root.is_dir():
        raise FileNotFoundError(f"data.path: there is no folder {str(root)!r}")
    paths, labels, classes = _listing(root)
    if not paths:
        raise ValueError(
            f"data.path: no images below {root}; expected files ending in"
            f" {', '.join(ENDINGS)}"
        )
    return Encoded(
        lambda i: Path(paths[i]).read_bytes(),
        paths,
        labels=labels,
        classes=classes,
        threads=threads,
    )


def _listing(root):
    """Returns paths, labels (None without class folders) and class names."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = _images(root / name)
        paths += found
        labels += [label] * len(found)
    everything = _images(root)
    if len(paths) < len(everything):
        return everything, None, []
    return paths, np.array(labels), classes


def _images(folder):
    found = [
        os.path.join(parent, name)
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS)
    ]
    return sorted(found)
