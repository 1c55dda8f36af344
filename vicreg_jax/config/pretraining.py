"""What a run is told: every field, its type, default and limits; no behaviour.

The defaults are the paper's recipe for ImageNet where it has one; a recipe states what
differs from them. What evaluations are told alike is here, too.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from vicreg_jax.config.fields import (
    Finite,
    Limit,
    NotNegative,
    Pair,
    Positive,
    Probability,
    Seed,
    Settings,
    Some,
    at_least,
    at_most,
    below,
    between,
)

__all__ = [
    "MOST_CHANNELS",
    "NEEDS_PATH",
    "Augment",
    "Config",
    "Crop",
    "Data",
    "Evaluate",
    "Every",
    "Guard",
    "Interpolation",
    "Model",
    "Optimizer",
    "Prepare",
    "Source",
    "Where",
    "parse",
]


Source = Literal[
    *("folder", "prepared", "tfds", "tfrecord", "huggingface"),
    *("arrays", "digits", "fake"),
]
Share = Annotated[float, Limit(lambda x: 0 < x <= 1, "must be two numbers in (0, 1]")]
Ratio = Annotated[
    float, Limit(lambda x: 0 < x < math.inf, "must be two positive numbers")
]
Sigma = Annotated[
    float, Limit(lambda x: 0 < x <= 2.4, "must be two numbers in (0, 2.4]")
]
Stem = Literal["imagenet", "cifar", "solo_learn"]
Interpolation = Literal["bicubic", "bilinear"]
MOST_CHANNELS = 16  # of an image
NEEDS_PATH = {
    "folder": "the folder of images",
    "prepared": "the folder that the task prepare wrote",
    "tfrecord": "the TFRecord files, such as DIR/train-*,",
    "huggingface": "the folder of save_to_disk, or Parquet files",
    "arrays": "the .npz file",
}


@dataclass(frozen=True)
class Where:
    """Where images come from, of a run and of an evaluation."""

    name: str  # the kind of source
    path: str = ""  # folder of images, .npz of arrays, TFRecords, tfds data_dir
    dataset: str = ""  # of tfds: its name, if need be with /config and :version
    split: str = "train"  # of tfds and huggingface
    # What reads image files; auto: tf.data for accelerators, where it is installed.
    pipeline: Literal["auto", "tf_data", "threads"] = "auto"


@dataclass(frozen=True)
class Data(Where):
    name: Source = "fake"
    examples: NotNegative[int] = 0  # of an epoch, of a source that cannot say
    validation: bool = False  # digits: hold out 360 training images, hide the test
    held_out: Annotated[NotNegative[float], below(1)] = 0.0  # share never trained on
    batch_size: Annotated[int, at_least(2)] = 2048  # over all devices
    views: Annotated[int, at_least(2), at_most(100)] = 2  # of each image; global ones
    local_views: Annotated[NotNegative[int], at_most(100)] = 0  # small ones beside them
    image_size: Annotated[int, at_least(2), at_most(8192)] = 224  # of a view, in pixels
    local_size: NotNegative[int] = 0  # of a local view; 0: 3/7 image_size, 96 of 224
    resize: Literal["auto", "host", "device"] = "auto"  # of files; auto: accelerators
    mean: tuple[Finite[float], ...] = (0.485, 0.456, 0.406)  # of images in [0, 1]
    std: tuple[Positive[float], ...] = (0.229, 0.224, 0.225)  # likewise, per channel

    @property
    def sizes(self) -> tuple[int, ...]:
        """Height and width of each view, the local ones last."""
        local = self.local_size or round(self.image_size * 3 / 7)
        return (self.image_size,) * self.views + (local,) * self.local_views


@dataclass(frozen=True)
class Crop:
    """How images are augmented in runs and evaluations."""

    crop_scale: Pair[Share] = (0.08, 1.0)  # share of the image's area
    flip: Probability[float] = 0.5
    interpolation: Interpolation = "bicubic"  # antialiased; evaluations: bilinear


@dataclass(frozen=True)
class Augment(Crop):
    """Probabilities and limits. The defaults are those of the authors' code.

    That of local views is SwAV's (arXiv:2006.09882, section 3.3), which gives global
    ones a crop_scale of (0.14, 1) then.
    """

    local_scale: Pair[Share] = (0.05, 0.14)  # crop_scale of local views
    crop_ratio: Pair[Ratio] = (3 / 4, 4 / 3)  # width over height
    rotation: NotNegative[float] = 0.0  # degrees, at most, either way
    shear: Probability[float] = 0.0  # horizontal over vertical shift, either way
    jitter: Probability[float] = 0.8
    brightness: Probability[float] = 0.4  # factor in [1 - x, 1 + x]
    contrast: Probability[float] = 0.4  # likewise
    saturation: Probability[float] = 0.2  # likewise
    hue: Annotated[float, between(0, 0.5)] = 0.1  # share of the colour circle
    grey: Probability[float] = 0.2
    blur: tuple[Probability[float], ...] = (1.0, 0.1)  # of the views, in turn
    sigma: Pair[Sigma] = (0.1, 2.0)  # of the blur, in pixels of the view
    solarize: tuple[Probability[float], ...] = (0.0, 0.2)  # of the views, in turn
    colour: Literal["device", "host"] = "device"  # for all but cropping; host: of files

    def of_rgb(self) -> list[str]:
        """Returns the fields, not 0, of what is done to RGB alone (grey stays grey)."""
        jittered = ("saturation", "hue") if self.jitter else ()
        return [name for name in (*jittered, "grey") if getattr(self, name)]


@dataclass(frozen=True)
class Model:
    encoder: str = "resnet50"
    width: Positive[int] = 1  # factor on the encoder's channels
    stem: Stem = "imagenet"  # solo_learn: that library's for CIFAR
    zero_init_residual: bool = True  # a residual block starts as the identity
    pool: Literal["token", "mean"] = "token"  # of a ViT: class token, mean of patches
    expander: Some[Positive[int]] = (8192, 8192, 8192)
    expander_bias: bool = False  # of the last layer; the loss does not see it
    expander_norm: bool = True  # BatchNorm in its hidden layers, and the predictor's
    embedding_norm: Literal["none", "batch", "l2"] = "none"  # at the expander's end
    # Of a second branch with weights of its own, for the second, fourth, ... view, of
    # the same width and stem; "": all views go through the first.
    second_encoder: str = ""
    second_expander: tuple[Positive[int], ...] = ()  # (): as the first branch's
    # Hidden widths between the embedding and its prediction; (): no predictor.
    predictor: tuple[Positive[int], ...] = ()
    dtype: Literal["float32", "bfloat16"] = "float32"  # computing; parameters: float32
    # Parts of a batch that the encoder sees one by one, to save memory, each with its
    # own BatchNorm statistics; the loss is that of the whole batch.
    microbatches: Positive[int] = 1
    weights: str = ""  # to start from: a run's workdir, an export, a file of weights
    weights_expander: bool = False  # the expander starts from there, too; else anew
    # In training the encoder's BatchNorm keeps its running statistics and takes those.
    frozen_norm: bool = False

    def spec(self) -> dict[str, Any]:
        """Returns the arguments of `models.create` for the encoder."""
        names = ("width", "stem", "zero_init_residual", "pool", "dtype")
        return {"name": self.encoder} | {name: getattr(self, name) for name in names}

    def head(self) -> dict[str, Any]:
        """Returns the arguments of `models.Expander` but its dtype."""
        return dict(
            widths=self.expander,
            bias=self.expander_bias,
            hidden_norm=self.expander_norm,
            norm=self.embedding_norm,
        )


@dataclass(frozen=True)
class Optimizer:
    name: Literal["lars", "adamw", "sgd"] = "lars"
    base_lr: Positive[float] = 0.2  # for a batch of 256
    weight_decay: NotNegative[float] = 1e-6
    momentum: Annotated[NotNegative[float], below(1)] = 0.9  # lars, sgd
    trust_coefficient: Positive[float] = 1e-3  # lars, like the one below
    clip: bool = False  # the trust ratio, as in the CIFAR recipes
    warmup_epochs: NotNegative[float] = 10.0
    warmup_start: NotNegative[float] = 0.0  # learning rate of the first step
    end_scale: Annotated[NotNegative[float], at_most(1)] = 1e-3  # last rate over peak
    encoder_scale: Positive[float] = 1.0  # factor on the encoder's learning rate
    # Rate of each block of the encoder over that of the block above it.
    layer_decay: Annotated[Positive[float], at_most(1)] = 1.0
    frozen_epochs: NotNegative[float] = 0.0  # first ones, in which only the rest learns
    sharded: bool = False  # divides parameters and state over the devices (ZeRO)


@dataclass(frozen=True)
class Every:
    log_steps: Positive[int] = 100
    checkpoint_epochs: Positive[int] = 1
    profile_step: NotNegative[int] = 0  # step that is profiled; 0: none


@dataclass(frozen=True)
class Guard:
    """What a run, or the training of an evaluation, puts up with."""

    skipped_steps: Positive[int] = 10  # not finite, in a row; then it ends or goes back
    broken_images: Probability[float] = 0.01  # share of the files; more stop it
    stuck_seconds: NotNegative[float] = 120.0  # or 20 times the usual step; 0: for ever
    # A loss this far above its running mean, in running mean deviations, for ten steps
    # goes back once, as steps do that are not finite; 0: never.
    spike: NotNegative[float] = 50.0
    rerun_steps: NotNegative[int] = 0  # between steps computed twice, to compare; 0: no
    other_data: bool = False  # goes on although a checkpoint was made with other images


@dataclass(frozen=True)
class Evaluate:
    """By labels, which training itself never sees; each is off by default."""

    labels_per_class: tuple[Positive[int], ...] = (1, 5, 10)  # of the table at the end
    draws: NotNegative[int] = 0  # of labels for that table
    knn_epochs: NotNegative[int] = 0  # between accuracies of training neighbours
    probe: bool = False  # a linear classifier that learns beside the encoder


@dataclass(frozen=True)
class Prepare:
    """The task that writes a data set into the workdir, for fast reading."""

    shards: Positive[int] = 64  # files
    shorter_side: NotNegative[int] = 0  # of larger images, to shrink them; 0 keeps all
    quality: Annotated[int, between(0, 100)] = 0  # of JPEG; 0: kept, or 90


@dataclass(frozen=True)
class Config(Settings):
    task: Literal["pretrain", "prepare"] = "pretrain"
    seed: Seed = 0
    epochs: Positive[int] = 100
    method: str = "vicreg"  # or another of methods.METHODS
    # Term -> weight; a term that is left out has the weight that the method published.
    # Any method takes variance and covariance, too, of the embeddings; left out: zero.
    loss: dict[str, NotNegative[float]] = field(default_factory=dict)
    # Share of itself that a target (byol) keeps in a step; it rises to 1 by a cosine.
    target_momentum: Probability[float] = 0.99
    stop_gradient: bool = True  # simsiam: of the embedding that is predicted
    data: Data = field(default_factory=Data)
    augment: Augment = field(default_factory=Augment)
    model: Model = field(default_factory=Model)
    optimizer: Optimizer = field(default_factory=Optimizer)
    every: Every = field(default_factory=Every)
    guard: Guard = field(default_factory=Guard)
    evaluate: Evaluate = field(default_factory=Evaluate)
    prepare: Prepare = field(default_factory=Prepare)
    wandb: str = ""  # project of Weights & Biases, if any

    # May differ when a run is continued; anything else would make it another run.
    CHANGEABLE = (
        "epochs",
        "data.path",  # of the same images: they are compared
        "data.pipeline",  # all make the same bytes
        "every.",
        "guard.",
        "prepare.",
        "wandb",
        "evaluate.labels_per_class",
        "evaluate.draws",
        "evaluate.knn_epochs",
    )

    def mistakes(self) -> Iterator[str]:
        data, name, warmup = self.data, self.data.name, self.optimizer.warmup_epochs
        for field_name in ("blur", "solarize"):
            found = getattr(self.augment, field_name)
            if len(found) not in (2, data.views, len(data.sizes)):
                yield (
                    f"config.augment.{field_name} has a probability for each of 2"
                    " views, which are taken in turn, of all with the local ones, or of"
                    f" config.data.views ({data.views}); got {found}"
                )
        if not 2 <= data.sizes[-1] <= data.image_size:
            yield (
                "config.data.local_size must be from 2 to config.data.image_size"
                f" ({data.image_size}); got {data.sizes[-1]}"
            )
        channels = len(data.mean)
        if not 1 <= channels <= MOST_CHANNELS or channels != len(data.std):
            yield (
                "config.data.mean and config.data.std have one number per channel, 1 to"
                f" {MOST_CHANNELS}; got {channels} and {len(data.std)}"
            )
        elif channels not in (1, 3) and (coloured := self.augment.of_rgb()):
            zero = " ".join(f"--config.augment.{x}=0" for x in coloured)
            yield (
                f"config.augment.{' and '.join(coloured)} need RGB, and config.data"
                f".mean has {channels} channels; add {zero}"
            )
        parts = self.model.microbatches
        if data.batch_size % parts or data.batch_size < 2 * parts:
            yield (
                f"config.model.microbatches ({parts}) must divide config.data"
                f".batch_size ({data.batch_size}) into parts of 2 or more"
            )
        if self.model.expander[-1] < 2:
            yield (
                "config.model.expander must end in 2 or more; got"
                f" {self.model.expander}"
            )
        if self.model.second_expander and not self.model.second_encoder:
            yield (
                "config.model.second_expander is of a second branch, and there is none:"
                " config.model.second_encoder is empty"
            )
        if warmup >= self.epochs:  # by default it is a tenth
            shorter = max(self.epochs // 10, min(1, self.epochs - 1))
            yield (
                f"config.optimizer.warmup_epochs ({warmup:g}) must be less than"
                f" config.epochs ({self.epochs}); add"
                f" --config.optimizer.warmup_epochs={shorter}"
            )
        frozen = self.optimizer.frozen_epochs
        if frozen >= self.epochs:
            yield (
                f"config.optimizer.frozen_epochs ({frozen:g}) must be less than"
                f" config.epochs ({self.epochs}); the encoder would learn nothing"
            )
        if self.model.weights_expander and not self.model.weights:
            yield (
                "config.model.weights_expander takes the expander of"
                " config.model.weights, which is empty; give the weights to start from"
            )
        if name in NEEDS_PATH and not data.path:
            yield (
                f"config.data.path is empty; data.name {name!r} needs"
                f" {NEEDS_PATH[name]} there"
            )
        others = []
        if data.path and name in ("digits", "fake"):
            others = NEEDS_PATH
        elif ".npz" in data.path and name == "tfds":
            others = ["arrays"]
        elif "*" in data.path and name == "folder":
            others = ["tfrecord"]
        if others:
            yield (
                f"config.data.path is {data.path!r}, but data.name is {name!r}; did you"
                f" mean data.name={', '.join(others)}?"
            )
        if data.validation and name != "digits":
            yield (
                "config.data.validation is for the digits; for others give"
                " config.data.held_out, the share of the images to hold out"
            )
        if name == "tfds" and not data.dataset:
            yield (
                "config.data.dataset is empty; data.name 'tfds' needs the name of a"
                " data set there, such as imagenet2012"
            )


parse = Config.parse
