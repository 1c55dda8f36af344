"""A folder of image files: decoding and geometry on the host, by Pillow in threads.

Pillow's decoder and filters leave Python's lock, so threads scale; its results are what
torchvision's crops are made of.
"""

import io
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from vicreg_jax.data import views

ENDINGS = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".ppm", ".tif", ".tiff", ".gif")
BROKEN_AT_MOST = 0.01  # share of a data set; more than that is not an accident


class Files:
    """The images of a folder, of any sizes, as a source of views.

    Args:
      root: class folders of images (`root/CLASS/**`, classes in alphabetic order, as
        torchvision's ImageFolder has them), or images without classes.
      threads: that decode at once; by default as many as this process has cores.

    Raises:
      FileNotFoundError: there is no such folder.
      ValueError: it holds no images.
      ModuleNotFoundError: Pillow is not installed.
    """

    def __init__(self, root: str | os.PathLike, *, threads: int | None = None):
        try:
            import PIL.Image
        except ModuleNotFoundError as error:
            raise ModuleNotFoundError(
                "image files need Pillow, which is missing; run: pip install pillow"
            ) from error
        self._pil = PIL.Image
        root = Path(root)
        if not root.is_dir():
            raise FileNotFoundError(f"data.path: there is no folder {str(root)!r}")
        self.paths, self.labels, self.classes = _listing(root)
        if not self.paths:
            raise ValueError(
                f"data.path: no images below {root}; expected files ending in"
                f" {', '.join(ENDINGS)}"
            )
        self.broken: dict[int, str] = {}  # index -> reason
        self._threads = ThreadPoolExecutor(threads or _cores())

    def __len__(self) -> int:
        return len(self.paths)

    def views(
        self,
        indices: np.ndarray,
        uniforms: np.ndarray,
        policies: Sequence[views.Policy],
        *,
        size: int,
        channels: int = 3,
    ) -> tuple[np.ndarray, views.Parameters]:
        """Returns the crops, uint8 [b, v, size, size, c], and all parameters.

        A file that cannot be read is replaced by the next that can, in the order of
        the paths, and noted in `broken`.

        Args:
          indices: int [b]; uniforms: float32 [b, v, views.NUMBERS]; policies: v.

        Raises:
          ValueError: more than one in a hundred files are broken.
        """
        indices = np.array(indices)
        crops = np.empty((*uniforms.shape[:2], size, size, channels), np.uint8)
        parameters, rows = None, np.arange(len(indices))
        while len(rows):
            images = list(self._threads.map(self._open, indices[rows].tolist()))
            sizes = np.array([im.size[::-1] if im else (1, 1) for im in images])
            found = views.parameters(uniforms[rows], sizes, policies)
            parameters = found if parameters is None else parameters
            for whole, part in zip(parameters, found, strict=True):
                whole[rows] = part
            jobs = zip(indices[rows].tolist(), images, found.box, rows, strict=True)
            good = self._threads.map(lambda job: self._cut(crops, *job), jobs)
            rows = rows[~np.fromiter(good, bool)]
            self._refuse_many_broken()
            indices[rows] = (indices[rows] + 1) % len(self)
        return crops, parameters

    def whole(self, index: int, *, channels: int = 3) -> np.ndarray:
        """Returns an image as it is, uint8 [h, w, c]."""
        image = self._pil.open(self.paths[index]).convert(_mode(channels))
        return np.asarray(image).reshape(*image.size[::-1], channels)

    def _open(self, index):
        """Reads a file and its header, or notes that it is broken."""
        try:
            if index not in self.broken:
                return self._pil.open(io.BytesIO(self.paths[index].read_bytes()))
        except Exception as error:  # whatever a damaged file makes Pillow raise
            self._note(index, error)

    def _cut(self, crops, index, image, boxes, row):
        """Decodes an image, writes its crops; returns whether that was possible."""
        if image is None:
            return False
        _, views, height, width, channels = crops.shape
        try:
            pixels = image.convert(_mode(channels))
        except Exception as error:
            self._note(index, error)
            return False
        image.close()  # lets go of its own, for the rest of the batch is to come
        for view, (top, left, h, w) in enumerate(boxes.astype(int).tolist()):
            crop = pixels.crop((left, top, left + w, top + h))
            crop = crop.resize((width, height), self._pil.Resampling.BICUBIC)
            crops[row, view] = np.asarray(crop).reshape(height, width, channels)
        return True

    def _note(self, index, error):
        reason = str(error).partition(" <_io.")[0]
        self.broken[index] = f"{type(error).__name__}: {reason}"

    def _refuse_many_broken(self):
        if len(self.broken) > max(1, BROKEN_AT_MOST * len(self)):
            names = ", ".join(str(self.paths[i]) for i in sorted(self.broken)[:3])
            raise ValueError(
                f"{len(self.broken)} of {len(self)} image files cannot be read, such as"
                f" {names}; mend or remove them"
            )


def _cores():
    if hasattr(os, "sched_getaffinity"):  # not on macOS
        return len(os.sched_getaffinity(0))
    return os.cpu_count()


def _mode(channels):
    return "L" if channels == 1 else "RGB"


def _listing(root):
    """Returns paths, labels (None without class folders) and class names."""
    classes = sorted(entry.name for entry in os.scandir(root) if entry.is_dir())
    paths, labels = [], []
    for label, name in enumerate(classes):
        found = _images(root / name)
        paths += found
        labels += [label] * len(found)
    if paths:
        return paths, np.array(labels), classes
    return _images(root), None, []


def _images(folder):
    found = [
        Path(parent) / name
        for parent, _, names in os.walk(folder, followlinks=True)
        for name in names
        if name.lower().endswith(ENDINGS)
    ]
    return sorted(found)
