"""From the names in a config to sources; it reads no image itself."""

import os

from vicreg_jax import files
from vicreg_jax.config import Data
from vicreg_jax.data import held_out
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.data.sources.arrays import open_arrays
from vicreg_jax.data.sources.digits import load_digits
from vicreg_jax.data.sources.fake import Noise
from vicreg_jax.data.sources.folder import open_folder
from vicreg_jax.data.sources.huggingface import open_huggingface
from vicreg_jax.data.sources.prepared import open_prepared
from vicreg_jax.data.sources.tfds import open_tfds
from vicreg_jax.data.sources.tfrecord import open_tfrecords
from vicreg_jax.refusals import Refusal

__all__ = ["load_splits"]

FILES = ("folder", "prepared", "tfrecord", "huggingface")
# What is read from a bucket; ArrayRecord and tfds know Google's alone.
BY_ITSELF = {
    "gs": ("prepared", "tfrecord", "folder", "tfds"),
    "s3": ("tfrecord", "folder"),
}


def load_splits(
    data: Data,
    *,
    seed: int,
    test_path: str = "",
    test_split: str = "",
    cache: IndexCache | None = None,
) -> Splits:
    """Returns the splits that `config.data` names.

    With data.held_out its training images are fewer, and the others the test images
    where no other ones are given: test images of the data's own stay unseen.

    Args:
      seed: of the run, by which images are held out and fake ones made.
      test_path: where the test images are that lie apart: of a folder, of prepared
        images, of TFRecords.
      test_split: of huggingface; of tfds, see `open_tfds`.
      cache: where what takes long to find out is kept.

    Raises:
      Refusal: there is no such data, it is in a bucket and should not be, or the
        classes of the test images are others; see `held_out.split`, too.
    """
    splits = _opened(data, seed, test_path, test_split, cache)
    if not data.held_out:
        return splits
    train, rest = held_out.split(splits.train, data.held_out, seed)
    return Splits(train, splits.test if test_path or test_split else rest)


def _opened(data, seed, test_path, test_split, cache):
    for bucket, names in BY_ITSELF.items():
        if files.kind(data.path) == bucket and data.name not in names:
            raise Refusal(
                f"{data.path}: data.name={data.name} is not read from {bucket}://, as"
                f" are {', '.join(names)}; mount the bucket, or copy the images"
            )
    if data.name == "digits":
        return load_digits(validation=data.validation)
    if data.name == "arrays":
        return open_arrays(data.path)
    if data.name in FILES:
        train = _files(data.name, data.path, data.split, cache)
        if not (test_path or test_split):
            return Splits(train, None)
        where = test_path or data.path, test_split or data.split
        test = _files(data.name, *where, cache)
        if list(test.classes) != list(train.classes):
            different = sorted({*test.classes} ^ {*train.classes})[:3]
            found = zip(
                (test_path or test_split, data.path), (test, train), strict=True
            )
            said = [f"{path} has {_classes(images)}" for path, images in found]
            raise Refusal(
                f"{', '.join(said)}; expected the same (not in both:"
                f" {', '.join(different)})"
            )
        return Splits(train, test)
    if data.name == "tfds":
        return open_tfds(
            data.dataset,
            split=data.split,
            data_dir=data.path,
            test_split=test_split,
            cache=cache,
        )
    noise = Noise(
        examples=10 * data.batch_size,
        image_size=data.image_size,
        channels=len(data.mean),
        seed=seed,
    )
    return Splits(Arrays(noise), None)


def _files(name, path, split, cache):
    if name == "huggingface":
        return open_huggingface(path, split=split)
    if name == "prepared":
        return open_prepared(path)
    return {"folder": open_folder, "tfrecord": open_tfrecords}[name](path, cache=cache)


def _classes(images):
    """Returns how many classes there are, and which image lies beside their folders."""
    found = f"{len(images.classes)} classes"
    if images.labels is None and len(images.names) > 1:
        first = min(images.names, key=lambda name: name.count(os.sep))
        found += f" ({first} lies in no class folder)"
    return found
