"""What an encoder is judged on: which images and labels; it never reads a pixel."""

import urllib.request
from collections import Counter
from dataclasses import replace
from http.client import HTTPException
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vicreg_jax import files
from vicreg_jax.config import NEEDS_PATH, Augment, Config, Data, Evaluation, Guard
from vicreg_jax.data import plan
from vicreg_jax.data.image_files import ImageFiles, digests
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.labels import exist, known
from vicreg_jax.data.source import Source, check_channels, count_classes
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.evaluate import apart
from vicreg_jax.evaluate.features import Whole
from vicreg_jax.evaluate.multilabel import read_multilabel
from vicreg_jax.refusals import Refusal
from vicreg_jax.weights import Encoder

__all__ = [
    "Inputs",
    "balanced",
    "held_out",
    "listed",
    "need_labels",
    "open_inputs",
]


class Inputs(NamedTuple):
    """The images of an evaluation."""

    config: Config  # of the batches: one view
    train: Source
    test: Source | None
    classes: int  # 0 without labels
    kept: np.ndarray  # int [n], the training images to use
    tested: np.ndarray  # int [m], the test images to use, perhaps none
    shorter_side: int  # of test images of any size

    def whole(self, part: str) -> Whole:
        """Returns the images of a part, "train" or "test", to be seen whole."""
        rows = self.kept if part == "train" else self.tested
        return Whole(getattr(self, part), self.config.data, rows, self.shorter_side)

    def fingerprint(self) -> dict[str, str]:
        """Returns digests of the images of both parts: see `Source.fingerprint`."""
        found = {"choice of training images": files.digest(self.kept.tobytes())}
        for part, source in (("training", self.train), ("test", self.test)):
            own = {} if source is None else source.fingerprint()
            found |= {f"{part} {name}": value for name, value in own.items()}
        return found


def open_inputs(
    config: Evaluation, encoder: Encoder, cache: IndexCache | None = None
) -> Inputs:
    """Returns the images of an evaluation; what its config leaves open is the run's.

    Those of the task svm have several labels each, int [n, c]: see `read_multilabel`.
    Of others only images with a label are used, but for the task features.

    Args:
      cache: where what takes long to find out about images is kept.

    Raises:
      Refusal: there is no such data, it lacks what it needs, or it is judged on its
        own training images.
    """
    multilabel, given = config.task == "svm", config.data
    if multilabel:
        _need_voc(given)
    seen = _batch_config(config, encoder)
    if multilabel:
        train = _multilabel(given.path, given.split)
        test = _multilabel(given.path, given.test_split or "test")
        classes = len(train.classes)
        kept, tested = np.arange(len(train)), np.arange(len(test))
    else:
        train, test = splits = load_splits(
            seen.data,
            seed=encoder.config.seed if encoder.config else config.seed,
            test_path=given.test_path,
            test_split=given.test_split,
            cache=cache,
        )
        for split in filter(None, splits):
            check_channels(split, encoder.channels)
        judged = config.task != "features"
        classes = _count_classes(train, test) if judged else 0
        kept = _kept(train, config)
        tested = np.arange(0) if test is None else _used(test, judged)
    if test is not None and config.task != "features":
        records = seen.data.name == "tfrecord"
        patterns = (seen.data.path, given.test_path) if records else ()
        apart.check(train, test, patterns=patterns)
    size = seen.data.image_size
    if 0 < given.shorter_side < size:
        raise Refusal(
            f"config.data.shorter_side {given.shorter_side} is less than the image size"
            f" {size}; the centre would not fill it"
        )
    shorter_side = given.shorter_side or round(size * 8 / 7)
    return Inputs(seen, train, test, classes, kept, tested, shorter_side)


def _batch_config(config, encoder):
    """Returns the config of single views of an evaluation's data: see `open_inputs`."""
    given, own = config.data, encoder.config and encoder.config.data
    size = given.image_size or encoder.known_size()
    if not given.name and own is None:
        raise Refusal(
            "config.data.name is empty, and the checkpoint does not say on which data"
            " it was trained; give config.data.name and config.data.path"
        )
    if not given.name and (given.path or given.dataset):
        raise Refusal(
            f"config.data.path is {given.path!r}, but data.name is empty; did you mean"
            " data.name=folder?"
        )
    if given.name in NEEDS_PATH and not given.path:
        raise Refusal(
            f"config.data.path is empty; data.name {given.name!r} needs"
            f" {NEEDS_PATH[given.name]} there (the first lines of the config file say"
            " where its images come from)"
        )
    where = given if given.name else own
    if where.name == "fake":
        raise Refusal(
            "the images of the run were fake, or a source of its user's; give"
            " config.data.name and config.data.path"
        )
    data = Data(
        **{name: getattr(where, name) for name in ("name", "path", "dataset", "split")},
        validation=not given.name and own.validation,
        held_out=0.0 if given.name else own.held_out,
        pipeline=given.pipeline,
        views=1,
        batch_size=given.batch_size,
        image_size=size,
        mean=encoder.mean,
        std=encoder.std,
    )
    crop = config.augment
    augment = Augment(
        crop_scale=crop.crop_scale,
        flip=crop.flip,
        interpolation=crop.interpolation,
        jitter=0.0,
        grey=0.0,
        blur=(0.0, 0.0),
        solarize=(0.0, 0.0),
    )
    guard = Guard(broken_images=config.guard.broken_images)
    return replace(Config(), seed=config.seed, data=data, augment=augment, guard=guard)


def need_labels(found: Inputs, *, test: bool = True) -> None:
    """Raises Refusal without labels, or without a labelled test split."""
    if not exist(found.train.labels):
        raise Refusal(
            f"config.data.name {found.config.data.name!r}: the training images have no"
            " labels; expected class folders, or a data set with labels"
        )
    if test and (found.test is None or not exist(found.test.labels)):
        raise Refusal(
            f"config.data.name {found.config.data.name!r}: there are no labelled test"
            " images; give config.data.test_path (folders and files) or"
            " config.data.test_split (tfds)"
        )


def held_out(kept: np.ndarray, labels: np.ndarray, share: float, seed: int):
    """Returns (kept without some, those): a share of each class, drawn by the seed."""
    if not share:
        return kept, kept[:0]
    own = labels[kept]
    out = balanced(own, share, seed, purpose="held_out")
    out = out[np.bincount(own)[own[out]] > 1]  # the only image of a class is trained on
    return np.delete(kept, out), kept[out]


def balanced(
    labels: np.ndarray, fraction: float, seed: int, *, purpose: str = "balanced"
) -> np.ndarray:
    """Returns sorted indices of a fraction of each class, at least one: int [m].

    A pure function of the seed, so the same on any number of hosts.

    Args:
      purpose: one of `plan.PURPOSES`, each of which draws others.
    """
    order = plan.shuffled(purpose, len(labels), seed=seed)
    chosen = []
    for c in np.unique(labels):
        members = order[labels[order] == c]
        chosen.append(members[: max(1, round(fraction * len(members)))])
    return np.sort(np.concatenate(chosen))


def listed(names: Any, path: str) -> np.ndarray:
    """Returns the indices of the images whose file names a list gives, one per line.

    Args:
      names: of the images; folders in them and in the list do not count.
      path: of a text file, or its URL.

    Raises:
      Refusal: the list cannot be read, or names an image that there is not.
    """
    try:
        if path.startswith(("https://", "http://")):
            with urllib.request.urlopen(path, timeout=60) as answer:
                text = answer.read().decode()
        else:
            text = files.read_text(files.expanded(path))
    except (OSError, ValueError, HTTPException) as error:
        raise Refusal(f"config.data.names: {path} cannot be read: {error}") from None
    wanted = [Path(line.strip()).name for line in text.splitlines() if line.strip()]
    counts = Counter(Path(name).name for name in names)
    twice = [name for name in wanted if counts[name] > 1]
    if twice:
        raise Refusal(
            f"config.data.names: {len(twice)} names in {path} are of several training"
            f" images each, such as {', '.join(twice[:3])}"
        )
    where = {Path(name).name: i for i, name in enumerate(names)}
    missing = [name for name in wanted if name not in where]
    if missing or not wanted:
        raise Refusal(
            f"config.data.names: {len(missing)} of the {len(wanted)} names in {path}"
            f" are no training image, such as {', '.join(missing[:3])}"
        )
    return np.array(sorted({where[name] for name in wanted}))


def _need_voc(given):
    if given.name != "voc" or not given.path:
        raise Refusal(
            f"the task svm reads a folder laid out like VOC2007; got data.name"
            f" {given.name!r} and data.path {given.path!r}; get it from"
            " host.robots.ox.ac.uk/pascal/VOC/voc2007 and give config.data.name=voc"
            " --config.data.path=VOCdevkit/VOC2007"
        )


def _multilabel(root, split):
    found = read_multilabel(root, split)
    names = [str(path) for path in found.paths]
    return ImageFiles(
        lambda i: files.read(names[i]),
        names,
        labels=found.labels,
        classes=found.classes,
        known=lambda: digests(names, str(files.expanded(root))),
    )


def _count_classes(train, test):
    """Returns how many classes there are, 0 without labels; checks both parts' labels.

    Raises:
      Refusal: see `open_inputs`.
    """
    if not exist(train.labels):
        return 0
    count = count_classes(train)
    rows = known(None if test is None else test.labels)
    if len(rows) and (labels := np.asarray(test.labels)[rows]).max() >= count:
        raise Refusal(
            f"test labels are from {labels.min()} to {labels.max()}; expected 0 to"
            f" {count - 1}, as the training images have {count} classes"
        )
    if isinstance(train.labels, np.ndarray):  # in TFRecords class 0 may be no class
        empty = sorted(set(range(count)) - set(train.labels.tolist()))
        if empty:
            raise Refusal(
                f"{len(empty)} of {count} classes have no training image, such as class"
                f" {empty[0]}; remove them, or number the labels without gaps"
            )
    return count


def _used(source, judged):
    """Returns the images of a source to use: where they are judged, with a label."""
    used = known(source.labels) if judged else np.arange(len(source))
    if source.broken:  # so their labels could not be read either
        index = min(source.broken)
        raise Refusal(
            f"{source.names[index]} cannot be read ({source.broken[index]}); mend or"
            " remove it"
        )
    return used


def _kept(train, config):
    data, judged = config.data, config.task != "features"
    used = _used(train, judged)
    if data.names:
        if train.names is None:
            raise Refusal("config.data.names is for image files; arrays have none")
        kept = np.intersect1d(listed(train.names, data.names), used)
        if judged and exist(train.labels) and not len(kept):
            raise Refusal(
                f"config.data.names: no image that {data.names} names has a label"
            )
        return kept
    if data.fraction < 1:
        if not exist(train.labels):
            raise Refusal("config.data.fraction needs labels; there are none")
        used = _used(train, True)
        labels = np.asarray(train.labels)[used]
        return used[balanced(labels, data.fraction, config.seed)]
    return used
