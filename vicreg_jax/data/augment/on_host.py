"""The twin of `on_device` for the host: one image at a time, no JAX, compiled by Numba.

Its kernels leave Python's lock, so threads scale. Pictures are float32 [c, w, h] in
[0, 1], a plane for each of one or three channels, turned so that resizing reads and
writes rows; 8 bits come back at the end, rounded once. What each operation does, and
from where it is, `on_device` says. They change the picture that they are given.
"""

import functools
import math
import threading
from collections.abc import Callable

import numpy as np

from vicreg_jax.data.augment.draw import Parameters
from vicreg_jax.refusals import require

__all__ = [
    "blur",
    "brightness",
    "compile",
    "contrast",
    "crop_resize",
    "finish",
    "grey",
    "hue",
    "recolour",
    "saturation",
    "solarize",
]

# Plain Python numbers would make Numba compute in float64.
ZERO, ONE, TWO, THREE, FOUR, FIVE, SIX = (np.float32(i) for i in range(7))
HALF, LEVELS, CIRCLE = np.float32(0.5), np.float32(255), np.float32(256)
RED, GREEN, BLUE = np.float32(0.299), np.float32(0.587), np.float32(0.114)
BRIGHT = np.float32(128 / 255)
ROUNDING = np.float32(1e-3)  # as in `on_device`
BLOCK = 16  # rows or columns that are turned at a time
_lock = threading.Lock()


def crop_resize(
    image: np.ndarray,
    box: np.ndarray,
    *,
    size: int,
    interpolation: str = "bicubic",
    flip: bool = False,
) -> np.ndarray:
    """Returns a picture [c, size, size] of the box of an image, uint8 [h, w, c].

    Args:
      box: top, left, height, width in pixels of the image, whole numbers.
      flip: mirrors it left to right.

    Raises:
      NotInstalled: Numba is not installed.
    """
    top, left, height, width = box.astype(int).tolist()
    reach = {"bicubic": 2, "bilinear": 1}[interpolation]
    rows, first_row = _axis(height, size, reach, False)
    columns, first_column = _axis(width, size, reach, bool(flip))
    picture = np.empty((image.shape[2], size, size), np.float32)
    at = (top, left, width)
    weights = (rows / LEVELS, first_row, columns, first_column)
    _compiled(_resize)(np.ascontiguousarray(image), *at, *weights, picture)
    return picture


def recolour(picture: np.ndarray, view: Parameters) -> np.ndarray:
    """Returns the picture after all that follows cropping and flipping."""
    factors = (view.brightness, view.contrast, view.saturation)
    if view.hue or any(factor != 1 for factor in factors):
        colours = (brightness, contrast, saturation, hue)
        for kind in view.order.tolist():
            colours[kind](picture, (*factors, view.hue)[kind])
    if view.grey:
        grey(picture)
    if view.sigma:
        picture = blur(picture, view.sigma)
    if view.solarize:
        solarize(picture)
    return picture


def brightness(picture: np.ndarray, factor: float) -> None:
    _compiled(_blend)(picture, np.float32(factor), ZERO)


def contrast(picture: np.ndarray, factor: float) -> None:
    mean = _compiled(_mean_luma)(picture)
    _compiled(_blend)(picture, np.float32(factor), np.float32((1 - factor) * mean))


def saturation(picture: np.ndarray, factor: float) -> None:
    if len(picture) == 3:
        _compiled(_saturate)(picture, np.float32(factor))


def hue(picture: np.ndarray, shift: float) -> None:
    if len(picture) == 3 and shift:
        _compiled(_turn)(picture, np.trunc(np.float32(shift) * LEVELS))


def grey(picture: np.ndarray) -> None:
    saturation(picture, 0.0)


def blur(picture: np.ndarray, sigma: float) -> np.ndarray:
    """Returns the picture blurred; what is left in the one given is of no use."""
    variance = float(sigma) ** 2 / 3  # of one pass
    radius = math.floor((math.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * radius + 1) * (radius * (radius + 1) - 3 * variance)
    edge /= 6 * (variance - (radius + 1) ** 2)
    near, far = (1, edge) if radius else (edge, 0)
    weights = (np.float32(w / (1 + 2 * near + 2 * far)) for w in (1, near, far))
    blurred = np.empty_like(picture)
    _compiled(_blur)(picture, blurred, *weights)
    return blurred


def solarize(picture: np.ndarray) -> None:
    _compiled(_solarize)(picture)


def finish(picture: np.ndarray, out: np.ndarray) -> None:
    """Writes a picture [c, w, h] as uint8 [h, w, c], rounded."""
    _compiled(_finish)(picture, out)


def compile() -> None:
    """Compiles everything, which takes seconds; else the first images would wait.

    Raises:
      NotInstalled: Numba is not installed.
    """
    image = np.zeros((2, 2, 3), np.uint8)
    image.flags.writeable = False  # as Pillow's are
    picture = crop_resize(image, np.array([0, 0, 2, 2]), size=2)
    for operation in (brightness, contrast, saturation, hue, blur):
        operation(picture, np.float32(0.1))
    solarize(picture)
    finish(picture, np.empty_like(image))


def _compiled(kernel: Callable) -> Callable:
    with _lock:  # or every thread would compile its own
        return _compile(kernel)


@functools.cache
def _compile(kernel):
    numba = require("numba", "augment.colour=host", install="vicreg_jax[data]")
    return numba.njit(nogil=True, fastmath=True, error_model="numpy")(kernel)


def _axis(length, size, reach, flip):
    """Returns what weighs the pixels of each output pixel, and where they begin."""
    taps = min(length, 2 * math.ceil(reach * max(length / size, 1)))
    weights = np.zeros((size, taps + taps % 2), np.float32)  # they are used in pairs
    first = np.empty(size, np.int64)
    _compiled(_weigh)(length, size, reach, taps, flip, weights, first)
    return weights, first


# Kernels. Numba makes vector code of inner loops over one-dimensional rows.


def _weigh(length, size, reach, taps, flip, weights, first):
    scale = length / size
    wide = max(scale, 1.0)
    for i in range(size):
        centre = (i + 0.5) * scale
        begin = math.floor(centre - reach * wide - 0.5) + 1  # of those within reach
        begin = max(0, min(begin, length - taps))
        at = size - 1 - i if flip else i
        total = 0.0
        for k in range(taps):
            x = abs(begin + k + 0.5 - centre) / wide
            if reach == 1:
                weight = max(1 - x, 0.0)
            elif x < 1:
                weight = (1.5 * x - 2.5) * x**2 + 1
            elif x < 2:
                weight = ((-0.5 * x + 2.5) * x - 4) * x + 2
            else:
                weight = 0.0
            weights[at, k] = weight
            total += weight
        for k in range(taps):
            weights[at, k] /= total
        first[at] = begin


def _resize(image, top, left, width, rows, first_row, columns, first_column, picture):
    channels, size, _ = picture.shape
    n = width * channels
    flat = image.reshape(image.shape[0], -1)
    begin, last = left * channels, len(image) - 1
    blocks = -(-size // BLOCK)
    band = np.empty((BLOCK, n), np.float32)
    turned = np.empty((n, blocks * BLOCK), np.float32)  # of fewer rows already
    for block in range(blocks):
        for i in range(BLOCK):
            y = min(block * BLOCK + i, size - 1)
            sums = band[i]
            sums[:] = ZERO
            for k in range(0, rows.shape[1], 2):
                a, b = rows[y, k], rows[y, k + 1]
                at = top + first_row[y] + k
                one = flat[at, begin : begin + n]
                two = flat[min(at + 1, last), begin : begin + n]
                for j in range(n):
                    sums[j] += a * np.float32(one[j]) + b * np.float32(two[j])
        for j in range(n):
            column = turned[j, block * BLOCK : (block + 1) * BLOCK]
            for i in range(BLOCK):
                column[i] = min(max(band[i, j], ZERO), ONE)
    for x in range(size):
        for c in range(channels):
            sums = picture[c, x]
            sums[:] = ZERO
            for k in range(0, columns.shape[1], 2):
                a, b = columns[x, k], columns[x, k + 1]
                at = (first_column[x] + k) * channels + c
                one, two = turned[at], turned[min(at + channels, n - 1)]
                for j in range(size):
                    sums[j] += a * one[j] + b * two[j]
            for j in range(size):
                sums[j] = min(max(sums[j], ZERO), ONE)


def _blend(picture, factor, other):
    values = picture.reshape(-1)
    for i in range(len(values)):
        values[i] = min(max(factor * values[i] + other, ZERO), ONE)


def _mean_luma(picture):
    total = ZERO
    if len(picture) == 1:
        values = picture.reshape(-1)
        for i in range(len(values)):
            total += values[i]
        return total / len(values)
    r, g, b = picture[0].reshape(-1), picture[1].reshape(-1), picture[2].reshape(-1)
    for i in range(len(r)):
        total += RED * r[i] + GREEN * g[i] + BLUE * b[i]
    return total / len(r)


def _saturate(picture, factor):
    r, g, b = picture[0].reshape(-1), picture[1].reshape(-1), picture[2].reshape(-1)
    for i in range(len(r)):
        luma = RED * r[i] + GREEN * g[i] + BLUE * b[i]
        other = (ONE - factor) * luma
        r[i] = min(max(factor * r[i] + other, ZERO), ONE)
        g[i] = min(max(factor * g[i] + other, ZERO), ONE)
        b[i] = min(max(factor * b[i] + other, ZERO), ONE)


def _turn(picture, steps):
    reds, greens = picture[0].reshape(-1), picture[1].reshape(-1)
    blues = picture[2].reshape(-1)
    for i in range(len(reds)):
        r, g, b = reds[i], greens[i], blues[i]
        most = max(r, g, b)
        chroma = most - min(r, g, b)
        colourless = chroma <= ZERO
        safe = ONE if colourless else chroma
        if r >= g and r >= b:
            sextant = (g - b) / safe
        elif g >= b:
            sextant = (b - r) / safe + TWO
        else:
            sextant = (r - g) / safe + FOUR
        circle = sextant / SIX
        circle = np.floor((circle - np.floor(circle)) * LEVELS + ROUNDING) + steps
        circle -= CIRCLE * np.floor(circle / CIRCLE)
        saturation = chroma / (ONE if most <= ZERO else most)
        saturation = np.floor(saturation * LEVELS + ROUNDING)
        chroma = most * saturation / LEVELS
        sextant = circle * (SIX / LEVELS)
        k = sextant + FIVE
        k -= SIX * np.floor(k / SIX)
        red = most - chroma * min(max(min(k, FOUR - k), ZERO), ONE)
        k = sextant + THREE
        k -= SIX * np.floor(k / SIX)
        green = most - chroma * min(max(min(k, FOUR - k), ZERO), ONE)
        k = sextant + ONE
        k -= SIX * np.floor(k / SIX)
        blue = most - chroma * min(max(min(k, FOUR - k), ZERO), ONE)
        reds[i] = r if colourless else red
        greens[i] = g if colourless else green
        blues[i] = b if colourless else blue


def _blur(picture, blurred, middle, near, far):
    _, width, height = picture.shape
    padded = np.empty((2, height + 4), np.float32)
    for c in range(len(picture)):
        for x in range(width):
            source, target = padded[0], padded[1]
            source[2 : height + 2] = picture[c, x]
            for _ in range(3):
                source[:2] = source[2]
                source[height + 2 :] = source[height + 1]
                for j in range(height):
                    target[j + 2] = (
                        middle * source[j + 2]
                        + near * (source[j + 1] + source[j + 3])
                        + far * (source[j] + source[j + 4])
                    )
                source, target = target, source
            picture[c, x] = source[2 : height + 2]
        source, target = picture[c], blurred[c]
        for _ in range(3):
            for x in range(width):
                a, b = max(x - 2, 0), max(x - 1, 0)
                d, e = min(x + 1, width - 1), min(x + 2, width - 1)
                for j in range(height):
                    target[x, j] = (
                        middle * source[x, j]
                        + near * (source[b, j] + source[d, j])
                        + far * (source[a, j] + source[e, j])
                    )
            source, target = target, source


def _solarize(picture):
    values = picture.reshape(-1)
    for i in range(len(values)):
        values[i] = ONE - values[i] if values[i] >= BRIGHT else values[i]


def _finish(picture, out):
    channels, width, height = picture.shape
    blocks = -(-width // BLOCK)
    band = np.empty((BLOCK, height), np.uint32)  # a pixel each: bytes turn slowly
    pixels = np.empty((height, blocks * BLOCK), np.uint32)
    for block in range(blocks):
        for i in range(BLOCK):
            x = min(block * BLOCK + i, width - 1)
            column = band[i]
            column[:] = 0
            for c in range(channels):
                source, shift = picture[c, x], np.uint32(8 * c)
                for j in range(height):
                    column[j] |= np.uint32(source[j] * LEVELS + HALF) << shift
        for y in range(height):
            row = pixels[y, block * BLOCK : (block + 1) * BLOCK]
            for i in range(BLOCK):
                row[i] = band[i, y]
    for y in range(height):
        row, target = pixels[y], out[y].reshape(-1)
        if channels == 3:
            for x in range(width):
                target[3 * x] = np.uint8(row[x] & 255)
                target[3 * x + 1] = np.uint8((row[x] >> 8) & 255)
                target[3 * x + 2] = np.uint8(row[x] >> 16)
        else:
            for x in range(width):
                target[x] = np.uint8(row[x])
