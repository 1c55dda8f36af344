"""What an encoder is judged on: which images and labels; it never reads a pixel."""

import urllib.request
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from vicreg_jax.config import NEEDS_PATH, Augment, Config, Data, Evaluation, Guard
from vicreg_jax.data import plan
from vicreg_jax.data.image_files import ImageFiles, read_file
from vicreg_jax.data.source import Source, count_classes
from vicreg_jax.data.sources.load import load_splits
from vicreg_jax.evaluate.multilabel import read_multilabel
from vicreg_jax.refusals import Refusal

# Of encoders that no run of ours has trained.
IMAGENET = Data(name="folder", path="", image_size=224)


class Inputs(NamedTuple):
    """The images of an evaluation."""

    config: Config  # of the batches: one view
    train: Source
    test: Source | None
    classes: int  # 0 without labels
    kept: np.ndarray  # int [n], the training images to use
    shorter_side: int  # of test images of any size


def inputs(
    protocol: Evaluation,
    trained: Config | None,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Inputs:
    """Returns the images that the protocol names; what it leaves open is the run's.

    Args:
      trained: the config of the run that trained the encoder, if it is known.
      mean, std: of the images that the encoder takes, per channel, in [0, 1].

    Raises:
      Refusal: there is no such data, or it lacks what it needs.
    """
    config = batch_config(protocol, trained, mean=mean, std=std)
    given = protocol.data
    splits = load_splits(
        config.data,
        seed=protocol.seed,
        test_path=given.test_path,
        test_split=given.test_split,
    )
    train, test = splits
    for split in splits:
        if split is not None and split.channels not in (None, len(mean)):
            raise Refusal(
                f"the encoder takes images of {len(mean)} channel(s); those of the data"
                f" have {split.channels}"
            )
    count = 0
    if train.labels is not None:
        count = count_classes(train)
        for split, name in ((train, "training"), (test, "test")):
            if split is not None:
                _check_labels(split, name, count)
    size = config.data.image_size
    if 0 < given.shorter_side < size:
        raise Refusal(
            f"config.data.shorter_side {given.shorter_side} is less than the image size"
            f" {size}; the centre would not fill it"
        )
    return Inputs(
        config=config,
        train=train,
        test=test,
        classes=count,
        kept=_kept(train, protocol),
        shorter_side=given.shorter_side or round(size * 8 / 7),
    )


def multilabel_inputs(
    protocol: Evaluation,
    trained: Config | None,
    *,
    mean: tuple[float, ...],
    std: tuple[float, ...],
) -> Inputs:
    """Returns images with several labels each, int [n, c]: see `read_multilabel`.

    Raises:
      Refusal: the folder is not laid out like VOC's.
    """
    given = protocol.data
    if given.name != "voc" or not given.path:
        raise Refusal(
            f"the task svm reads a folder laid out like VOC2007; got data.name"
            f" {given.name!r} and data.path {given.path!r}; get it from"
            " host.robots.ox.ac.uk/pascal/VOC/voc2007 and give config.data.name=voc"
            " --config.data.path=VOCdevkit/VOC2007"
        )
    config = batch_config(protocol, trained, mean=mean, std=std)
    parts = []
    for split in (given.split, given.test_split or "test"):
        found = read_multilabel(given.path, split)
        images = ImageFiles(
            lambda i, paths=found.paths: read_file(paths[i]),
            [str(path) for path in found.paths],
            labels=found.labels,
            classes=found.classes,
        )
        parts.append(images)
    train, test = parts
    size = config.data.image_size
    return Inputs(
        config=config,
        train=train,
        test=test,
        classes=len(train.classes),
        kept=np.arange(len(train)),
        shorter_side=given.shorter_side or round(size * 8 / 7),
    )


def batch_config(protocol, trained, *, mean, std) -> Config:
    """Returns the config of single views of the protocol's data: see `inputs`."""
    given, own = protocol.data, trained.data if trained else IMAGENET
    if not given.name and trained is None:
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
    crop = protocol.augment
    augment = Augment(
        crop_scale=crop.crop_scale,
        flip=crop.flip,
        interpolation=crop.interpolation,
        **dict(jitter=0.0, grey=0.0, blur=(0.0, 0.0), solarize=(0.0, 0.0)),
    )
    data = Data(
        name=where.name,
        path=where.path,
        dataset=where.dataset,
        split=where.split,
        validation=not given.name and own.validation,
        views=1,
        batch_size=given.batch_size,
        image_size=given.image_size or own.image_size,
        mean=mean,
        std=std,
    )
    guard = Guard(broken_images=protocol.guard.broken_images)
    return replace(
        Config(), seed=protocol.seed, data=data, augment=augment, guard=guard
    )


def need_labels(found: Inputs, *, test: bool = True) -> None:
    """Raises Refusal without labels, or without a labelled test split."""
    if found.train.labels is None:
        raise Refusal(
            f"config.data.name {found.config.data.name!r}: the training images have no"
            " labels; expected class folders, or a data set with labels"
        )
    if test and (found.test is None or found.test.labels is None):
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
    rest = np.ones(len(kept), bool)
    rest[out] = False
    return kept[rest], kept[out]


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
            text = Path(path).expanduser().read_text()
    except (OSError, UnicodeDecodeError) as error:
        raise Refusal(f"config.data.names: {path} cannot be read: {error}") from None
    wanted = [Path(line.strip()).name for line in text.splitlines() if line.strip()]
    counts = Counter(Path(name).name for name in names)
    twice = [name for name in wanted if counts[name] > 1]
    if twice:
        raise Refusal(
            f"config.data.names: {len(twice)} names in {path} are of several training"
            f" images each, such as {', '.join(twice[:3])}"
        )
    where: Mapping[str, int] = {Path(name).name: i for i, name in enumerate(names)}
    missing = [name for name in wanted if name not in where]
    if missing or not wanted:
        raise Refusal(
            f"config.data.names: {len(missing)} of the {len(wanted)} names in {path}"
            f" are no training image, such as {', '.join(missing[:3])}"
        )
    return np.array(sorted({where[name] for name in wanted}))


def _check_labels(source, name, count):
    labels = source.labels
    if labels is None:
        return
    everything = isinstance(labels, np.ndarray)
    if not everything:  # each is read with its image
        labels = labels[
            np.linspace(0, len(labels) - 1, min(64, len(labels))).astype(int)
        ]
    if labels.min() < 0 or labels.max() >= count:
        raise Refusal(
            f"{name} labels are from {labels.min()} to {labels.max()}; expected 0 to"
            f" {count - 1}, as the training images have {count} classes"
        )
    empty = sorted(set(range(count)) - set(labels.tolist())) if everything else []
    if empty and name == "training":
        raise Refusal(
            f"{len(empty)} of {count} classes have no {name} image, such as class"
            f" {empty[0]}; remove them, or number the labels without gaps"
        )


def _kept(train, protocol):
    data, everything = protocol.data, np.arange(len(train))
    if data.names:
        if train.names is None:
            raise Refusal("config.data.names is for image files; arrays have none")
        return listed(train.names, data.names)
    if data.fraction < 1:
        if train.labels is None:
            raise Refusal("config.data.fraction needs labels; there are none")
        return balanced(np.asarray(train.labels), data.fraction, protocol.seed)
    return everything
