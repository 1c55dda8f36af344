"""Where images come from; no randomness, no augmentation."""

from pathlib import Path

import numpy as np

from vicreg_jax import files
from vicreg_jax.config import Data
from vicreg_jax.data import plan
from vicreg_jax.data.folder import open_folder
from vicreg_jax.data.records import open_tfds, open_tfrecords
from vicreg_jax.data.shards import open_prepared
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.refusals import NotFound, Refusal, Unusable, one_line, require

# Sources of image files, each a function of a path.
FILES = {"folder": open_folder, "prepared": open_prepared, "tfrecord": open_tfrecords}
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


def load_digits(*, validation: bool = False) -> Splits:
    """Returns scikit-learn's handwritten digits: 1,797 grey images, 8 x 8, 10 classes.

    Bundled real data, no download: 1,437 for training and 360 for the test, drawn once
    for all. With `validation`, for choosing hyperparameters: the training split
    without its first 360 images, and those 360 in place of the test split.

    Raises:
      NotInstalled: scikit-learn is not installed.
    """
    datasets = require(
        "sklearn.datasets", "data.name=digits", install="vicreg_jax[demo]"
    )
    data = datasets.load_digits()
    images = np.round(data.images * (255 / 16)).astype(np.uint8)[..., None]
    order = plan.permutation(0, 0, len(images))
    test, train = order[:360], order[360:]
    if validation:
        test, train = train[:360], train[360:]
    return Splits(
        Arrays(images[train], data.target[train]),
        Arrays(images[test], data.target[test]),
    )


def open_arrays(path: str) -> Splits:
    """Returns the arrays of an .npz file.

    The file holds `images`, uint8 [n, h, w] or [n, h, w, c], optionally `labels`, int
    [n], and optionally `test_images` and `test_labels`.

    Raises:
      NotFound: there is no such file.
      Unusable: it is no .npz file.
      Refusal: it lacks `images`, or has other shapes or types.
    """
    path = Path(path).expanduser()
    if not path.is_file():
        raise NotFound(f"data.path: there is no file {str(path)!r}")
    try:
        with open(path, "rb") as raw, np.lib.npyio.NpzFile(raw) as file:
            held = {name: file[name] for name in file.files}
    except Exception as error:  # whatever a damaged file makes zipfile or NumPy raise
        raise Unusable(
            f"{path} is not a readable .npz file: {one_line(error)}"
        ) from error
    if "images" not in held:
        raise Refusal(
            f"{path} holds {', '.join(held) or 'nothing'}; expected an array 'images'"
        )
    train = _arrays(path, held["images"], held.get("labels"))
    if "test_images" not in held:
        return Splits(train, None)
    return Splits(train, _arrays(path, held["test_images"], held.get("test_labels")))


def _arrays(path, images, labels):
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[-1] not in (1, 3):
        raise Refusal(
            f"{path}: expected images of uint8 [n, h, w] or [n, h, w, 1 or 3]; got"
            f" {images.dtype} {images.shape}"
        )
    try:
        return Arrays(images, labels)
    except Refusal as error:
        raise Refusal(f"{path}: {error}") from error


def load_splits(
    data: Data, *, seed: int, test_path: str = "", test_split: str = ""
) -> Splits:
    """Returns the splits that `config.data` names.

    Args:
      seed: of fake images.
      test_path: where the test images are that lie apart: of a folder, of prepared
        images, of TFRecords.
      test_split: of tfds; see `open_tfds`.

    Raises:
      Refusal: there is no such data, it is in a bucket and should not be, or the
        classes of the test images are others.
    """
    for path in (data.path, test_path) if data.name in LOCAL else ():
        if files.in_bucket(path):
            raise Refusal(
                f"{path}: data.name={data.name} is read from a disk; from a bucket are"
                " read prepared (see the task prepare), tfrecord and tfds"
            )
    if data.name == "digits":
        return load_digits(validation=data.validation)
    if data.name == "arrays":
        return open_arrays(data.path)
    if data.name in FILES:
        train = FILES[data.name](data.path)
        if not test_path:
            return Splits(train, None)
        test = FILES[data.name](test_path)
        if list(test.classes) != list(train.classes):
            different = sorted({*test.classes} ^ {*train.classes})[:3]
            raise Refusal(
                f"{test_path} has {len(test.classes)} classes, {data.path} has"
                f" {len(train.classes)}; expected the same (not in both:"
                f" {', '.join(different)})"
            )
        return Splits(train, test)
    if data.name == "tfds":
        return open_tfds(
            data.dataset, split=data.split, data_dir=data.path, test_split=test_split
        )
    noise = Noise(
        examples=10 * data.batch_size,
        image_size=data.image_size,
        channels=len(data.mean),
        seed=seed,
    )
    return Splits(Arrays(noise), None)
