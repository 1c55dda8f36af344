"""Where examples come from; no randomness, no augmentation.

A source of training images is anything with a length that an integer array indexes:
`source[indices]` -> uint8 [b, h, w, c]. A NumPy array or memory map is one.
"""

import os
import zlib
from typing import NamedTuple
from zipfile import BadZipFile

import numpy as np

from vicreg_jax import files
from vicreg_jax.config import Data
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.data.folder import folder
from vicreg_jax.data.records import Labels, from_tfds, tfrecords
from vicreg_jax.data.shards import shards

# Sources of image files, each a function of a path.
FILES = {"folder": folder, "prepared": shards, "tfrecord": tfrecords}
LOCAL = ("arrays", "folder")  # are read from a disk alone


class Noise:
    """Random images for trying a configuration or measuring speed without data.

    As many as asked for, of a few that repeat.
    """

    DIFFERENT = 256

    def __init__(self, *, examples: int, image_size: int, channels: int, seed: int):
        count = 2**28 // (image_size**2 * channels)  # 256 MB at most
        shape = (
            max(1, min(examples, self.DIFFERENT, count)),
            *(image_size, image_size, channels),
        )
        self._images = np.random.default_rng(seed).integers(0, 256, shape, np.uint8)
        self._examples = examples

    def __len__(self) -> int:
        return self._examples

    def __getitem__(self, indices: np.ndarray) -> np.ndarray:
        return self._images[indices % len(self._images)]


class Examples(NamedTuple):
    images: np.ndarray | Noise | Encoded  # uint8 [n, h, w, c], or of any sizes
    labels: np.ndarray | Labels | None  # int [n]


class Splits(NamedTuple):
    """Training split, and a test split where there is one."""

    train: Examples
    test: Examples | None


def digits(*, validation: bool = False) -> Splits:
    """Returns scikit-learn's handwritten digits: 1,797 grey images, 8 x 8, 10 classes.

    Bundled real data, no download: 1,437 for training and 360 for the test, drawn once
    for all. With `validation`, for choosing hyperparameters: the training split
    without its first 360 images, and those 360 in place of the test split.

    Raises:
      ModuleNotFoundError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "the digits come with scikit-learn, which is not installed; run:"
            ' pip install "vicreg_jax[demo]"'
        ) from error
    data = load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    order = np.argsort(np.random.Philox(key=0).random_raw(len(images)), kind="stable")
    test, train = order[:360], order[360:]
    if validation:
        test, train = train[:360], train[360:]
    return Splits(
        Examples(images[train], data.target[train]),
        Examples(images[test], data.target[test]),
    )


def arrays(path: str) -> Splits:
    """Returns the arrays of an .npz file.

    The file holds `images`, uint8 [n, h, w] or [n, h, w, c], optionally `labels`, int
    [n], and optionally `test_images` and `test_labels`.

    Raises:
      FileNotFoundError: there is no such file.
      ValueError: it is no .npz file, lacks `images`, or has other shapes or types.
    """
    if not os.path.isfile(path):
        raise FileNotFoundError(f"data.path: there is no file {path!r}")
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            held = {name: file[name] for name in file.files}
    except (ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
        raise ValueError(f"{path} is not a readable .npz file: {error}") from error
    if "images" not in held:
        raise ValueError(
            f"{path} holds {', '.join(held) or 'nothing'}; expected an array 'images'"
        )
    train = _examples(path, held["images"], held.get("labels"))
    if "test_images" not in held:
        return Splits(train, None)
    return Splits(train, _examples(path, held["test_images"], held.get("test_labels")))


def load(data: Data, *, seed: int, test_path: str = "", test_split: str = "") -> Splits:
    """Returns the splits that `config.data` names.

    Args:
      seed: of fake images.
      test_path: where the test images are that lie apart: of a folder, of prepared
        images, of TFRecords.
      test_split: of tfds; see `from_tfds`.

    Raises:
      ValueError: there is no such data, it is in a bucket and should not be, or the
        classes of the test images are others.
    """
    for path in (data.path, test_path) if data.name in LOCAL else ():
        if files.in_bucket(path):
            raise ValueError(
                f"{path}: data.name={data.name} is read from a disk; from a bucket are"
                " read prepared (see the task prepare), tfrecord and tfds"
            )
    if data.name == "digits":
        return digits(validation=data.validation)
    if data.name == "arrays":
        return arrays(data.path)
    if data.name in FILES:
        images = FILES[data.name](data.path)
        train = Examples(images, images.labels)
        if not test_path:
            return Splits(train, None)
        others = FILES[data.name](test_path)
        if list(others.classes) != list(images.classes):
            different = sorted({*others.classes} ^ {*images.classes})[:3]
            raise ValueError(
                f"{test_path} has {len(others.classes)} classes, {data.path} has"
                f" {len(images.classes)}; expected the same (not in both:"
                f" {', '.join(different)})"
            )
        return Splits(train, Examples(others, others.labels))
    if data.name == "tfds":
        where = dict(data_dir=data.path, test_split=test_split)
        found = from_tfds(data.dataset, split=data.split, **where)
        train, test = ([Examples(*part) for part in found] + [None])[:2]
        return Splits(train, test)
    noise = Noise(
        examples=10 * data.batch_size,
        image_size=data.image_size,
        channels=len(data.mean),
        seed=seed,
    )
    return Splits(Examples(noise, None), None)


def count_classes(examples: Examples) -> int:
    """Returns how many classes the labels have, the empty ones of a folder too."""
    if isinstance(examples.images, Encoded) and len(examples.images.classes):
        return len(examples.images.classes)
    return int(np.asarray(examples.labels).max()) + 1


def _examples(path, images, labels):
    if images.ndim == 3:
        images = images[..., None]
    if images.ndim != 4 or images.dtype != np.uint8 or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"{path}: expected images of uint8 [n, h, w] or [n, h, w, 1 or 3]; got"
            f" {images.dtype} {images.shape}"
        )
    if not len(images):
        raise ValueError(f"{path}: there are no images in it, shape {images.shape}")
    if labels is not None and (
        labels.shape != images.shape[:1] or not np.issubdtype(labels.dtype, np.integer)
    ):
        raise ValueError(
            f"{path}: expected labels of int [{len(images)}]; got {labels.dtype}"
            f" {labels.shape}"
        )
    return Examples(images, labels)
