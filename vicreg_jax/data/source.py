"""What a source of images is, whatever it reads; no randomness, no devices."""

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np

from vicreg_jax import files
from vicreg_jax.config import Config
from vicreg_jax.data.augment import draw
from vicreg_jax.data.labels import checked
from vicreg_jax.refusals import Refusal, one_line

__all__ = [
    "IN_MEMORY",
    "PIXELS",
    "Arrays",
    "How",
    "Source",
    "Splits",
    "as_source",
    "check_channels",
    "count_classes",
    "describe",
    "digest_of_labels",
]

PIXELS = ("uint8", "uint16")  # from 0 to the largest of the type, which is 1
IN_MEMORY = 2**30  # bytes of images that are decoded once, and held by every device


class How(NamedTuple):
    """How a source gives views: what is left to the device."""

    kind: str  # see `batches.Batch`
    size: int  # height and width of a view
    channels: int = 3
    canvas: int = 0  # height and width of "whole" images of different sizes
    sizes: tuple[int, ...] = ()  # height and width of each view, where they differ

    def shape(self, views: int) -> tuple[int, ...]:
        """Returns the shape of what an image of files has in a batch."""
        if self.kind == "whole":
            return self.canvas, self.canvas, self.channels
        if self.sizes:  # one after the other
            return (self.channels * sum(size**2 for size in self.sizes),)
        return views, self.size, self.size, self.channels

    def views_in(self, parts: Any) -> list[Any]:
        """Returns the views [..., s, s, c] in arrays [..., *shape] of NumPy or JAX."""
        if not self.sizes:
            return [parts[..., i, :, :, :] for i in range(parts.shape[-4])]
        found, begin = [], 0
        for size in self.sizes:
            end = begin + self.channels * size**2
            shape = (*parts.shape[:-1], size, size, self.channels)
            found.append(parts[..., begin:end].reshape(shape))
            begin = end
        return found


@runtime_checkable
class Source(Protocol):
    """Images with all that training and evaluations ask of them.

    `Arrays` and `image_files.ImageFiles` are the two there are.
    """

    labels: Any  # int [n], where there are any, see `labels`; indexed by int arrays
    classes: Sequence[str]  # names of the labels, perhaps none
    names: Sequence[str] | None  # of the files; None where images have none
    array: np.ndarray | None  # [n, h, w, c] of PIXELS, where all images are one array
    read: Callable[[int], bytes] | None  # index -> an image's file; None: has no files
    channels: int | None  # None where images become what is asked for
    in_order: bool  # whether they come one after the other alone: see `streams`
    seconds: Mapping[str, float]  # that each stage of reading has taken so far
    broken: Mapping[int, str]  # index -> reason of what could not be read so far
    skipped: Mapping[str, int]  # reason -> how many files are no part of it

    def __len__(self) -> int: ...

    def fingerprint(self) -> Mapping[str, str]:
        """Returns what tells these data from others: digests by what they are of.

        Where they lie is no part of it.
        """

    def check(self, config: Config) -> None:
        """Raises Refusal where some images are not what the config describes."""

    def how(self, config: Config, *, accelerator: bool) -> How:
        """Returns how the config wants the views of each image.

        Args:
          accelerator: whether the device has more time than the host.

        Raises:
          Refusal: these images do not allow it.
        """

    def views(
        self,
        indices: np.ndarray,
        uniforms: np.ndarray,
        policies: Sequence[draw.Policy],
        how: How,
    ) -> tuple[np.ndarray, draw.Parameters]:
        """Returns the images of a batch, see `batches.Batch`, and what to do to them.

        Args:
          indices: int [b].
          uniforms: float32 [b, v, draw.NUMBERS].
          policies: one per view.
        """

    def chosen(self, indices: np.ndarray) -> np.ndarray:
        """Returns which images stand for these, so far as some are broken: int [b]."""

    def centres(
        self, indices: np.ndarray, *, size: int, shorter: int, channels: int
    ) -> np.ndarray:
        """Returns images as an evaluation sees them, [b, h, w, c] of PIXELS.

        Args:
          size, shorter: of images of any size, the side of the centre that is cut out
            and the shorter side of the image before that. Others are as they are.

        Raises:
          Refusal: an image cannot be read; an evaluation leaves none out.
        """


class Splits(NamedTuple):
    """Training split, and a test split where there is one."""

    train: Source
    test: Source | None


class Arrays:
    """Images of one size, whose pixels are there for the asking: a `Source`.

    Args:
      images: a NumPy array or memory map, uint8 or uint16 [n, h, w, c]; or anything
        with a length that an integer array indexes: images[indices] -> [b, h, w, c].
      labels: int [n], -1 for an image without one; or None.
      classes: names of the labels.

    Raises:
      Refusal: images or labels are something else.
    """

    names = read = None
    in_order = False

    def __init__(
        self,
        images: Any,
        labels: np.ndarray | None = None,
        *,
        classes: Sequence[str] = (),
    ):
        self.images, self.classes = images, classes
        self.array = images if isinstance(images, np.ndarray) else None
        self.dtype, self.shape = _checked_kind(images)
        self.channels = self.shape[-1]
        self.labels = None
        if labels is not None:
            self.labels = checked(labels, len(self), classes)
        self.seconds, self.broken, self.skipped = {}, {}, {}

    def __len__(self) -> int:
        return self.shape[0]

    def fingerprint(self) -> Mapping[str, str]:
        """Returns digests of the labels and of the pixels: all, up to 1 GiB of them.

        Of more pixels, and of what is only indexed, it is those of some images.
        """
        images, count = self.array, len(self)
        if images is None or images.nbytes > IN_MEMORY:
            images = self.images[np.linspace(0, count - 1, min(count, 256)).astype(int)]
        shape = json.dumps(self.shape).encode()
        pixels = files.digest(shape, np.ascontiguousarray(images).reshape(-1).data)
        return {"pixels": pixels} | digest_of_labels(self.labels)

    def check(self, config: Config) -> None:
        channels = len(config.data.mean)
        if self.channels != channels:
            raise Refusal(
                f"expected images [n, h, w, {channels}], as config.data.mean has"
                f" {channels} channel(s); got {self.dtype} {self.shape}"
            )

    def how(self, config: Config, *, accelerator: bool) -> How:
        del accelerator  # the device crops in any case
        if config.augment.colour == "host":
            raise Refusal(
                "config.augment.colour 'host' is for image files (data.name=folder,"
                " prepared, tfrecord, or tfds of any sizes); data.name"
                f" {config.data.name!r} gives arrays, whose colours the device changes"
            )
        held = self.array is not None and self.array.nbytes <= IN_MEMORY
        return How("held" if held else "whole", config.data.image_size, self.channels)

    def views(
        self,
        indices: np.ndarray,
        uniforms: np.ndarray,
        policies: Sequence[draw.Policy],
        how: How,
    ) -> tuple[np.ndarray, draw.Parameters]:
        held = how.kind == "held"
        images = indices.astype(np.int32) if held else self.images[indices]
        return images, draw.parameters(uniforms, np.array(self.shape[1:3]), policies)

    def chosen(self, indices: np.ndarray) -> np.ndarray:
        return indices

    def centres(
        self, indices: np.ndarray, *, size: int, shorter: int, channels: int
    ) -> np.ndarray:
        del size, shorter, channels
        return self.images[indices]


def as_source(given: Any) -> Source:
    """Returns a source: the one given, or an array or whatever can be indexed as one.

    Labels and classes are those that it has as attributes.

    Raises:
      Refusal: it is neither.
    """
    if isinstance(given, Source):
        return given
    labels, classes = getattr(given, "labels", None), getattr(given, "classes", ())
    return Arrays(given, labels, classes=classes)


def check_channels(source: Source, channels: int) -> None:
    """Raises Refusal where an encoder of so many channels cannot see the images."""
    if source.channels is None and channels not in (1, 3):
        raise Refusal(
            f"image files are read as RGB or grey; {channels} channels, one for each"
            " number of data.mean, need arrays (data.name=arrays, or source=)"
        )
    if source.channels not in (None, channels):
        raise Refusal(
            f"the encoder takes images of {channels} channel(s); those of the data"
            f" have {source.channels}"
        )


def describe(source: Source) -> str:
    """Returns in words how many images there are, and what was left out."""
    words = f"{len(source):,} images"
    if source.in_order:
        words += " an epoch, as they come"
    if source.labels is not None and len(source.classes):
        words += f" in {len(source.classes):,} classes"
    left = ", ".join(f"{count:,} {why}" for why, count in source.skipped.items())
    return f"{words} (left out: {left})" if left else words


def digest_of_labels(labels: Any) -> dict[str, str]:
    """Returns a digest of labels that are there at once, not read one by one."""
    if not isinstance(labels, np.ndarray):
        return {}
    content = np.ascontiguousarray(labels, np.int64).reshape(-1).data
    return {"labels": files.digest(json.dumps(labels.shape).encode(), content)}


def count_classes(source: Source) -> int:
    """Returns how many classes the labels have, the empty ones of a folder too."""
    return len(source.classes) or int(np.asarray(source.labels).max()) + 1


def _checked_kind(images):
    """Returns dtype and (n, h, w, c) of what gives [b, h, w, c] for indices [b]."""
    kind = type(images).__name__
    expected = (
        "expected images of uint8 or uint16 [n, h, w, c]: a NumPy array, or what has a"
        " length and is indexed by an array of integers"
    )
    try:
        count = len(images)
        if not count:
            raise Refusal(f"there are no images in the {kind}; {expected}")
        sample = images[np.arange(1)]
        dtype, shape = sample.dtype, (count, *sample.shape[1:])
    except (TypeError, AttributeError, KeyError) as error:
        raise Refusal(f"{expected}; got a {kind}: {one_line(error)}") from error
    if len(shape) != 4 or dtype not in PIXELS or 0 in shape:
        raise Refusal(f"{expected}; got {dtype} {shape}")
    return dtype, shape
