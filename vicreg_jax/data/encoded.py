"""Encoded images of any sizes: decoding and geometry on the host, by Pillow in threads.

Pillow's decoder and filters leave Python's lock, so threads scale; its results are what
torchvision's crops are made of. Colours are left to the device, or to `host_pixels`.
"""

import io
import os
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial

import numpy as np

from vicreg_jax import files
from vicreg_jax.data import host_pixels, views

CANVAS_AT_MOST = 512  # pixels; more would cost more memory than it saves time
BROKEN_AT_MOST = 0.01  # share of a data set; more than that is not an accident


class Encoded:
    """JPEG, PNG or other images, as a source of views.

    Args:
      read: index -> the bytes of an image; called from several threads.
      names: of the images, for messages; a sequence.
      labels: int [n], or None.
      classes: names of the labels.
      threads: that decode at once; by default as many as this process has cores.

    `broken` holds index -> reason of images that could not be read, `seconds` the time
    that each stage has taken, over the number of threads.

    Raises:
      ModuleNotFoundError: Pillow is not installed.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        names: Sequence[str],
        *,
        labels: np.ndarray | None = None,
        classes: Sequence[str] = (),
        threads: int | None = None,
    ):
        try:
            import PIL.Image
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "image files need Pillow, which is missing; run: pip install pillow"
            ) from error
        self._pil, self.read = PIL.Image, read
        self.names, self.labels, self.classes = names, labels, classes
        self.broken: dict[int, str] = {}
        self.broken_at_most = BROKEN_AT_MOST
        self.seconds = dict.fromkeys(("read", "decode", "resize", "colour"), 0.0)
        self._lock = threading.Lock()
        self.threads = threads or cores()
        self._threads = ThreadPoolExecutor(self.threads)

    def __len__(self) -> int:
        return len(self.names)

    def views(
        self,
        indices: np.ndarray,
        uniforms: np.ndarray,
        policies: Sequence[views.Policy],
        *,
        size: int,
        channels: int = 3,
        canvas: int = 0,
        colour: bool = False,
    ) -> tuple[np.ndarray, views.Parameters]:
        """Returns the crops, uint8 [b, v, size, size, c], and all parameters.

        With colour, they are the finished views: flipped, jittered and so on.

        With a canvas, returns uint8 [b, canvas, canvas, c] instead, one for all views
        of an image: what their boxes cover, at its own resolution, the boxes moved
        along. Cropping and resizing are then left to `pixels.render`. Where that does
        not fit, the canvas holds the finished crops side by side.

        An image that cannot be read is replaced by the next that can and noted in
        `broken`.

        Args:
          indices: int [b]; uniforms: float32 [b, v, views.NUMBERS]; policies: v.
          size: height and width of a view.
          canvas: 0, or height and width of a canvas, at least v * size.
          colour: not together with a canvas.

        Raises:
          ValueError: more than one in a hundred images are broken.
          files.Unreachable: the images' bucket refuses, or does not answer.
          ModuleNotFoundError: Numba is not installed, which colour needs.
        """
        indices = np.array(indices)
        b, v = uniforms.shape[:2]
        shape = (b, canvas, canvas) if canvas else (b, v, size, size)
        pictures = np.zeros((*shape, channels), np.uint8)
        how = size, [policy.interpolation for policy in policies]
        fill = self._fill_views if colour else self._fill_crops
        fill = partial(self._fill_canvas if canvas else fill, *how)
        parameters, rows = None, np.arange(b)
        while len(rows):
            images = list(self._threads.map(self._open, indices[rows].tolist()))
            sizes = np.array([im.size[::-1] if im else (1, 1) for im in images])
            found = views.parameters(uniforms[rows], sizes, policies)
            each = (views.Parameters(*row) for row in zip(*found, strict=True))
            outs = (pictures[row] for row in rows)
            jobs = indices[rows].tolist(), images, each, outs
            good = np.fromiter(self._threads.map(partial(self._cut, fill), *jobs), bool)
            parameters = found if parameters is None else parameters
            for whole, part in zip(parameters, found, strict=True):
                whole[rows] = part
            rows = rows[~good]
            self._refuse_many_broken()
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
          ValueError: an image cannot be read; a test leaves none out.
        """

        def one(index):
            try:
                image = _converted(self._header(self.read(index)), channels)
            except files.Unreachable:
                raise
            except Exception as error:  # whatever a damaged file makes Pillow raise
                raise ValueError(
                    f"{self.names[index]} cannot be read ({error}); mend or remove it"
                ) from error
            width, height = image.size
            least = min(width, height)
            sides = (shorter * width // least, shorter * height // least)
            image = image.resize(sides, self._pil.Resampling.BILINEAR)
            left, top = (round((side - size) / 2) for side in sides)
            image = image.crop((left, top, left + size, top + size))
            return np.asarray(image).reshape(size, size, channels)

        return np.stack(list(self._threads.map(one, np.asarray(indices).tolist())))

    def canvas(self, size: int) -> int:
        """Returns a canvas that nine in ten of the images fit into, if that is small.

        It has room for two finished views of this size. Judged by some of the headers.
        """
        images = list(self._threads.map(self._open, self._some()))
        sides = [max(image.size) for image in images if image]
        wanted = np.percentile(sides, 90) if sides else CANVAS_AT_MOST
        wanted = min(CANVAS_AT_MOST, 32 * int(np.ceil(wanted / 32)))
        return max(2 * size, wanted)

    def check(self) -> None:
        """Raises ValueError where more than a quarter of some images are broken."""

        def one(index):
            try:
                self.whole(index)
            except files.Unreachable:
                raise
            except Exception as error:  # whatever a damaged file makes Pillow raise
                self._note(index, error)

        some = self._some()
        list(self._threads.map(one, some))
        if len(self.broken) > len(some) / 4:
            self._refuse(len(some))

    def _some(self):
        return np.linspace(0, len(self) - 1, min(len(self), 64)).astype(int).tolist()

    def whole(self, index: int, *, channels: int = 3) -> np.ndarray:
        """Returns an image as it is, uint8 [h, w, c]."""
        image = _converted(self._header(self.read(index)), channels)
        return np.asarray(image).reshape(*image.size[::-1], channels)

    def stack(self, *, channels: int = 3) -> np.ndarray:
        """Returns all images, which are of one size, uint8 [n, h, w, c]."""

        def one(index):
            return self.whole(index, channels=channels)

        return np.stack(list(self._threads.map(one, range(len(self)))))

    def _header(self, data):
        """Returns an image that is yet to be decoded, if it is of a sane size."""
        image = self._pil.open(io.BytesIO(data))
        most = self._pil.MAX_IMAGE_PIXELS
        if most and image.width * image.height > most:
            raise ValueError(
                f"{image.width} x {image.height} pixels are more than the {most} that"
                " Pillow takes for sane"
            )
        return image

    def _open(self, index):
        """Reads an image and its header, or notes that it is broken."""
        try:
            if index not in self.broken:
                with self._timed("read"):
                    data = self.read(index)
                return self._header(data)
        except files.Unreachable:  # to replace its images would change the training
            raise
        except Exception as error:  # whatever a damaged file makes Pillow raise
            self._note(index, error)

    def _cut(self, fill, index, image, view, out):
        """Decodes an image, writes its part of a batch; returns whether it could."""
        if image is None:
            return False
        try:
            with self._timed("decode"):
                pixels = _converted(image, out.shape[-1])
        except Exception as error:
            self._note(index, error)
            return False
        fill(pixels, view, out)
        image.close()  # lets go of its own, for the rest of the batch is to come
        return True

    @contextmanager
    def _timed(self, stage):
        begin = time.perf_counter()
        yield
        with self._lock:
            self.seconds[stage] += (time.perf_counter() - begin) / self.threads

    def _fill_crops(self, size, filters, image, view, out):
        with self._timed("resize"):
            for box, how, crop in zip(view.box, filters, out, strict=True):
                self._crop(image, box, how, crop)

    def _fill_views(self, size, filters, image, view, out):
        """Writes the finished views."""
        pixels = np.asarray(image).reshape(*image.size[::-1], out.shape[-1])
        for i, how in enumerate(filters):
            one = views.Parameters(*(x[i] for x in view))
            with self._timed("resize"):
                picture = host_pixels.crop_resize(
                    pixels, one.box, size=size, interpolation=how, flip=one.flip
                )
            with self._timed("colour"):
                host_pixels.finish(host_pixels.recolour(picture, one), out[i])

    def _fill_canvas(self, size, filters, image, view, out):
        """Copies what the boxes cover; makes them boxes of the canvas."""
        boxes = view.box
        top, left = boxes[:, :2].min(axis=0).astype(int).tolist()
        bottom, right = (boxes[:, :2] + boxes[:, 2:]).max(axis=0).astype(int).tolist()
        height, width = bottom - top, right - left
        with self._timed("resize"):
            if height <= len(out) and width <= len(out):
                covered = image.crop((left, top, right, bottom))
                out[:height, :width] = np.asarray(covered).reshape(height, width, -1)
                boxes[:, :2] -= top, left
                return
            for i, (box, how) in enumerate(zip(boxes, filters, strict=True)):
                self._crop(image, box, how, out[:size, i * size : (i + 1) * size])
                box[:] = 0, i * size, size, size

    def _crop(self, image, box, interpolation, out):
        top, left, height, width = box.astype(int).tolist()
        crop = image.crop((left, top, left + width, top + height))
        crop = crop.resize(
            out.shape[1::-1], self._pil.Resampling[interpolation.upper()]
        )
        out[...] = np.asarray(crop).reshape(out.shape)

    def _note(self, index, error):
        reason = str(error).partition(" <_io.")[0]
        self.broken[index] = f"{type(error).__name__}: {reason}"

    def _refuse_many_broken(self):
        if len(self.broken) > max(1, self.broken_at_most * len(self)):
            self._refuse(len(self))

    def _refuse(self, tried):
        some = [f"{self.names[i]} ({self.broken[i]})" for i in sorted(self.broken)[:3]]
        raise ValueError(
            f"{len(self.broken)} of {tried} images cannot be read, such as"
            f" {', '.join(some)}; mend or remove them"
        )


def cores() -> int:
    """Returns how many cores this process may use."""
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _converted(image, channels):
    if image.mode.startswith(("I", "F")):  # Pillow would clip them to 0..255
        raise ValueError(f"pixels of mode {image.mode} are not of 8 bits")
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        return image.convert(mode)
    image.load()
    return image
