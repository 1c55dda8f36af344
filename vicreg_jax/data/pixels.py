"""Augmentation parameters to pixels: batched, jitted with the train step.

Images are float32 in [0, 1], [n, h, w, c] with one or three channels; parameters are
arrays [n]. Every operation clips its result to [0, 1], as 8-bit images do.
"""

import jax
import jax.numpy as jnp

from vicreg_jax.data.views import Parameters

HIGHEST = jax.lax.Precision.HIGHEST


def render(
    images: jax.Array, view: Parameters, *, size: int, affine: bool
) -> jax.Array:
    """Returns one view of each image: float32 [n, size, size, c] in [0, 1].

    Args:
      images: uint8 [n, h, w, c].
      view: the parameters of this view, arrays [n].
      affine: resample with rotation and shear; else they are ignored.
    """
    images = as_float(images)
    if affine:
        images = warp(images, view.box, view.rotation, view.shear, size=size)
    else:
        images = crop_resize(images, view.box, size=size)
    images = flip(images, view.flip)
    return jitter(images, view.brightness, view.contrast, view.order)


def as_float(images: jax.Array) -> jax.Array:
    """Returns uint8 images as float32 in [0, 1]."""
    return images.astype(jnp.float32) / 255


def normalize(images: jax.Array, *, mean, std) -> jax.Array:
    """Returns (images - mean) / std; both have one number per channel."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images - mean) / std


def crop_resize(images: jax.Array, box: jax.Array, *, size: int) -> jax.Array:
    """Returns the crops, resized by antialiased bicubic interpolation.

    The filter is Pillow's (a = -0.5, widened by the factor of shrinking, cut off at
    the edge of the crop), as two matrix products.

    Args:
      box: float32 [n, 4], top, left, height, width in pixels of the image.
    """
    top, left, height, width = box.T
    rows = _resize_weights(top, height, images.shape[1], size)
    columns = _resize_weights(left, width, images.shape[2], size)
    images = jnp.einsum("nxw,nhwc->nhxc", columns, images, precision=HIGHEST)
    images = jnp.clip(images, 0, 1)  # as Pillow does, between the two directions
    images = jnp.einsum("nyh,nhxc->nyxc", rows, images, precision=HIGHEST)
    return jnp.clip(images, 0, 1)


def warp(
    images: jax.Array,
    box: jax.Array,
    rotation: jax.Array,
    shear: jax.Array,
    *,
    size: int,
) -> jax.Array:
    """Returns the boxes, sheared and turned about their centres, [n, size, size, c].

    Bilinear interpolation at each output pixel, black outside the image. It does not
    antialias: meant for boxes about as large as the output.

    Args:
      box: as for `crop_resize`.
      rotation: radians; shear: horizontal shift per vertical distance.
    """
    top, left, height, width = (x[:, None, None] for x in box.T)
    grid = (jnp.arange(size, dtype=jnp.float32) + 0.5) / size - 0.5
    y = grid[None, :, None] * height  # from the centre of the box
    x = grid[None, None, :] * width + shear[:, None, None] * y
    cos, sin = (f(rotation)[:, None, None] for f in (jnp.cos, jnp.sin))
    # The centre of pixel i lies at i + 0.5.
    rows = top + height / 2 + sin * x + cos * y - 0.5
    columns = left + width / 2 + cos * x - sin * y - 0.5

    def sample(image, *coordinates):
        return jax.scipy.ndimage.map_coordinates(image, coordinates, order=1)

    channels = jax.vmap(sample, in_axes=(-1, None, None), out_axes=-1)
    return jax.vmap(channels)(images, rows, columns)


def flip(images: jax.Array, flags: jax.Array) -> jax.Array:
    """Returns the images, mirrored left to right where flags [n] are true."""
    return jnp.where(_each(flags), images[:, :, ::-1], images)


def brightness(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns the images times factor [n]."""
    return jnp.clip(images * _each(factor), 0, 1)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns the images blended with their mean grey: factor 0 leaves only that."""
    mean = jnp.mean(luma(images), axis=(1, 2, 3), keepdims=True)
    factor = _each(factor)
    return jnp.clip(factor * images + (1 - factor) * mean, 0, 1)


def luma(images: jax.Array) -> jax.Array:
    """Returns the brightness [n, h, w, 1] of RGB by ITU-R 601, of grey the image."""
    if images.shape[-1] == 1:
        return images
    weights = jnp.asarray([0.299, 0.587, 0.114], jnp.float32)
    return jnp.einsum("nhwc,c->nhw", images, weights, precision=HIGHEST)[..., None]


def jitter(
    images: jax.Array,
    brightness_factor: jax.Array,
    contrast_factor: jax.Array,
    order: jax.Array,
) -> jax.Array:
    """Returns the images after brightness and contrast, in the drawn order [n, 4]."""
    bright_first = jnp.argmin(order, axis=1) < jnp.argmin(jnp.abs(order - 1), axis=1)
    a = contrast(brightness(images, brightness_factor), contrast_factor)
    b = brightness(contrast(images, contrast_factor), brightness_factor)
    return jnp.where(_each(bright_first), a, b)


def _each(x):
    return x[:, None, None, None]


def _resize_weights(start, length, pixels, size):
    """Returns [n, size, pixels]: what each pixel contributes to each output pixel."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    out = jnp.arange(size, dtype=jnp.float32)[None, :, None] + 0.5
    pixel = jnp.arange(pixels, dtype=jnp.float32)[None, None, :] + 0.5
    x = jnp.abs(pixel - start - out * scale) / jnp.maximum(scale, 1)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    weights = jnp.where(x < 1, near, jnp.where(x < 2, far, 0))
    inside = (pixel > start) & (pixel < start + length)
    weights = jnp.where(inside, weights, 0)
    return weights / jnp.sum(weights, axis=2, keepdims=True)
