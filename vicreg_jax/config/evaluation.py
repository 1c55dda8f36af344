"""What an evaluation is told: every field, its type, default and limits; no behaviour.

Where a field of the data is empty or 0, that of the run that trained the encoder holds.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Literal

from vicreg_jax.config.fields import (
    Distinct,
    Limit,
    NotNegative,
    Positive,
    Seed,
    Settings,
    at_least,
    below,
)
from vicreg_jax.config.pretraining import Crop, Guard, Interpolation, Stem, Where

__all__ = [
    "READS",
    "Augment",
    "Data",
    "Evaluation",
    "Export",
    "Finetune",
    "Format",
    "Head",
    "Knn",
    "Lidar",
    "Logistic",
    "Model",
    "Source",
    "Svm",
    "parse",
]


Source = Literal[
    *("", "folder", "prepared", "tfds", "tfrecord", "huggingface"),
    *("arrays", "digits", "voc"),
]
Format = Literal["safetensors", "torch", "stablehlo", "detectron2"]
_TRAINING = ("checkpoint", "epochs", "data", "augment", "head", "guard", "model")
# task -> the fields and groups that it reads, besides task and seed
READS = {
    "linear": _TRAINING,
    "finetune": (*_TRAINING, "finetune"),
    "knn": ("checkpoint", "data", "knn", "model"),
    "logistic": ("checkpoint", "data", "logistic", "model"),
    "svm": ("checkpoint", "data", "svm", "model"),
    "features": ("checkpoint", "data", "lidar", "model"),
    "export": ("checkpoint", "export", "model"),
    "report": (),
    "compare": ("runs",),
    "ls": ("by",),
    "replay": ("step", "batch"),
}
Task = Annotated[str, Limit(READS.__contains__, f"must be one of {', '.join(READS)}")]


@dataclass(frozen=True)
class Model:
    """What a file of weights does not say of its network."""

    stem: Literal["", Stem] = ""  # "": as its tensors look, with a note


@dataclass(frozen=True)
class Data(Where):
    """Of a folder `path` has the training images; as for a run but where it says so."""

    name: Source = ""
    test_path: str = ""  # folder, prepared, tfrecord: where the test images are
    test_split: str = ""  # of huggingface, tfds (there: test, else validation)
    batch_size: Positive[int] = 256  # over all devices
    image_size: NotNegative[int] = 0  # of what the encoder sees, in pixels
    shorter_side: NotNegative[int] = 0  # of test images, then cut; 0: 8/7 image_size
    fraction: Annotated[float, Limit(lambda x: 0 < x <= 1, "must be in (0, 1]")] = 1.0
    names: str = ""  # path or URL of a list of the training images' file names


@dataclass(frozen=True)
class Augment(Crop):
    """Of training images; the defaults are those of the authors' evaluation."""

    interpolation: Interpolation = "bilinear"  # antialiased; runs: bicubic


@dataclass(frozen=True)
class Head:
    """Linear classifiers on top; several values make a bank, trained in one pass."""

    rates: Distinct[Positive[float]] = (0.02,)  # learning rates, of the batch as it is
    weight_decay: Distinct[NotNegative[float]] = (1e-6,)
    layers: Distinct[NotNegative[int]] = (0,)  # 0: representation; k: last k blocks
    momentum: Annotated[NotNegative[float], below(1)] = 0.9
    nesterov: bool = False
    batch_norm: bool = False  # before the linear layer, as VISSL has it
    drops: tuple[Positive[int], ...] = ()  # epochs that divide the rate by ten
    held_out: Annotated[float, Limit(lambda x: 0 <= x < 1, "must be in [0, 1)")] = 0.1
    test_every_epoch: bool = False  # also gives the maximum over epochs

    @property
    def bank(self) -> int:
        """How many classifiers there are."""
        return len(self.rates) * len(self.weight_decay) * len(self.layers)


@dataclass(frozen=True)
class Finetune:
    encoder_rate: Positive[float] = 0.01  # learning rate of the encoder, not the head


@dataclass(frozen=True)
class Lidar:
    """Views of training images as the run augmented them; 0 images: none."""

    images: NotNegative[int] = 1000  # at most; drawn by the seed
    views: Annotated[int, at_least(2)] = 10  # of each


@dataclass(frozen=True)
class Knn:
    neighbours: Distinct[Positive[int]] = (20, 200)
    temperature: Positive[float] = 0.07  # of the weights exp(similarity / temperature)


@dataclass(frozen=True)
class Logistic:
    c: tuple[Positive[float], ...] = (1.0,)  # inverse strength of the L2 penalty


@dataclass(frozen=True)
class Svm:
    """One for each class, on features of length one; costs and folds are VISSL's."""

    costs: tuple[Positive[float], ...] = (0.01, 0.1, 1, 2, 5, 10, 15, 20, 50, 100, 1000)
    folds: Annotated[int, at_least(2)] = 3  # of the validation that chooses the cost


@dataclass(frozen=True)
class Export:
    formats: tuple[Format, ...] = ("safetensors", "stablehlo")
    image_size: NotNegative[int] = 0  # 0: the encoder's own
    hub: str = ""  # OWNER/NAME on the Hugging Face Hub to push to, if any


@dataclass(frozen=True)
class Evaluation(Settings):
    task: Task = "knn"
    checkpoint: str = ""  # workdir of a run, exported folder, .pth or .safetensors
    seed: Seed = 0
    epochs: Positive[int] = 100
    model: Model = field(default_factory=Model)
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
    runs: tuple[str, ...] = ()  # workdirs, to be compared
    by: str = ""  # the value of runs to list the best first by, such as knn_top1
    step: NotNegative[int] = 0  # of a run, to be computed again
    batch: str = ""  # or the file RUN/not_finite_STEP.npz

    # What lies at the paths has checksums.
    CHANGEABLE = (
        "checkpoint",
        "data.path",
        "data.test_path",
        "data.pipeline",
        "export.",
        "guard.",
    )

    def mistakes(self) -> Iterator[str]:
        data, head, trains = self.data, self.head, self.task in ("linear", "finetune")
        if data.fraction < 1 and data.names:
            yield (
                "config.data.fraction and config.data.names both choose training"
                " images; give one of them"
            )
        if trains and head.bank > 1 and not head.held_out:
            yield (
                f"config.head makes a bank of {head.bank}; choosing among them needs"
                " training images held out, but config.head.held_out is 0"
            )
        if self.task == "finetune" and head.bank > 1:
            yield (
                f"config.head makes a bank of {head.bank}, but an encoder is fine-tuned"
                " with one head; give one rate, weight decay and layer"
            )
        if self.task == "replay" and (self.step > 0) == bool(self.batch):
            yield (
                "the task replay needs config.step, from 1 on, or config.batch, a file"
                f" RUN/not_finite_STEP.npz; got {self.step} and {self.batch!r}"
            )
        if "checkpoint" in READS[self.task] and not self.checkpoint:
            yield (
                "config.checkpoint is empty; give the workdir of a run, an exported"
                " folder, or a .pth or .safetensors file"
            )
        if data.image_size > (data.shorter_side or math.inf):
            yield (
                f"config.data.shorter_side {data.shorter_side} is less than"
                f" config.data.image_size {data.image_size}"
            )


parse = Evaluation.parse
