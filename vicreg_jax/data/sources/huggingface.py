"""Data sets of Hugging Face's `datasets` as a source: encoded images by position."""

import os
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np

from vicreg_jax import files
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.sources.tfrecord import Names
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line, require

__all__ = ["is_dataset", "of_dataset", "open_huggingface"]

SAVED = ("dataset_info.json", "dataset_dict.json")  # what save_to_disk leaves
SOME = 256  # images that tell a data set from others


def is_dataset(given: Any) -> bool:
    """Tells whether something is a data set of `datasets` that has positions."""
    return all(hasattr(given, x) for x in ("features", "cast_column", "__getitem__"))


def open_huggingface(path: str | os.PathLike, *, split: str = "train") -> ImageFiles:
    """Returns the images of a data set on a disk; nothing is downloaded.

    Args:
      path: the folder that save_to_disk wrote, or Parquet files, such as
        DIR/train-*.parquet, with a column of images as the Hub has them. (Parquet is
        copied once to the cache of `datasets`.)
      split: of a folder with several.

    Raises:
      NotFound: there is no such file or folder.
      NotInstalled: `datasets` is not installed.
      Refusal: it is no such data set, or see `of_dataset`.
    """
    datasets = _datasets()
    root = files.expanded(path)
    saved = any((root / name).is_file() for name in SAVED)
    found = [] if saved else files.matching(str(path))
    if not (saved or found):
        raise NotFound(
            f"data.path: {path} is no folder of save_to_disk, and no file matches;"
            " expected one, or Parquet files such as DIR/train-*.parquet"
        )
    try:
        if saved:
            data = datasets.load_from_disk(str(root))
        else:
            data = datasets.Dataset.from_parquet(found)
    except Exception as error:  # Arrow's, Python's, its own
        raise Unusable(
            f"data.path: {path} cannot be read: {one_line(error)}"
        ) from error
    if isinstance(data, dict):
        if split not in data:
            raise Refusal(
                f"{path} has no split {split!r}, but {', '.join(data)}; give one by"
                " config.data.split"
            )
        data = data[split]
    return of_dataset(data)


def of_dataset(data: Any) -> ImageFiles:
    """Returns the images of a `datasets.Dataset`, by position as they are stored.

    They are those of its column of images, if it has several of "image"; labels are
    those of its ClassLabel, or of integers in a column "label".

    Raises:
      NotInstalled: `datasets` is not installed.
      Refusal: there is no such column, more than one, or no row.
    """
    datasets = _datasets()
    kinds = {name: type(kind).__name__ for name, kind in data.features.items()}
    column = _one_of([x for x in kinds if kinds[x] == "Image"], "image", kinds)
    if not len(data):
        raise Refusal(f"the data set has no row; its columns are {_words(kinds)}")
    stored = data.select_columns([column])
    stored = stored.cast_column(column, datasets.Image(decode=False))
    stored = stored.with_format(None)

    def read(index):
        held = stored[int(index)][column]
        if held is None:
            raise Unusable("the row has no image")
        return held["bytes"] or files.read(held["path"])

    def some(index):
        with suppress(Unusable, NotFound):  # which reading it will note
            return read(index)
        return b""

    labels, classes = _labels(data, kinds)
    count = len(data)

    def known():
        rows = np.linspace(0, count - 1, min(count, SOME)).astype(int).tolist()
        return {"rows": files.digest(str(count).encode(), *map(some, rows))}

    names = Names(lambda i: f"row {i}", count)
    return ImageFiles(read, names, labels=labels, classes=classes, known=known)


def _labels(data, kinds) -> tuple[np.ndarray | None, Sequence[str]]:
    """Returns the labels, -1 where a row has none, and the names of classes."""
    named = [name for name in kinds if kinds[name] == "ClassLabel"]
    if not named and getattr(data.features.get("label"), "dtype", "")[:3] == "int":
        named = ["label"]
    if not named:
        return None, ()
    column = _one_of(named, "label", kinds)
    values = data.select_columns([column]).with_format(None)[:][column]
    labels = np.array([-1 if x is None else x for x in values], np.int64)
    return labels, tuple(getattr(data.features[column], "names", ()))


def _one_of(names, usual, kinds):
    """Returns the one column, or that of the usual name."""
    if len(names) != 1 and usual not in names:
        raise Refusal(
            f"expected one column of {usual}s, or one named {usual!r}; the data set has"
            f" {_words(kinds)}; select or rename: rename_column(NAME, {usual!r})"
        )
    return usual if len(names) != 1 else names[0]


def _words(kinds):
    return ", ".join(f"{name} ({kind})" for name, kind in kinds.items())


def _datasets():
    purpose = "reading data sets of Hugging Face"
    return require("datasets", purpose, install="vicreg_jax[huggingface]")
