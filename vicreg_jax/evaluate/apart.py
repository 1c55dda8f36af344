"""Whether test images are training images, which every judge would find again."""

import functools
import os
import zlib

import numpy as np

from vicreg_jax import files
from vicreg_jax.data.source import Source
from vicreg_jax.refusals import Refusal

__all__ = ["check"]

SOME = 64  # images of a part that are looked at


def check(train: Source, test: Source, *, patterns: tuple[str, ...] = ()) -> None:
    """Raises Refusal where test images are training images.

    Of files that is where one is in both, whatever links lead to it, or as many images
    are there and some of them are the same; of arrays, where all of some test images
    are among the training images. Images that are all alike prove nothing.

    Args:
      patterns: of both parts' TFRecord files.
    """
    both = [set(map(os.path.realpath, files.matching(x))) for x in patterns]
    shared = min(set.intersection(*both), default="") if both else ""
    shared = shared or _shared_file(train, test)
    if shared or _same(train, test):
        raise Refusal(
            f"the test images are training images{shared and f', such as {shared}'};"
            " an evaluation would find them again. Give others: config.data.test_path"
            " (folders and files), test_split (tfds), test_images (arrays)"
        )


def _shared_file(train, test):
    """Returns a file that is in both, or ""."""
    if not (isinstance(train.names, list) and isinstance(test.names, list)):
        return ""  # names that are no paths, and perhaps have to be read
    real = functools.cache(os.path.realpath)

    def place(name):
        folder, file = os.path.split(name)
        return real(folder), file

    def some(names):  # that may be links themselves
        return {os.path.split(os.path.realpath(names[i])) for i in _some(names)}

    asked = {*map(place, test.names), *some(test.names)}
    found = asked & some(train.names)
    folders = {folder for folder, _ in asked}
    for name in train.names:
        if real(os.path.dirname(name)) in folders and place(name) in asked:
            return name
    return os.path.join(*found.pop()) if found else ""


def _same(train, test):
    chosen = _some(test)
    if train.array is not None and test.array is not None:
        asked = {_checksum(test.array[i]) for i in chosen}
        known = map(_checksum, train.array)
        return len(asked) > 1 and asked <= set(known)
    if len(train) != len(test) or train.names is None or test.names is None:
        return False
    seen = set()
    for i in chosen:
        try:
            held, image = train.read(i), test.read(i)
        except files.Unreachable:
            raise
        except Exception:  # of a damaged image, which is met again
            return False
        if held != image:
            return False
        seen.add(image)
    return len(seen) > 1


def _some(images):
    """Returns the numbers of up to 64 of them, spread evenly."""
    return sorted(set(np.linspace(0, len(images) - 1, SOME).astype(int).tolist()))


def _checksum(image):
    return zlib.crc32(np.ascontiguousarray(image))
