"""Bytes to pixels, by Pillow: which formats, how deep, in how many channels."""

import functools
import io
import re
from typing import Any

import numpy as np

from vicreg_jax.refusals import require

__all__ = [
    "as_array",
    "converted",
    "formats",
    "open_image",
    "pillow",
    "pixels_of",
    "reason_of",
]

BITS = 258  # the tag of a TIFF, BitsPerSample
# Pillow reads more, some by other programs: PostScript by Ghostscript.
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "PPM", "TIFF", "GIF")


def open_image(data: bytes) -> Any:
    """Returns an image of Pillow's that is yet to be decoded, by its own decoders.

    Raises:
      Exception: whatever damaged bytes make Pillow raise; also for a size that is not
        sane, and more than 8 bits per channel.
    """
    pil = pillow()
    image = pil.open(io.BytesIO(data), formats=formats())
    most = pil.MAX_IMAGE_PIXELS
    if most and image.width * image.height > most:
        raise ValueError(
            f"{image.width} x {image.height} pixels are more than the {most} that"
            " Pillow takes for sane"
        )
    # Pillow clips the pixels of some modes to 0..255, and cuts others to 8 bits.
    deep = image.mode.startswith(("I", "F"))
    deep = deep or any(re.search(";16[A-Z]", str(tile[3])) for tile in image.tile)
    # Of a TIFF whose channels lie apart it takes halves of pixels for pixels.
    if deep or np.max(getattr(image, "tag_v2", {}).get(BITS, 8)) > 8:
        raise ValueError(
            f"pixels of mode {image.mode} are not of 8 bits; convert them, or give"
            " arrays of uint16"
        )
    return image


def pixels_of(image: Any, channels: int) -> np.ndarray:
    """Decodes an image of Pillow's: uint8 [h, w, c]."""
    return as_array(converted(image, channels), channels)


@functools.cache
def formats() -> tuple[str, ...]:
    """Returns the formats that are read, AVIF where the installed Pillow can."""
    features = require("PIL.features", "reading image files", install="pillow")
    able = "avif" in features.modules and features.check("avif")
    return (*FORMATS, "AVIF") if able else FORMATS


def reason_of(error: Exception) -> str:
    """Returns in a line why an image cannot be read."""
    reason = str(error).partition(" <_io.")[0]
    return f"{type(error).__name__}: {reason}"


def pillow() -> Any:
    """Returns Pillow's module. Raises NotInstalled."""
    return require("PIL.Image", "reading image files", install="pillow")


def converted(image: Any, channels: int) -> Any:
    """Returns a decoded image of 1 channel or 3: grey or RGB."""
    mode = "L" if channels == 1 else "RGB"
    if image.mode != mode:
        return image.convert(mode)
    image.load()
    return image


def as_array(image: Any, channels: int) -> np.ndarray:
    """Returns the pixels of an image that is of so many channels: uint8 [h, w, c]."""
    array = np.asarray(image)
    return array.reshape(*array.shape[:2], channels)
