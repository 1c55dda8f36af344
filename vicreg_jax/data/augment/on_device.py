"""Augmentation parameters to pixels: batched, jitted with the train step.

Images are float32 in [0, 1], [n, h, w, c]; parameters are arrays [n]. Only RGB has
hue, saturation and grey: other images stay as they are there. Every operation clips its
result to [0, 1], as 8-bit images do.
"""

import jax
import jax.numpy as jnp

from vicreg_jax.data.augment.draw import Parameters, Policy

__all__ = [
    "as_float",
    "blur",
    "brightness",
    "contrast",
    "crop_resize",
    "flip",
    "grey",
    "hue",
    "jitter",
    "luma",
    "normalize",
    "recolour",
    "render",
    "render_crops",
    "saturation",
    "solarize",
    "warp",
]

HIGHEST = jax.lax.Precision.HIGHEST
ROUNDING = 1e-3  # lets a float32 that should be whole count as whole


def render(
    images: jax.Array,
    view: Parameters,
    *,
    size: int,
    policy: Policy,
    in_turn: bool = False,
) -> jax.Array:
    """Returns one view of each whole image: float32 [n, size, size, c] in [0, 1].

    Args:
      images: uint8 or uint16 [n, h, w, c].
      view: the parameters of this view, arrays [n], drawn by the policy.
      policy: what it never does is not compiled.
      in_turn: see `recolour`.
    """
    images = as_float(images)
    if policy.rotation or policy.shear:
        images = warp(images, view.box, view.rotation, view.shear, size=size)
    else:
        images = crop_resize(
            images, view.box, size=size, interpolation=policy.interpolation
        )
    return recolour(images, view, policy=policy, in_turn=in_turn)


def render_crops(
    crops: jax.Array, view: Parameters, *, policy: Policy, in_turn: bool = False
) -> jax.Array:
    """Returns one view of each crop, uint8 [n, size, size, c], like `render`.

    Crop and size were taken care of on the host; rotation and shear are not.
    """
    crops = as_float(crops)
    if policy.rotation or policy.shear:
        n, size = crops.shape[:2]
        box = jnp.tile(jnp.asarray([[0.0, 0.0, size, size]], jnp.float32), (n, 1))
        crops = warp(crops, box, view.rotation, view.shear, size=size)
    return recolour(crops, view, policy=policy, in_turn=in_turn)


def recolour(
    images: jax.Array, view: Parameters, *, policy: Policy, in_turn: bool = False
) -> jax.Array:
    """Returns the images after all that follows cropping, in the published order.

    Args:
      in_turn: one image after the other, each with only what was drawn for it, instead
        of everything for all of them and a choice. Several times faster on one CPU
        device, slow on anything parallel.
    """

    def one(image, view):
        image, view = image[None], jax.tree.map(lambda x: x[None], view)
        for happens, change in _changes(view, policy, _jitter_one):
            image = jax.lax.cond(happens[0], change, lambda x: x, image)
        return image[0]

    if in_turn:
        return jax.lax.map(lambda x: one(*x), (images, view))
    for _, change in _changes(view, policy, jitter):
        images = change(images)
    return images


def _changes(view, policy, jitter):
    """Returns what the policy may do: (whom it changes, images -> images) each."""
    # Without jitter all factors are 1 and no hue is turned.
    drawn = (view.brightness != 1) | (view.contrast != 1) | (view.saturation != 1)
    changes = (
        (policy.flip, view.flip, lambda x: flip(x, view.flip)),
        (policy.jitter, drawn | (view.hue != 0), lambda x: jitter(x, view)),
        (policy.grey, view.grey, lambda x: grey(x, view.grey)),
        (policy.blur, view.sigma > 0, lambda x: blur(x, view.sigma)),
        (policy.solarize, view.solarize, lambda x: solarize(x, view.solarize)),
    )
    return [(happens, change) for share, happens, change in changes if share]


def _jitter_one(image, view):
    colours = (
        lambda x: brightness(x, view.brightness),
        lambda x: contrast(x, view.contrast),
        lambda x: saturation(x, view.saturation),
        lambda x: hue(x, view.hue),
    )
    for slot in range(4):
        image = jax.lax.switch(view.order[0, slot], colours, image)
    return image


def as_float(images: jax.Array) -> jax.Array:
    """Returns images of uint8 or uint16 as float32, 1 being the largest of the type."""
    return images.astype(jnp.float32) / jnp.iinfo(images.dtype).max


def normalize(images: jax.Array, *, mean, std) -> jax.Array:
    """Returns (images - mean) / std; both have one number per channel."""
    mean, std = (jnp.asarray(x, jnp.float32).reshape(1, 1, 1, -1) for x in (mean, std))
    return (images - mean) / std


def crop_resize(
    images: jax.Array, box: jax.Array, *, size: int, interpolation: str = "bicubic"
) -> jax.Array:
    """Returns the crops, resized by antialiased interpolation.

    The filter is Pillow's (bicubic with a = -0.5, or bilinear; widened by the factor
    of shrinking, cut off at the edge of the crop), as two matrix products.

    Args:
      box: float32 [n, 4], top, left, height, width in pixels of the image.
    """
    top, left, height, width = box.T
    kernel = KERNELS[interpolation]
    rows = _resize_weights(kernel, top, height, images.shape[1], size)
    columns = _resize_weights(kernel, left, width, images.shape[2], size)
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
    return _blend(images, 0.0, factor)


def contrast(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns the images blended with their mean grey: factor 0 leaves only that.

    Where they are not RGB it is the mean of each channel.
    """
    return _blend(images, _mean_luma(images), factor)


def saturation(images: jax.Array, factor: jax.Array) -> jax.Array:
    """Returns the images blended with their grey version: factor 0 leaves only that."""
    return _blend(images, luma(images), factor)


def hue(images: jax.Array, shift: jax.Array) -> jax.Array:
    """Returns the images with hues turned by shift [n], 1 being the whole circle.

    In HSV, so value and saturation stay (rotating chrominance would be another
    operation), and with hue and saturation cut to 8 bits as Pillow does, which moves
    pixels by more than a level. Grey images and a shift of 0 leave all as it is.
    """
    if images.shape[-1] != 3:
        return images
    r, g, b = (images[..., i] for i in range(3))
    most = jnp.max(images, axis=-1)
    chroma = most - jnp.min(images, axis=-1)
    colourless, black = chroma <= 0, most <= 0
    safe = jnp.where(colourless, 1, chroma)
    # Not by `most == r`: the compiler may round the two differently.
    sextant = jnp.where(
        (r >= g) & (r >= b),
        (g - b) / safe,
        jnp.where(g >= b, (b - r) / safe + 2, (r - g) / safe + 4),
    )
    circle = jnp.floor(jnp.mod(sextant / 6, 1) * 255 + ROUNDING)
    circle = jnp.mod(circle + jnp.trunc(shift * 255)[:, None, None], 256)
    saturation = jnp.floor(chroma / jnp.where(black, 1, most) * 255 + ROUNDING)
    chroma, sextant = most * saturation / 255, circle * (6 / 255)

    def channel(offset):
        k = jnp.mod(sextant + offset, 6)
        return most - chroma * jnp.clip(jnp.minimum(k, 4 - k), 0, 1)

    turned = jnp.stack([channel(5), channel(3), channel(1)], axis=-1)
    return jnp.where(colourless[..., None] | _each(shift == 0), images, turned)


def grey(images: jax.Array, flags: jax.Array) -> jax.Array:
    """Returns the images, without colour where flags [n] are true."""
    return jnp.where(_each(flags), luma(images), images)


def blur(images: jax.Array, sigma: jax.Array) -> jax.Array:
    """Returns the images blurred as by Pillow's GaussianBlur with radius sigma [n].

    That is three passes of a box with fractional edges, borders repeated: a true
    Gaussian differs at small sigma. For sigma up to 2.4 pixels; 0 is no blur.

    Source: Gwosdek et al., "Theoretical foundations of Gaussian convolution by extended
    box filtering", SSVM 2011, eq. 7 to 14.
    """
    variance = sigma**2 / 3  # of one pass
    radius = jnp.floor((jnp.sqrt(12 * variance + 1) - 1) / 2)
    edge = (2 * radius + 1) * (radius * (radius + 1) - 3 * variance)
    edge = edge / (6 * (variance - (radius + 1) ** 2))
    near, far = jnp.where(radius > 0, 1, edge), jnp.where(radius > 0, edge, 0)
    total = 1 + 2 * near + 2 * far
    weights = [_each(w / total) for w in (far, near, jnp.ones_like(near), near, far)]
    blurred = images
    for axis in (2, 2, 2, 1, 1, 1):
        size = images.shape[axis]
        padding = [(2, 2) if i == axis else (0, 0) for i in range(4)]
        padded = jnp.pad(blurred, padding, mode="edge")
        shifted = [
            jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(5)
        ]
        blurred = sum(w * x for w, x in zip(weights, shifted, strict=True))
    return jnp.where(_each(sigma > 0), blurred, images)


def solarize(images: jax.Array, flags: jax.Array) -> jax.Array:
    """Returns the images, values from 128/255 on inverted where flags [n] are true."""
    return jnp.where(_each(flags) & (images >= 128 / 255), 1 - images, images)


def luma(images: jax.Array) -> jax.Array:
    """Returns the brightness [n, h, w, 1] of RGB by ITU-R 601, of others the image."""
    if images.shape[-1] != 3:
        return images
    weights = jnp.asarray([0.299, 0.587, 0.114], jnp.float32)
    return jnp.einsum("nhwc,c->nhw", images, weights, precision=HIGHEST)[..., None]


def jitter(images: jax.Array, view: Parameters) -> jax.Array:
    """Returns the images after the four colour operations, in each one's drawn order.

    The first three are blends and take turns in three slots before hue and three after
    it, so that hue, the dearest, is computed once.
    """
    rank = jnp.argsort(view.order, axis=1)  # the place of each operation
    blends = jnp.argsort(rank[:, :3], axis=1)  # of the three, in order
    factors = jnp.stack([view.brightness, view.contrast, view.saturation], axis=1)
    place = rank[:, 3]

    def blend(x, slot, active):
        kind = blends[:, slot]
        factor = jnp.take_along_axis(factors, kind[:, None], axis=1)[:, 0]
        other = jnp.where(_each(kind == 2), luma(x), _mean_luma(x))
        other = jnp.where(_each(kind == 0), 0, other)
        return _blend(x, other, jnp.where(active, factor, 1))

    for slot in range(3):
        images = blend(images, slot, slot < place)
    images = hue(images, view.hue)
    for slot in range(3):
        images = blend(images, slot, slot >= place)
    return images


def _blend(images, other, factor):
    factor = _each(factor)
    return jnp.clip(factor * images + (1 - factor) * other, 0, 1)


def _mean_luma(images):
    return jnp.mean(luma(images), axis=(1, 2), keepdims=True)


def _each(x):
    return x[:, None, None, None]


def _bicubic(x):
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return jnp.where(x < 1, near, jnp.where(x < 2, far, 0))


def _bilinear(x):
    return jnp.maximum(1 - x, 0)


KERNELS = {"bicubic": _bicubic, "bilinear": _bilinear}


def _resize_weights(kernel, start, length, pixels, size):
    """Returns [n, size, pixels]: what each pixel contributes to each output pixel."""
    start, length = start[:, None, None], length[:, None, None]
    scale = length / size
    out = jnp.arange(size, dtype=jnp.float32)[None, :, None] + 0.5
    pixel = jnp.arange(pixels, dtype=jnp.float32)[None, None, :] + 0.5
    x = jnp.abs(pixel - start - out * scale) / jnp.maximum(scale, 1)
    inside = (pixel > start) & (pixel < start + length)
    weights = jnp.where(inside, kernel(x), 0)
    return weights / jnp.sum(weights, axis=2, keepdims=True)
