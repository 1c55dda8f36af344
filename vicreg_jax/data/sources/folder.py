"""A folder of image files as a source; it never decodes one."""

import os
from collections import Counter, deque

import numpy as np

from vicreg_jax import files
from vicreg_jax.data.image_files import ImageFiles, digests, read_file
from vicreg_jax.refusals import NotFound, Refusal, Unusable

__all__ = ["ENDINGS", "open_folder"]

# Of the formats that `image_files.FORMATS` names.
ENDINGS = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp")
ENDINGS += (".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".gif")


def open_folder(root: str | os.PathLike, *, threads: int | None = None) -> ImageFiles:
    """Returns the images of a folder.

    What is hidden or no regular file is skipped. Links to folders are followed, but
    each folder is read once, where it really lies if that is below `root`.

    Args:
      root: class folders of images (`root/CLASS/**`, classes in alphabetic order, as
        torchvision's ImageFolder has them); or images without classes, which it is too
        if some lie beside the folders.
      threads: see `ImageFiles`.

    Raises:
      NotFound: there is no such folder.
      Unusable: a folder in it cannot be read.
      Refusal: it holds no images.
    """
    root = files.expanded(root)
    if not root.is_dir():
        raise NotFound(f"data.path: there is no folder {str(root)!r}")
    try:
        paths, classes, skipped = _listing(str(root))
    except OSError as error:
        raise Unusable(f"data.path: {error.filename}: {error.strerror}") from error
    if not paths:
        raise Refusal(
            f"data.path: no images below {root}; expected files ending in"
            f" {', '.join(ENDINGS)}"
        )
    start = len(os.path.join(root, ""))
    tops = [path[start:].partition(os.sep)[::2] for path in paths]
    labels = None
    if all(rest for _, rest in tops):  # none lies beside the folders
        number = {name: i for i, name in enumerate(classes)}
        pairs = sorted(
            (number[top], path) for (top, _), path in zip(tops, paths, strict=True)
        )
        labels, paths = np.array([x for x, _ in pairs]), [path for _, path in pairs]
        empty = len(classes) - len(np.unique(labels))
        skipped |= {"class folder without images": empty} if empty else {}
    return ImageFiles(
        lambda i: read_file(paths[i]),
        paths,
        labels=labels,
        classes=[] if labels is None else classes,
        threads=threads,
        skipped=skipped,
        known=lambda: digests(paths, str(root)),
    )


def _listing(root):
    """Returns sorted paths, the names of the folders in root, and what was skipped."""
    paths, classes, skipped = [], [], Counter()
    waiting, links, seen = deque([root]), [], set()
    while waiting or links:
        # Links come last, so that what they lead to has been seen at its own place.
        folder = waiting.popleft() if waiting else links.pop(0)
        info = os.stat(folder)
        if (info.st_dev, info.st_ino) in seen:
            skipped["folder that is read elsewhere"] += 1
            continue
        seen.add((info.st_dev, info.st_ino))
        with os.scandir(folder) as entries:
            for entry in sorted(entries, key=lambda entry: entry.name):
                if entry.name.startswith("."):
                    skipped["hidden"] += 1
                elif entry.is_dir():
                    (links if entry.is_symlink() else waiting).append(entry.path)
                    classes += [entry.name] if folder == root else []
                elif not entry.name.lower().endswith(ENDINGS):
                    skipped["of another ending"] += 1
                elif not entry.is_file():
                    skipped["no regular file"] += 1
                else:
                    paths.append(entry.path)
    return sorted(paths), classes, dict(skipped)
