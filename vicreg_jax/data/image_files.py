"""Image files of any sizes: decoding and geometry on the host, by Pillow in threads.

Pillow's decoder and filters leave Python's lock, so threads scale; its results are what
torchvision's crops are made of. Colours are left to the device, or to `on_host`.
"""

import functools
import os
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np

from vicreg_jax import files
from vicreg_jax.config import Config, Guard
from vicreg_jax.data.augment import draw, on_host
from vicreg_jax.data.decoding import (
    as_array,
    converted,
    open_image,
    pillow,
    pixels_of,
    reason_of,
)
from vicreg_jax.data.labels import Labels
from vicreg_jax.data.source import How, check_channels, digest_of_labels
from vicreg_jax.refusals import Refusal, Unusable

__all__ = [
    "BROKEN_AT_MOST",
    "ImageFiles",
    "cores",
    "covered",
    "digests",
]

CANVAS_AT_MOST = 512  # pixels; more would cost more memory than it saves time
# Share of a data set: more than that is not an accident.
BROKEN_AT_MOST = Guard.broken_images
READERS = 16  # threads that ask a disk for sizes


class ImageFiles:
    """JPEG, PNG or other images, as a `Source`.

    Args:
      read: index -> the bytes of an image; called from several threads.
      names: of the images, for messages; a sequence.
      labels: int [n], or None.
      read_label: instead of them, index -> the label of an image, see `Labels`.
      classes: names of the labels.
      threads: that decode at once; by default as many as this process has cores.
      skipped: reason -> how many files were passed over.
      known: returns digests of the files, see `Source.fingerprint`.
      paths: of the files on a disk, where an image is a file and `read` reads it.

    Raises:
      NotInstalled: Pillow is not installed.
    """

    array = channels = None  # they become what is asked for
    in_order = False

    def __init__(
        self,
        read: Callable[[int], bytes],
        names: Sequence[str],
        *,
        labels: np.ndarray | None = None,
        read_label: Callable[[int], int] | None = None,
        classes: Sequence[str] = (),
        threads: int | None = None,
        skipped: Mapping[str, int] | None = None,
        known: Callable[[], Mapping[str, str]] = dict,
        paths: Sequence[str] | None = None,
    ):
        self._pil, self._known = pillow(), functools.cache(known)
        self.read, self.paths = read, paths
        self.names, self.labels, self.classes = names, labels, classes
        self.skipped = dict(skipped or {})
        self.broken: dict[int, str] = {}
        self.broken_at_most = BROKEN_AT_MOST
        # Of all threads, over their number.
        self.seconds = dict.fromkeys(("read", "decode", "resize", "colour"), 0.0)
        self._lock = threading.Lock()
        self.threads = threads or cores()
        self._threads = ThreadPoolExecutor(self.threads)
        if read_label:
            self.labels = Labels(read_label, names, classes, self.threads, self._note)

    def __len__(self) -> int:
        return len(self.names)

    def fingerprint(self) -> Mapping[str, str]:
        """Returns digests of the files and the labels: see `Source`."""
        return {**self._known(), **digest_of_labels(self.labels)}

    def check(self, config: Config) -> None:
        """Raises Refusal where more than a quarter of some images are broken.

        From then on the config's share of all images may be.
        """
        self.broken_at_most = config.guard.broken_images

        def one(index):
            with self._noting(index):
                self.whole(index)

        some = self._some()
        list(self._threads.map(one, some))
        if len(self.broken) > len(some) / 4:
            self._refuse(len(some))

    def how(self, config: Config, *, accelerator: bool) -> How:
        """Returns how the config wants views of these images.

        Decoding leaves the host more time if the accelerator does the resizing.
        Rotation and shear would show what surrounds a crop, so their images are cropped
        on the host.
        """
        data, policy = config.data, config.augment
        turned, finished = policy.rotation or policy.shear, policy.colour == "host"
        if finished and turned:
            raise Refusal(
                "config.augment.colour 'host' cannot rotate or shear; set both to 0, or"
                " augment.colour=device"
            )
        if finished and data.resize == "device":
            raise Refusal(
                "config.augment.colour 'host' needs crops that are resized there too;"
                " set data.resize=host, or augment.colour=device"
            )
        if turned and data.resize == "device":
            raise Refusal(
                "config.data.resize 'device' would show what surrounds a crop where"
                " augment.rotation or augment.shear turns it; set data.resize=host"
            )
        size, channels = data.image_size, len(data.mean)
        check_channels(self, channels)
        how = How("crops", size, channels, 0, data.sizes if data.local_views else ())
        if finished:
            return how._replace(kind="finished")
        free = accelerator and not turned and data.resize == "auto"
        if free or data.resize == "device":
            canvas = self._canvas(_least_canvas(data.sizes, data.views * size))
            return how._replace(kind="whole", canvas=canvas)
        return how

    def views(
        self,
        indices: np.ndarray,
        uniforms: np.ndarray,
        policies: Sequence[draw.Policy],
        how: How,
    ) -> tuple[np.ndarray, draw.Parameters]:
        """Returns the images of a batch and all parameters: see `Source`.

        A "whole" image is a canvas for all its views: what their boxes cover, at its
        own resolution, the boxes moved along. Where that does not fit, the canvas holds
        the crops side by side in rows, for which it must have room.

        An image that cannot be read is replaced by the next that can and noted in
        `broken`.

        Raises:
          Refusal: too many images are broken.
          files.Unreachable: the images' bucket refuses, or does not answer.
          NotInstalled: Numba is not installed, which finished views need.
        """
        indices = np.array(indices)
        b, v = uniforms.shape[:2]
        pictures = np.zeros((b, *how.shape(v)), np.uint8)
        cut = functools.partial(self._cut, self._filler(policies, how), how.channels)
        parameters, rows = None, np.arange(b)
        while len(rows):
            images = list(self._threads.map(self._open, indices[rows].tolist()))
            sizes = np.array([im.size[::-1] if im else (1, 1) for im in images])
            found = draw.parameters(uniforms[rows], sizes, policies)
            each = (draw.Parameters(*row) for row in zip(*found, strict=True))
            outs = (pictures[row] for row in rows)
            jobs = indices[rows].tolist(), images, each, outs
            good = list(self._threads.map(cut, *jobs))
            parameters = parameters or found
            for whole, part in zip(parameters, found, strict=True):
                whole[rows] = part
            rows = rows[np.logical_not(good)]
            allowed = max(1, self.broken_at_most * len(self))
            if len(self.broken) > min(allowed, len(self) - 1):  # one stands for them
                self._refuse(len(self))
            indices[rows] = (indices[rows] + 1) % len(self)
        return pictures, parameters

    def chosen(self, indices: np.ndarray) -> np.ndarray:
        """Returns which images stand for these, as far as is known: see `views`."""
        found = []
        for index in np.asarray(indices).tolist():
            while index in self.broken:
                index = (index + 1) % len(self)
            found.append(index)
        return np.array(found, np.int64)

    def centres(
        self, indices: np.ndarray, *, size: int, shorter: int, channels: int = 3
    ) -> np.ndarray:
        """Returns the centres of images, uint8 [b, size, size, c], as for tests.

        As torchvision's Resize(shorter) and CenterCrop(size) do it: bilinear and
        antialiased.

        Raises:
          Refusal: an image cannot be read; a test leaves none out.
        """

        def one(index):
            with self._refusing(index):
                image = converted(open_image(self.read(index)), channels)
            width, height = image.size
            least = min(width, height)
            sides = (shorter * width // least, shorter * height // least)
            image = image.resize(sides, self._pil.Resampling.BILINEAR)
            left, top = (round((side - size) / 2) for side in sides)
            return as_array(image.crop((left, top, left + size, top + size)), channels)

        return np.stack(list(self._threads.map(one, np.asarray(indices).tolist())))

    def part(
        self,
        pixels: np.ndarray,
        view: draw.Parameters,
        policies: Sequence[draw.Policy],
        how: How,
    ) -> tuple[np.ndarray, np.ndarray]:
        """Returns the part that a decoded image has in a batch, and its boxes there.

        Args:
          pixels: uint8 [h, w, c].
          view: its own parameters, arrays [v, ...]. The rest: see `views`.
        """
        view = view._replace(box=view.box.copy())
        out = np.zeros(how.shape(len(policies)), np.uint8)
        if how.kind != "finished":  # which needs no image of Pillow's
            pixels = pixels.squeeze(-1) if how.channels == 1 else pixels
            pixels = self._pil.fromarray(pixels)
        self._filler(policies, how)(pixels, view, out)
        return out, view.box

    def _filler(self, policies, how):
        """Returns what writes it: a function of an image, its parameters and there."""
        fills = {
            "whole": self._fill_canvas,
            "crops": self._fill_crops,
            "finished": self._fill_views,
        }
        filters = [policy.interpolation for policy in policies]
        return functools.partial(fills[how.kind], how, filters)

    def _canvas(self, least):
        """Returns a canvas that nine in ten of the images fit into, if that is small.

        It has room for the finished views, side by side. Judged by some of the headers.
        """
        images = list(self._threads.map(self._open, self._some()))
        sides = [max(image.size) for image in images if image]
        wanted = np.percentile(sides, 90) if sides else CANVAS_AT_MOST
        wanted = min(CANVAS_AT_MOST, 32 * int(np.ceil(wanted / 32)))
        return max(least, wanted)

    def _some(self):
        return np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int).tolist()

    def whole(self, index: int, *, channels: int = 3) -> np.ndarray:
        """Returns an image as it is, uint8 [h, w, c]."""
        return pixels_of(open_image(self.read(index)), channels)

    def stack(self, *, channels: int = 3) -> np.ndarray:
        """Returns all images, which are of one size, uint8 [n, h, w, c].

        Raises:
          Refusal: an image cannot be read.
        """

        def one(index):
            with self._refusing(index):
                return self.whole(index, channels=channels)

        return np.stack(list(self._threads.map(one, range(len(self)))))

    def _open(self, index):
        """Returns an image whose header has been read, or None for a broken one."""
        if index in self.broken:
            return None
        with self._noting(index):
            with self._timed("read"):
                data = self.read(index)
            return open_image(data)

    def _cut(self, fill, channels, index, image, view, out):
        """Decodes an image, writes its part of a batch; returns whether it could."""
        if image is None:
            return False
        with self._noting(index), self._timed("decode"):
            pixels = converted(image, channels)
        if index in self.broken:
            return False
        fill(pixels, view, out)
        image.close()  # lets go of its own, for the rest of the batch is to come
        return True

    @contextmanager
    def _noting(self, index):
        """Notes an image as broken instead of raising what it makes Pillow raise."""
        try:
            yield
        except files.Unreachable:  # to replace its images would change the training
            raise
        except Exception as error:
            self._note(index, error)

    def _note(self, index, error):
        self.broken[index] = reason_of(error)

    @contextmanager
    def _refusing(self, index):
        """Raises Refusal instead of what an image makes Pillow raise."""
        try:
            yield
        except files.Unreachable:
            raise
        except Exception as error:  # whatever a damaged file makes Pillow raise
            raise Refusal(
                f"{self.names[index]} cannot be read ({error}); mend or remove it"
            ) from error

    @contextmanager
    def _timed(self, stage):
        begin = time.perf_counter()
        yield
        with self._lock:
            self.seconds[stage] += (time.perf_counter() - begin) / self.threads

    def _fill_crops(self, how, filters, image, view, out):
        with self._timed("resize"):
            crops = zip(view.box, filters, how.views_in(out), strict=True)
            for box, interpolation, crop in crops:
                self._crop(image, box, interpolation, crop)

    def _fill_views(self, how, filters, image, view, out):
        """Writes the finished views of an image, or of its pixels."""
        pixels = as_array(image, how.channels)
        for i, finished in enumerate(how.views_in(out)):
            one = draw.Parameters(*(x[i] for x in view))
            with self._timed("resize"):
                picture = on_host.crop_resize(
                    pixels,
                    one.box,
                    size=len(finished),
                    interpolation=filters[i],
                    flip=one.flip,
                )
            with self._timed("colour"):
                on_host.finish(on_host.recolour(picture, one), finished)

    def _fill_canvas(self, how, filters, image, view, out):
        """Copies what the boxes cover; makes them boxes of the canvas."""
        boxes = view.box
        top, left, height, width = covered(boxes).tolist()
        with self._timed("resize"):
            if height <= len(out) and width <= len(out):
                part = image.crop((left, top, left + width, top + height))
                out[:height, :width] = as_array(part, out.shape[-1])
                boxes[:, :2] -= top, left
                return
            sizes = how.sizes or (how.size,) * len(boxes)
            places = zip(boxes, filters, sizes, _rows(sizes, len(out)), strict=True)
            for box, interpolation, size, (top, left) in places:
                room = out[top : top + size, left : left + size]
                self._crop(image, box, interpolation, room)
                box[:] = top, left, size, size

    def _crop(self, image, box, interpolation, out):
        top, left, height, width = box.astype(int).tolist()
        crop = image.crop((left, top, left + width, top + height))
        how = self._pil.Resampling[interpolation.upper()]
        crop = crop.resize(out.shape[1::-1], how)
        out[...] = as_array(crop, out.shape[-1])

    def _refuse(self, tried):
        some = [f"{self.names[i]} ({self.broken[i]})" for i in sorted(self.broken)[:3]]
        raise Refusal(
            f"{len(self.broken)} of {tried} images cannot be read, such as"
            f" {', '.join(some)}; mend or remove them"
        )


def covered(boxes: np.ndarray) -> np.ndarray:
    """Returns the least box that covers boxes [..., v, 4], int32 [..., 4].

    All are top, left, height, width in whole pixels.
    """
    corner = boxes[..., :2].min(axis=-2)
    end = (boxes[..., :2] + boxes[..., 2:]).max(axis=-2)
    return np.concatenate([corner, end - corner], axis=-1).astype(np.int32)


def _rows(sizes, width):
    """Returns top and left of squares, the largest first, in rows of some width."""
    found, top, left, row = [], 0, 0, sizes[0]
    for size in sizes:
        if left + size > width:
            top, left, row = top + row, 0, size
        found.append((top, left))
        left += size
    return found


def _least_canvas(sizes, least):
    """Returns the side, at least `least`, of a canvas with room for such squares."""
    while _rows(sizes, least)[-1][0] + sizes[-1] > least:
        least += 1
    return least


def digests(paths: Sequence[str], root: str) -> dict[str, str]:
    """Returns digests of the names below `root` of files, and on a disk of their sizes.

    Raises:
      Unusable: a file is no longer there.
    """
    start, each = len(os.path.join(root, "")), 4096
    names = "\n".join(path[start:] for path in paths)
    named = {"names of files": files.digest(os.fsencode(names))}
    if files.in_bucket(root):  # which lists no sizes
        return named

    def some(first):
        return [os.path.getsize(path) for path in paths[first : first + each]]

    try:
        with ThreadPoolExecutor(READERS) as threads:  # on a network disk they wait
            found = list(threads.map(some, range(0, len(paths), each)))
    except OSError as error:
        raise Unusable(f"{error.filename}: {error.strerror}") from error
    return named | {"sizes of files": files.digest(np.concatenate(found).data)}


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()
