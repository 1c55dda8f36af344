"""Data sets of tfds, prepared by it or here; it decodes them as all other images."""

import json
import re

import numpy as np
from absl import logging

from vicreg_jax import files
from vicreg_jax.data.image_files import ImageFiles
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.source import IN_MEMORY, Arrays, Source, Splits
from vicreg_jax.data.sources.tfrecord import Names, Records, example_parser, readers
from vicreg_jax.refusals import Refusal, one_line, require

__all__ = ["open_tfds"]


def open_tfds(
    dataset: str,
    *,
    split: str,
    data_dir: str = "",
    test_split: str = "",
    cache: IndexCache | None = None,
) -> Splits:
    """Returns the images of a tfds data set, and those of its test split, if any.

    What has not been prepared yet is downloaded and prepared, as ArrayRecord files; a
    data set that has been prepared as TFRecord files is read as it is. Small images
    of one size come as `Arrays`, others as `ImageFiles`.

    Args:
      dataset: its name, if need be with /config and :version.
      split: such as "train" or "train[:90%]".
      data_dir: of tfds; by default its own.
      test_split: by default test or, without one, validation.
      cache: see `tfrecord.Records`.

    Raises:
      Refusal: there is no such data set or split, it has no images, or it cannot be
        prepared.
      NotInstalled: tfds is not installed.
    """
    builder = _builder(dataset, data_dir)
    _check_image(dataset, builder.info.features)
    shape = builder.info.features["image"].shape
    known = builder.info.splits
    length = _length(dataset, known, split, "split")
    if test_split:
        _length(dataset, known, test_split, "test_split")
        if _overlap(known[split], known[test_split]):
            raise Refusal(
                f"config.data.test_split {test_split!r} of {dataset} has examples of"
                f" the split {split!r}; an evaluation would find them again"
            )
    size = np.inf if None in shape else length * np.prod(shape, dtype=float)
    used = [part.partition("[")[0].strip() for part in split.split("+")]
    if len(set(used)) < len(used) or ("all" in used and len(used) > 1):
        raise Refusal(
            f"config.data.split {split!r} may name an example twice; name each split"
            " once"
        )
    free = () if "all" in used else ("test", "validation")
    test = test_split or next((x for x in free if x in known and x not in used), "")

    def opened(part: str) -> Source:
        if size > IN_MEMORY:
            return _on_disk(builder, part, cache)
        return _in_memory(builder, part, cache, channels=shape[-1])

    return Splits(opened(split), opened(test) if test else None)


def _length(dataset, known, split, field):
    """Returns how many examples a split has; refuses what there is not."""
    try:
        length = known[split].num_examples
    except Exception as error:  # tfds has several, some of several lines
        raise Refusal(
            f"config.data.{field} {split!r} is not of {dataset}, which has"
            f" {', '.join(known)}: {one_line(error)}"
        ) from error
    if not length:
        raise Refusal(f"config.data.{field} {split!r} of {dataset} is empty")
    return length


def _overlap(a, b):
    """Tells whether two splits share an example, as their parts of files say."""

    def spans(split):
        for part in split.file_instructions:
            count = part.examples_in_shard - part.skip if part.take < 0 else part.take
            yield str(part.filename), part.skip, part.skip + count

    return any(
        file == other and max(start, begin) < min(stop, end)
        for file, start, stop in spans(a)
        for other, begin, end in spans(b)
    )


def _check_image(dataset, features):
    """Raises Refusal without a feature of 8-bit images, grey or RGB."""
    import tensorflow_datasets as tfds

    if "image" not in features:
        raise Refusal(
            f"the tfds data set {dataset!r} has no feature 'image'; it has"
            f" {', '.join(features)}"
        )
    image = features["image"]
    good = isinstance(image, tfds.features.Image) and image.shape[-1] in (1, 3, None)
    if not good or image.np_dtype != np.uint8:
        raise Refusal(
            f"the feature 'image' of the tfds data set {dataset!r} is"
            f" {' '.join(repr(image).split())}; expected an Image of uint8 with 1 or 3"
            " channels"
        )


def _on_disk(builder, split, cache):
    """Returns images that stay encoded, and whose labels are read with them."""
    length, example, name = _examples(builder, split, cache)
    classes = _classes(builder)
    return ImageFiles(
        lambda i: example(i)[0],
        Names(name, length),
        read_label=(lambda i: int(example(i)[1])) if classes else None,
        classes=classes,
        threads=readers(builder.data_dir),
        known=lambda: {"data set": _digest(builder, split)},
    )


def _digest(builder, split):
    """Returns a digest of which data set it is, and of the sizes of its files."""
    info, known = builder.info, builder.info.splits[split]
    facts = [info.full_name, split, known.num_examples]
    facts += [[x.examples_in_shard, x.skip, x.take] for x in known.file_instructions]
    whole = [info.splits[name] for name in sorted(info.splits)]
    facts += [[x.name, x.num_bytes, list(x.shard_lengths or [])] for x in whole]
    return files.digest(json.dumps(facts).encode())


def _in_memory(builder, split, cache, *, channels):
    """Returns all images, decoded."""
    length, example, name = _examples(builder, split, cache)
    labels = np.zeros(length, int)

    def read(index):
        image, label = example(index)
        labels[index] = 0 if label is None else label
        return image

    images = ImageFiles(read, Names(name, length)).stack(channels=channels)
    return Arrays(images, labels if _classes(builder) else None)


def _classes(builder):
    """Returns the names of the labels, none where the data set has no such."""
    import tensorflow_datasets as tfds

    features = builder.info.features  # which is no dict
    label = features["label"] if "label" in features else None
    return label.names if isinstance(label, tfds.features.ClassLabel) else []


def _examples(builder, split, cache):
    """Returns the number of examples, index -> (bytes, label), and index -> name."""
    import tensorflow_datasets as tfds

    labelled = bool(_classes(builder))
    if builder.info.file_format.value == "tfrecord":
        where = builder.info.splits[split].file_instructions
        records = Records([(str(x.filename), x.skip, x.take) for x in where], cache)
        parse = example_parser()

        def example(index):
            found = parse(records[index])
            label = found["label"].int64_list.value[0] if labelled else None
            return found["image"].bytes_list.value[0], label

        return len(records), example, records.name
    decoders = {"image": tfds.decode.SkipDecoding()}
    source = builder.as_data_source(split, decoders=decoders)

    def example(index):
        found = source[index]
        return found["image"], found["label"] if labelled else None

    return len(source), example, lambda i: f"{builder.info.full_name} {split} {i}"


def _builder(dataset, data_dir):
    """Returns the tfds builder of a data set that is prepared."""
    purpose = "reading data sets of tfds"
    tfds = require("tensorflow_datasets", purpose, install="vicreg_jax[data]")
    where = dict(data_dir=files.folder(data_dir) if data_dir else None)
    level = logging.get_verbosity()
    logging.set_verbosity(logging.ERROR)  # it warns of what it does not find
    try:
        builder = tfds.builder(dataset, **where)
        if not builder.is_prepared():
            builder = tfds.builder(dataset, file_format="array_record", **where)
            builder.download_and_prepare()
    except Exception as error:  # whatever a download or a data set's own code raises
        reason = re.split("Available datasets:|Here are", str(error))[0]
        raise Refusal(
            f"tfds has no data set {dataset!r} ready and cannot prepare it:"
            f" {type(error).__name__}: {' '.join(reason.split())[:400]}"
        ) from error
    finally:
        logging.set_verbosity(level)
    return builder
