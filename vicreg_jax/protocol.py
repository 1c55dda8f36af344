"""What an evaluation is told: every field, its type, default and limits; no behaviour.

Where a field of the data is empty or 0, that of the run that trained the encoder holds.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from vicreg_jax import fields


@dataclass(frozen=True)
class Data:
    name: str = ""  # folder, prepared, tfds, tfrecord, arrays or digits
    path: str = ""  # as for a run; of a folder the training images
    dataset: str = ""  # of tfds: its name, if need be with /config and :version
    split: str = "train"  # of tfds
    test_path: str = ""  # folder, prepared, tfrecord: where the test images are
    test_split: str = ""  # of tfds; by default test, else validation
    batch_size: int = 256  # over all devices
    image_size: int = 0  # height and width of what the encoder sees, in pixels
    shorter_side: int = 0  # of test images, whose centre is cut out; 0: 8/7 image_size
    fraction: float = 1.0  # of the training images of each class, at least one
    names: str = ""  # path or URL of a list of the training images' file names


@dataclass(frozen=True)
class Augment:
    """Of training images; the defaults are those of the authors' evaluation."""

    crop_scale: tuple[float, ...] = (0.08, 1.0)  # share of the image's area
    flip: float = 0.5  # probability
    interpolation: str = "bilinear"  # or bicubic


@dataclass(frozen=True)
class Head:
    """Linear classifiers on top; several values make a bank, trained in one pass."""

    rates: tuple[float, ...] = (0.02,)  # learning rates, of the batch as it is
    weight_decay: tuple[float, ...] = (1e-6,)
    layers: tuple[int, ...] = (0,)  # 0: representation; k: last k blocks, pooled
    momentum: float = 0.9
    nesterov: bool = False
    batch_norm: bool = False  # before the linear layer, as VISSL has it
    drops: tuple[int, ...] = ()  # epochs that divide the rate by ten; none: a cosine
    held_out: float = 0.1  # share of the training images that choose among the bank
    test_every_epoch: bool = False  # also gives the maximum over epochs


@dataclass(frozen=True)
class Finetune:
    encoder_rate: float = 0.01  # learning rate of the encoder; the head has its own


@dataclass(frozen=True)
class Guard:
    """What training puts up with, as in a run."""

    skipped_steps: int = 10  # not finite, in a row; then it stops
    broken_images: float = 0.01  # share of the training images; more stop it
    stuck_seconds: float = 120.0  # without a step, or 20 times the usual; 0: for ever


@dataclass(frozen=True)
class Lidar:
    """Views of training images as the run augmented them; 0 images: none."""

    images: int = 1000  # at most; drawn by the seed
    views: int = 10  # of each


@dataclass(frozen=True)
class Knn:
    neighbours: tuple[int, ...] = (20, 200)
    temperature: float = 0.07  # of the weights exp(similarity / temperature)


@dataclass(frozen=True)
class Logistic:
    c: tuple[float, ...] = (1.0,)  # inverse strength of the L2 penalty


@dataclass(frozen=True)
class Svm:
    """One for each class, on features of length one; costs and folds are VISSL's."""

    costs: tuple[float, ...] = (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    folds: int = 3  # of the cross-validation that chooses the cost


@dataclass(frozen=True)
class Export:
    formats: tuple[str, ...] = ("safetensors", "stablehlo")  # or torch, detectron2
    image_size: int = 0  # 0: the encoder's own
    hub: str = ""  # OWNER/NAME on the Hugging Face Hub to push to, if any


@dataclass(frozen=True)
class Protocol:
    task: str = "knn"
    checkpoint: str = ""  # workdir of a run, exported folder, .pth or .safetensors
    seed: int = 0
    epochs: int = 100
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    head: Head = field(default_factory=Head)
    finetune: Finetune = field(default_factory=Finetune)
    guard: Guard = field(default_factory=Guard)
    lidar: Lidar = field(default_factory=Lidar)
    knn: Knn = field(default_factory=Knn)
    logistic: Logistic = field(default_factory=Logistic)
    svm: Svm = field(default_factory=Svm)
    export: Export = field(default_factory=Export)


TRAINING = ("checkpoint", "epochs", "data", "augment", "head", "guard")
# task -> the fields and groups that it reads, besides task and seed
READS = {
    "linear": TRAINING,
    "finetune": (*TRAINING, "finetune"),
    "knn": ("checkpoint", "data", "knn"),
    "logistic": ("checkpoint", "data", "logistic"),
    "svm": ("checkpoint", "data", "svm"),
    "features": ("checkpoint", "data", "lidar"),
    "export": ("checkpoint", "export"),
    "report": (),
}
NAMES = ("", "folder", "prepared", "tfds", "tfrecord", "arrays", "digits")
CHOICES = {
    "task": tuple(READS),
    "data.name": (*NAMES, "voc"),
    "augment.interpolation": ("bilinear", "bicubic"),
    "export.formats": ("safetensors", "torch", "stablehlo", "detectron2"),
}
POSITIVE = (
    *("epochs", "data.batch_size", "head.rates", "finetune.encoder_rate"),
    *("knn.neighbours", "knn.temperature", "logistic.c", "svm.costs", "head.drops"),
    "guard.skipped_steps",
)
NOT_NEGATIVE = (
    *("seed", "data.image_size", "data.shorter_side", "head.weight_decay"),
    *("head.layers", "head.momentum", "export.image_size"),
    *("guard.stuck_seconds", "lidar.images"),
)


def parse(given: Protocol | Mapping[str, Any]) -> Protocol:
    """Returns the protocol of a (nested) mapping; what it leaves out has its default.

    Raises:
      ValueError: a field that does not exist, of another type, or an impossible value;
        the message is one line that names it.
    """
    protocol = given if isinstance(given, Protocol) else fields.build(Protocol, given)
    _check(protocol)
    return protocol


def differences(old: Protocol, new: Protocol) -> list[str]:
    """Returns a line for each field that makes `new` another evaluation than `old`."""
    return fields.differences(old, new, changeable=("export.", "guard."))


def _check(protocol):
    values = fields.flat(protocol)
    each = partial(fields.each, values)
    fields.choices(values, CHOICES)
    each(POSITIVE, lambda x: 0 < x < math.inf, "positive")
    each(NOT_NEGATIVE, lambda x: 0 <= x < math.inf, "zero or more")
    each(["seed"], lambda x: x < 2**32, "below 2**32")
    each(["data.fraction"], lambda x: 0 < x <= 1, "in (0, 1]")
    each(["augment.crop_scale"], lambda x: 0 < x <= 1, "two numbers in (0, 1]")
    each(["augment.flip"], lambda x: 0 <= x <= 1, "between 0 and 1")
    each(["head.held_out"], lambda x: 0 <= x < 1, "in [0, 1)")
    each(["guard.broken_images"], lambda x: 0 <= x <= 1, "between 0 and 1")
    each(["lidar.views"], lambda x: x >= 2, "2 or more")
    each(["head.momentum"], lambda x: x < 1, "below 1")
    each(["svm.folds"], lambda x: x >= 2, "2 or more")
    scale = values["augment.crop_scale"]
    if len(scale) != 2 or scale[0] > scale[1]:
        raise ValueError(
            f"config.augment.crop_scale is a pair (least, most); got {tuple(scale)}"
        )
    for name in ("head.rates", "head.weight_decay", "head.layers", "knn.neighbours"):
        if not values[name]:
            raise ValueError(f"config.{name} needs one value or more; got ()")
        if len(set(values[name])) < len(values[name]):
            raise ValueError(f"config.{name} has a value twice: {values[name]}")
    data, head = protocol.data, protocol.head
    if data.fraction < 1 and data.names:
        raise ValueError(
            "config.data.fraction and config.data.names both choose training images;"
            " give one of them"
        )
    heads = len(head.rates) * len(head.weight_decay) * len(head.layers)
    if protocol.task in ("linear", "finetune") and heads > 1 and not head.held_out:
        raise ValueError(
            f"config.head makes a bank of {heads}; choosing among them needs training"
            " images held out, but config.head.held_out is 0"
        )
    if protocol.task == "finetune" and heads > 1:
        raise ValueError(
            f"config.head makes a bank of {heads}, but an encoder is fine-tuned with"
            " one head; give one rate, weight decay and layer"
        )
    if protocol.task != "report" and not protocol.checkpoint:
        raise ValueError(
            "config.checkpoint is empty; give the workdir of a run, an exported folder,"
            " or a .pth or .safetensors file"
        )
    if data.image_size and data.image_size > (data.shorter_side or data.image_size * 2):
        raise ValueError(
            f"config.data.shorter_side {data.shorter_side} is less than"
            f" config.data.image_size {data.image_size}"
        )
