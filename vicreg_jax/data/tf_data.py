"""Image files read and decoded by tf.data: the bytes of `ImageFiles.views`, in order.

The threads of a process share Python's lock, of which an image needs a part of a
millisecond. Here TensorFlow reads files and decodes what is a plain JPEG, and Python
plans a step and draws its parameters for all images at once. What remains is done by
the functions of `image_files`; a step at which TensorFlow fails is made by them alone,
so that what is broken is replaced, listed and refused as they do it.
"""

import os
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from importlib.util import find_spec

import numpy as np

from vicreg_jax.data import plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.decoding import open_image, pixels_of
from vicreg_jax.data.image_files import ImageFiles, covered
from vicreg_jax.data.source import How
from vicreg_jax.refusals import require

__all__ = ["Stream", "installed"]

AT_ONCE = 2  # steps: while one waits for its last image, cores work on the next


def installed() -> bool:
    """Tells whether there is a TensorFlow; does not import it, which takes seconds."""
    return find_spec("tensorflow") is not None


class Stream:
    """The host's part of steps, made ahead of who asks for one after the other.

    Attributes:
      alone: how many steps were made without TensorFlow, as it had failed at them.

    Args:
      source: of image files.
      planner: step -> the global batch; called by several threads.
      rows: of it, those of this process.
      policies: one per view.
      how: the source is to give views.
      stop: the step after the last.

    Raises:
      NotInstalled: there is no TensorFlow.
    """

    def __init__(
        self,
        source: ImageFiles,
        planner: Callable[[int], plan.Plan],
        *,
        rows: slice,
        policies: Sequence[draw.Policy],
        how: How,
        stop: int,
    ):
        self._tf, self._source, self._stop = _tensorflow(), source, stop
        self._making = _Making(self._tf, source, planner, rows, policies, how)
        self._next, self.alone, self.close = None, 0, lambda: None
        source.seconds["tf.data"] = 0.0

    def views(self, step: int) -> tuple[np.ndarray, draw.Parameters]:
        """Returns the images of a step and all parameters: see `ImageFiles.views`.

        The arrays are read only. After another step than the last one's next, all that
        was made ahead is made anew.

        Raises: as `ImageFiles.views`.
        """
        begin = time.perf_counter()
        if step != self._next:
            self.close()
            self._made = self._steps(step).as_numpy_iterator()
            # What still runs needs Python's lock, and would wait for it for ever.
            self.close = weakref.finalize(self, _end, self._making, self._made)
        self._next = step + 1
        try:
            pictures, *parameters = next(self._made)
        except self._making.failures:
            self._making.failed.add(step)
        self._source.seconds["tf.data"] += time.perf_counter() - begin
        if step in self._making.failed:
            self.alone += 1
            return self._making.without(step)
        return pictures, draw.Parameters(*parameters)

    def _steps(self, start):
        tf = self._tf
        options = tf.data.Options()
        options.deterministic = True
        options.autotune.enabled = False
        options.threading.private_threadpool_size = self._source.threads
        step = tf.autograph.experimental.do_not_convert(self._making.step)
        self._making.ended.clear()
        steps = tf.data.Dataset.range(start, self._stop)
        steps = steps.take_while(self._making.goes_on)
        return steps.map(step, AT_ONCE).with_options(options)


class _Making:
    """How a step is made, by TensorFlow and without.

    It has no iterator: TensorFlow keeps what its graphs call for good.
    """

    def __init__(self, tf, source, planner, rows, policies, how):
        self._tf, self._source, self._planner = tf, source, planner
        self._rows, self._policies, self._how = rows, policies, how
        self._odd = set()  # images that Pillow alone can read
        self.failed = set()  # steps
        self.ended, self.failures = threading.Event(), tf.errors.OpError

    def goes_on(self, step):
        """Tells whether a step is still wanted."""
        (found,) = self._tf.numpy_function(lambda: not self.ended.is_set(), [], [bool])
        return self._tf.ensure_shape(found, [])

    def without(self, step):
        """Returns the images and all parameters of a step: see `ImageFiles.views`."""
        indices, uniforms = (x[self._rows] for x in self._planner(step))
        result = self._source.views(indices, uniforms, self._policies, self._how)
        chosen = self._source.chosen(indices).tolist()
        self._odd |= {i for i in chosen if not self._decodes(i)}
        return result

    def _decodes(self, index):
        """Tells whether TensorFlow decodes an image that is not broken."""
        with suppress(self._tf.errors.OpError):
            self._tf.io.decode_jpeg(self._source.read(index))
            return True
        return False

    def step(self, step):
        """Returns the images and all parameters of a step, as a graph."""
        spec, views = self._tf.TensorSpec, len(self._policies)
        where = spec([None], "string" if self._source.paths else "int64")
        uniforms = spec([None, views, draw.NUMBERS], "float32")
        planned = [spec([None], "int64"), where, uniforms]
        indices, where, uniforms = self._python(self._plan, [step], planned)
        (content,) = self._each(
            partial(self._read, step), (where,), [spec([], "string")]
        )
        known = draw.parameters(
            np.zeros([1, *uniforms.shape[1:]], np.float32), np.ones(2), self._policies
        )
        found = [spec([None], "bool"), spec([None, 2], "int32")]
        found += [spec([None, 4], "int32")]
        found += [spec([None, *x.shape[1:]], x.dtype) for x in known]
        given = [step, indices, uniforms, content]
        plain, size, area, *drawn = self._python(self._draw, given, found)
        rows = content, plain, size, area, *drawn
        made = self._each(partial(self._picture, step), rows, self._part)
        return *made, *drawn[1:]  # its boxes are among what was made

    @property
    def _part(self):
        """What an image has in a batch: pixels and boxes."""
        spec, views = self._tf.TensorSpec, len(self._policies)
        return [spec(self._how.shape(views), "uint8"), spec([views, 4], "float32")]

    def _python(self, function, parts, specs):
        """Returns what a function of NumPy makes, which is like that."""
        made = self._tf.numpy_function(function, parts, [x.dtype for x in specs])
        for found, spec in zip(made, specs, strict=True):
            found.set_shape(spec.shape)
        return made

    def _each(self, function, parts, specs):
        """Returns what a function makes of each row, as a batch of what is like that.

        What is smaller is padded, which saves a copy of each canvas.
        """
        rows = self._tf.data.Dataset.from_tensor_slices(parts)
        made = rows.map(function, self._source.threads)
        shapes = tuple(spec.shape for spec in specs)
        batch = made.padded_batch(rows.cardinality(), shapes)
        return batch.get_single_element()

    def _plan(self, step):
        """Returns which images a step has, where they are, and its random numbers."""
        indices, uniforms = (x[self._rows] for x in self._planner(int(step)))
        where = indices = self._source.chosen(indices)
        if paths := self._source.paths:
            where = np.array([os.fsencode(paths[i]) for i in indices.tolist()], object)
        return indices, where, uniforms

    def _read(self, step, where):
        if self._source.paths:
            return (self._tf.io.read_file(where),)
        return self._tf.numpy_function(self._content, [step, where], ["string"])

    def _draw(self, step, indices, uniforms, content):
        """Returns which images are plain, sizes, what boxes cover, all parameters."""
        images = [self._opened(step, x) for x in content]
        sizes = np.array([x.size[::-1] if x else (1, 1) for x in images], np.int32)
        drawn = draw.parameters(uniforms, sizes, self._policies)
        plain = [
            image is not None
            and image.format == "JPEG"
            and image.mode in ("L", "RGB")
            and self._how.channels == 3
            and index not in self._odd
            for index, image in zip(indices.tolist(), images, strict=True)
        ]
        return np.array(plain), sizes, covered(drawn.box), *drawn

    def _picture(self, step, content, plain, size, area, *drawn):
        """Returns the part that an image has in a batch, and its boxes there."""
        tf, how = self._tf, self._how

        def decode():
            pixels = tf.io.decode_jpeg(
                content, channels=3, dct_method="INTEGER_ACCURATE"
            )
            with tf.control_dependencies([tf.assert_equal(tf.shape(pixels)[:2], size)]):
                return tf.identity(pixels)

        def decode_otherwise():
            return tf.numpy_function(self._pixels, [step, size, content], "uint8")

        pixels = tf.cond(plain, decode, decode_otherwise)
        pixels.set_shape([None, None, how.channels])

        def cut():
            top, left, height, width = tf.unstack(area)
            corner = tf.cast(tf.stack([top, left, 0, 0]), "float32")
            part = pixels[top : top + height, left : left + width]
            return [part, drawn[0] - corner]

        def fill():
            return self._python(self._fill, [pixels, *drawn], self._part)

        if how.kind != "whole":
            return fill()
        return tf.cond(tf.reduce_all(area[2:] <= how.canvas), cut, fill)

    def _content(self, step, index):
        with self._noting(step):
            return self._source.read(int(index))
        return b""

    def _opened(self, step, content):
        with self._noting(step):
            return open_image(content)

    def _pixels(self, step, size, content):
        with self._noting(step):
            return pixels_of(open_image(content), self._how.channels)
        return np.zeros((*size, self._how.channels), np.uint8)

    @contextmanager
    def _noting(self, step):
        """Notes a step with what cannot be read.

        Raised, it would be a traceback in what the run says.
        """
        try:
            yield
        except Exception:
            self.failed.add(int(step))

    def _fill(self, pixels, *drawn):
        drawn = draw.Parameters(*drawn)
        return self._source.part(pixels, drawn, self._policies, self._how)


def _end(making, made):
    """Lets what is being made come to its end; soon, as the rest is not begun."""
    making.ended.set()
    for _ in range(2 * AT_ONCE):
        with suppress(making.failures, StopIteration):
            next(made)


def _tensorflow():
    """Returns TensorFlow, which leaves all accelerators to JAX."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    tf = require("tensorflow", "data.pipeline=tf_data", install="vicreg_jax[data]")
    with suppress(RuntimeError):  # it computes already, by somebody else's will
        for kind in ("GPU", "TPU"):
            tf.config.set_visible_devices([], kind)
    return tf
