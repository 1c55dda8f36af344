"""A folder of image files as a source; it never decodes one."""

import errno
import json
import os
import re
from collections import Counter, deque

import numpy as np

from vicreg_jax import files
from vicreg_jax.data.decoding import formats
from vicreg_jax.data.image_files import ImageFiles, digests
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.sources.tfrecord import readers
from vicreg_jax.refusals import NotFound, Refusal, Unusable

__all__ = ["ENDINGS", "open_folder"]

# Of the formats that `decoding.formats` may name.
ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe", ".jfif"),
    "PNG": (".png", ".apng"),
    "WEBP": (".webp",),
    "BMP": (".bmp",),
    "PPM": (".ppm", ".pgm", ".pbm", ".pnm"),
    "TIFF": (".tif", ".tiff"),
    "GIF": (".gif",),
    "AVIF": (".avif",),
}


# What splits are named, some with a number or a word: val, test-images, train2017.
SPLIT = re.compile(
    "(train|training|train[-_]?val|val|valid|validation|dev|test|testing|eval"
    "|evaluation|unlabell?ed)([-_ ]?(set|split|data|images?|[0-9]+))?",
    re.IGNORECASE,
)


def open_folder(
    root: str | os.PathLike,
    *,
    threads: int | None = None,
    cache: IndexCache | None = None,
) -> ImageFiles:
    """Returns the images of a folder.

    What is hidden, no regular file or of another ending is skipped and counted. Links
    to folders are followed, but each folder is read once, where it really lies if that
    is below `root`.

    Args:
      root: class folders of images (`root/CLASS/**`, classes in alphabetic order, as
        torchvision's ImageFolder has them); or images without classes, which it is too
        if some lie beside the folders. Perhaps in a bucket, gs://...: one request
        lists 1,000 files.
      threads: see `ImageFiles`; in a bucket 32 at least by default.
      cache: where the list of a bucket's files is kept: images that are added to it
        later are not seen by who has begun before.

    Raises:
      NotFound: there is no such folder.
      Unusable: a folder in it cannot be read.
      Refusal: it holds no images, or splits instead of classes.
    """
    root = files.expanded(root)
    in_bucket = files.in_bucket(root)  # where a folder is what is below it
    if not in_bucket and not root.is_dir():
        raise NotFound(f"data.path: there is no folder {str(root)!r}")
    try:
        endings = tuple(x for name in formats() for x in ENDINGS[name])
        if in_bucket:
            cache, key = cache or IndexCache(), ["folder", str(root), endings]
            kept = cache.arrays(key, lambda: _packed(_listing_of_bucket(*key[1:])))
            paths, classes, skipped = json.loads(kept["listing"].tobytes())
        else:
            paths, classes, skipped = _listing(str(root), endings)
    except Refusal:
        raise
    except OSError as error:
        raise Unusable(f"data.path: {error.filename}: {error.strerror}") from error
    if not paths:
        held = ", ".join(f"{count} {what}" for what, count in skipped.items())
        raise Refusal(
            f"data.path: no images below {root}{held and f' ({held})'}; expected files"
            f" ending in {', '.join(endings)}"
        )
    start = len(os.path.join(root, ""))
    _refuse_splits(root, {os.path.dirname(path[start:]) for path in paths} - {""})
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
        lambda i: files.read(paths[i]),
        paths,
        labels=labels,
        classes=[] if labels is None else classes,
        threads=threads or readers(root),
        skipped=skipped,
        known=lambda: digests(paths, str(root)),
        paths=None if in_bucket else paths,
    )


def _leads(kind):
    """Tells whether an entry is of a kind, such as entry.is_dir, and leads to it."""
    try:
        return kind()
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
        return False  # links that lead to each other


def _refuse_splits(root, folders):
    """Refuses a folder of splits with class folders, as IMAGENET for IMAGENET/train.

    Or a folder that holds nothing else. A class may be named like a split.

    Args:
      folders: below root, that hold images.
    """
    parts = [folder.split(os.sep) for folder in folders]
    while parts:
        tops = {first for first, *_ in parts}
        splits = sorted(filter(SPLIT.fullmatch, tops))
        deep = any(rest and first in splits for first, *rest in parts)
        if deep and (len(splits) > 1 or len(splits) == len(tops)):
            train = [name for name in splits if name.lower().startswith("train")]
            likely = os.path.join(root, (train or splits)[0])
            raise Refusal(
                f"data.path: {root} holds splits, not classes: {', '.join(splits)}; did"
                f" you mean {likely}?"
            )
        if len(tops) > 1:
            return
        root = os.path.join(root, *tops)
        parts = [rest for _, *rest in parts if rest]


def _packed(listing):
    return {"listing": np.frombuffer(json.dumps(listing).encode(), np.uint8)}


def _listing_of_bucket(root, endings):
    """Returns what `_listing` does."""
    paths, classes, skipped = [], set(), Counter()
    for path in map(str, files.Place(root).files()):
        parts = path[len(root) + 1 :].split("/")
        hidden = [part.startswith(".") for part in parts]
        if not hidden[0]:
            classes |= set(parts[:-1][:1])
        if any(hidden):
            skipped["hidden"] += 1
        elif not path.lower().endswith(endings):
            skipped[_ending(path)] += 1
        else:
            paths.append(path)
    return paths, sorted(classes), dict(skipped)


def _ending(name):
    """Returns the ending of a file that is no image, for the count."""
    ending = os.path.splitext(name)[1].lower()
    usual = re.fullmatch(r"\.[a-z][a-z0-9]{0,7}", ending)
    return ending if usual else "of another ending"


def _listing(root, endings):
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
                elif _leads(entry.is_dir):
                    (links if entry.is_symlink() else waiting).append(entry.path)
                    classes += [entry.name] if folder == root else []
                elif not entry.name.lower().endswith(endings):
                    skipped[_ending(entry.name)] += 1
                elif not _leads(entry.is_file):
                    skipped["no regular file"] += 1
                else:
                    paths.append(entry.path)
    return sorted(paths), classes, dict(skipped)
