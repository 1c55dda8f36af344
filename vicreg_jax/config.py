"""What a run is told: every field, its type, default and limits; no behaviour.

The defaults are the paper's recipe for ImageNet where it has one. A config file lists
all fields, so that each can be overridden on the command line.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vicreg_jax import fields


@dataclass(frozen=True)
class Data:
    name: str = "fake"  # folder, prepared, tfds, tfrecord, arrays, digits or fake
    path: str = ""  # folder of images, .npz of arrays, TFRecords, tfds data_dir
    dataset: str = ""  # of tfds: its name, if need be with /config and :version
    split: str = "train"  # of tfds
    validation: bool = False  # digits: hold out 360 training images, hide the test
    batch_size: int = 2048  # over all devices
    views: int = 2  # of each image
    image_size: int = 224  # height and width of a view, in pixels
    resize: str = "auto"  # image files on the host or device; auto: on accelerators
    mean: tuple[float, ...] = (0.485, 0.456, 0.406)  # per channel, of images in [0, 1]
    std: tuple[float, ...] = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Augment:
    """Probabilities and limits. The defaults are those of the authors' code."""

    crop_scale: tuple[float, ...] = (0.08, 1.0)  # share of the image's area
    crop_ratio: tuple[float, ...] = (3 / 4, 4 / 3)  # width over height
    interpolation: str = "bicubic"  # or bilinear; of the resizing, antialiased
    flip: float = 0.5  # probability
    rotation: float = 0.0  # degrees, at most, either way
    shear: float = 0.0  # horizontal over vertical shift, at most, either way
    jitter: float = 0.8  # probability
    brightness: float = 0.4  # factor in [1 - x, 1 + x]
    contrast: float = 0.4  # likewise
    saturation: float = 0.2  # likewise
    hue: float = 0.1  # share of the colour circle, at most, either way
    grey: float = 0.2  # probability
    blur: tuple[float, ...] = (1.0, 0.1)  # probability in the first and second view
    sigma: tuple[float, ...] = (0.1, 2.0)  # of the blur, in pixels of the view
    solarize: tuple[float, ...] = (0.0, 0.2)  # probability in either view
    colour: str = "device"  # where all but cropping happens; host: image files only


@dataclass(frozen=True)
class Model:
    encoder: str = "resnet50"
    width: int = 1  # factor on the encoder's channels
    stem: str = "imagenet"  # or cifar, or solo_learn for that library's CIFAR
    zero_init_residual: bool = True  # a residual block starts as the identity
    expander: tuple[int, ...] = (8192, 8192, 8192)
    expander_bias: bool = False  # of the last layer; the loss does not see it
    dtype: str = "float32"  # of the computation, or bfloat16; parameters are float32


@dataclass(frozen=True)
class Optimizer:
    name: str = "lars"  # or adamw
    base_lr: float = 0.2  # for a batch of 256
    weight_decay: float = 1e-6
    momentum: float = 0.9  # lars, like the two below
    trust_coefficient: float = 1e-3
    clip: bool = False  # the trust ratio, as in the CIFAR recipes
    warmup_epochs: float = 10.0
    warmup_start: float = 0.0  # learning rate of the first step
    end_scale: float = 1e-3  # last learning rate over the peak
    sharded: bool = False  # divides parameters and state over the devices (ZeRO)


@dataclass(frozen=True)
class Every:
    log_steps: int = 100
    checkpoint_epochs: int = 1
    profile_step: int = 0  # whose profile is written; 0: none


@dataclass(frozen=True)
class Guard:
    """What a run puts up with."""

    skipped_steps: int = 10  # not finite, in a row; then it goes back, then it stops
    broken_images: float = 0.01  # share of the files; more stop it
    stuck_seconds: float = 120.0  # without a step, or 20 times the usual; 0: for ever


@dataclass(frozen=True)
class Evaluate:
    """By labels, which training itself never sees; each is off by default."""

    labels_per_class: tuple[int, ...] = (1, 5, 10)  # of the table at the end
    draws: int = 0  # of labels for that table
    knn_epochs: int = 0  # between accuracies of nearest neighbours in training images
    probe: bool = False  # a linear classifier that learns beside the encoder


@dataclass(frozen=True)
class Prepare:
    """The task that writes a data set into the workdir, for fast reading."""

    shards: int = 64  # files
    shorter_side: int = 0  # of larger images, in pixels, after shrinking; 0 keeps all
    quality: int = 0  # of JPEG; 0 keeps the files as they are, or is 90 with shrinking


@dataclass(frozen=True)
class Config:
    task: str = "pretrain"  # or prepare
    method: str = "vicreg"  # or barlow_twins
    seed: int = 0
    epochs: int = 100
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    loss: dict[str, float] = field(default_factory=dict)  # {}: the published weights
    optimizer: Optimizer = field(default_factory=Optimizer)
    every: Every = field(default_factory=Every)
    guard: Guard = field(default_factory=Guard)
    evaluate: Evaluate = field(default_factory=Evaluate)
    prepare: Prepare = field(default_factory=Prepare)
    wandb: str = ""  # project of Weights & Biases, if any


# May differ when a run is continued; anything else would make it another run.
CHANGEABLE = (
    *("epochs", "every.", "guard.", "prepare.", "wandb"),
    *("evaluate.labels_per_class", "evaluate.draws", "evaluate.knn_epochs"),
)

CHOICES = {
    "task": ("pretrain", "prepare"),
    "data.name": ("folder", "prepared", "tfds", "tfrecord", "arrays", "digits", "fake"),
    "data.resize": ("auto", "host", "device"),
    "augment.interpolation": ("bicubic", "bilinear"),
    "augment.colour": ("device", "host"),
    "model.stem": ("imagenet", "cifar", "solo_learn"),
    "model.dtype": ("float32", "bfloat16"),
    "optimizer.name": ("lars", "adamw"),
}
NEEDS_PATH = {
    "folder": "the folder of images",
    "prepared": "the folder that the task prepare wrote",
    "tfrecord": "the TFRecord files, such as DIR/train-*,",
    "arrays": "the .npz file",
}
POSITIVE = (
    *("epochs", "data.batch_size", "data.image_size", "data.std", "model.width"),
    *("model.expander", "optimizer.base_lr", "optimizer.trust_coefficient"),
    *("every.log_steps", "every.checkpoint_epochs", "evaluate.labels_per_class"),
    *("prepare.shards", "guard.skipped_steps"),
)
PROBABILITIES = (
    *("augment.flip", "augment.jitter", "augment.grey", "augment.blur"),
    *("augment.solarize", "augment.shear", "augment.brightness", "augment.contrast"),
    *("augment.saturation", "guard.broken_images"),
)
NOT_NEGATIVE = (
    *("seed", "augment.rotation"),
    *("optimizer.weight_decay", "optimizer.momentum", "optimizer.warmup_epochs"),
    *("optimizer.warmup_start", "optimizer.end_scale", "evaluate.draws"),
    *("evaluate.knn_epochs", "prepare.shorter_side", "guard.stuck_seconds"),
)


def parse(given: Config | Mapping[str, Any]) -> Config:
    """Returns the config of a (nested) mapping; what it leaves out has its default.

    Raises:
      ValueError: a field that does not exist, of another type, or an impossible value;
        the message is one line that names it.
    """
    config = given if isinstance(given, Config) else fields.build(Config, given)
    _check(config)
    return config


def differences(old: Config, new: Config) -> list[str]:
    """Returns a line for each field that makes `new` another run than `old`."""
    return fields.differences(old, new, changeable=CHANGEABLE)


def _check(config):
    values = fields.flat(config)

    each = partial(fields.each, values)
    fields.choices(values, CHOICES)
    each(POSITIVE, lambda x: 0 < x < math.inf, "positive")
    each(NOT_NEGATIVE, lambda x: 0 <= x < math.inf, "zero or more")
    each(PROBABILITIES, lambda x: 0 <= x <= 1, "between 0 and 1")
    each(["augment.crop_scale"], lambda x: 0 < x <= 1, "two numbers in (0, 1]")
    each(["augment.crop_ratio"], lambda x: 0 < x < math.inf, "two positive numbers")
    each(["data.mean"], math.isfinite, "finite")
    each(["seed"], lambda x: x < 2**32, "below 2**32")  # jax.random.key folds others
    each(["augment.sigma"], lambda x: 0 < x <= 2.4, "two numbers in (0, 2.4]")
    each(["prepare.quality"], lambda x: 0 <= x <= 100, "between 0 and 100")
    each(["augment.hue"], lambda x: 0 <= x <= 0.5, "between 0 and 0.5")
    for name in ("augment.blur", "augment.solarize"):
        if len(values[name]) != 2:
            raise ValueError(
                f"config.{name} is a pair (first view, second view); got"
                f" {tuple(values[name])}"
            )
    for name in ("augment.crop_scale", "augment.crop_ratio", "augment.sigma"):
        if len(values[name]) != 2 or values[name][0] > values[name][1]:
            raise ValueError(
                f"config.{name} is a pair (least, most); got {tuple(values[name])}"
            )
    channels = len(values["data.mean"])
    if channels not in (1, 3) or channels != len(values["data.std"]):
        raise ValueError(
            "config.data.mean and config.data.std have one number per channel, 1 or 3;"
            f" got {channels} and {len(values['data.std'])}"
        )
    if not values["model.expander"]:
        raise ValueError("config.model.expander needs one width or more; got ()")
    if config.optimizer.warmup_epochs >= config.epochs:
        raise ValueError(
            f"config.optimizer.warmup_epochs ({config.optimizer.warmup_epochs:g}) must"
            f" be less than config.epochs ({config.epochs})"
        )
    momentum = config.optimizer.momentum
    if momentum >= 1:
        raise ValueError(f"config.optimizer.momentum must be below 1; got {momentum}")
    if config.loss and not any(config.loss.values()):
        raise ValueError("config.loss: all weights are zero; nothing would be learned")
    each(["data.image_size"], lambda x: x <= 8192, "8192 or less")
    each(["optimizer.end_scale"], lambda x: x <= 1, "1 or less")
    for name in ("data.batch_size", "data.image_size", "model.expander"):
        last = values[name][-1] if name == "model.expander" else values[name]
        if last < 2:
            raise ValueError(f"config.{name} must be 2 or more; got {last}")
    data = config.data
    if data.name in NEEDS_PATH and not data.path:
        raise ValueError(
            f"config.data.path is empty; data.name {data.name!r} needs"
            f" {NEEDS_PATH[data.name]} there"
        )
    if data.name in ("digits", "fake") and data.path:
        raise ValueError(
            f"config.data.path is {data.path!r}, but data.name is {data.name!r}; did"
            f" you mean data.name={', '.join(NEEDS_PATH)}?"
        )
    if data.validation and data.name != "digits":
        raise ValueError(
            "config.data.validation is for the digits; for others give the part that"
            " you hold out as test images (arrays) or name it in data.split (tfds)"
        )
    wanted = {"tfds": ".npz", "folder": "*"}.get(data.name)
    if wanted and wanted in data.path:
        other = {"tfds": "arrays", "folder": "tfrecord"}[data.name]
        raise ValueError(
            f"config.data.path is {data.path!r}, but data.name is {data.name!r}; did"
            f" you mean data.name={other}?"
        )
    if data.name == "tfds" and not data.dataset:
        raise ValueError(
            "config.data.dataset is empty; data.name 'tfds' needs the name of a data"
            " set there, such as imagenet2012"
        )
