"""Random numbers to augmentation parameters: pure NumPy, it never touches a pixel."""

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

__all__ = ["NUMBERS", "SLOTS", "Parameters", "Policy", "crop_boxes", "parameters"]

# How a view spends its uniforms. The order is a file format: add at the end only.
SLOTS = tuple(f"{name}{i}" for i in range(10) for name in ("area", "ratio"))
SLOTS += ("top", "left", "flip", "jitter", "order")
SLOTS += ("brightness", "contrast", "saturation", "hue")
SLOTS += ("grey", "blur", "sigma", "solarize", "rotation", "shear")
NUMBERS = len(SLOTS)
ORDERS = np.array(list(itertools.permutations(range(4))), np.int32)


class Policy(NamedTuple):
    """What the augmentations of one view may be; `config.augment` sets the fields."""

    crop_scale: tuple[float, float]  # share of the image's area
    crop_ratio: tuple[float, float]  # width over height
    interpolation: str  # bicubic or bilinear
    flip: float  # probability
    rotation: float  # degrees, at most, either way
    shear: float  # horizontal over vertical shift, at most, either way
    jitter: float  # probability
    brightness: float  # factor in [1 - x, 1 + x]
    contrast: float  # likewise
    saturation: float  # likewise
    hue: float  # share of the colour circle, at most, either way
    grey: float  # probability
    blur: float  # probability
    sigma: tuple[float, float]  # standard deviation of the blur, in pixels of the view
    solarize: float  # probability


class Parameters(NamedTuple):
    """What to do to each view of each example: arrays [b, v], boxes [b, v, 4]."""

    box: np.ndarray  # float32, top, left, height, width in pixels of the image
    flip: np.ndarray  # bool
    rotation: np.ndarray  # float32, radians
    shear: np.ndarray  # float32
    brightness: np.ndarray  # float32, factor
    contrast: np.ndarray  # float32, factor
    saturation: np.ndarray  # float32, factor
    hue: np.ndarray  # float32, share of the colour circle
    order: np.ndarray  # int32 [b, v, 4]: 0 brightness, 1 contrast, 2 saturation, 3 hue
    grey: np.ndarray  # bool
    sigma: np.ndarray  # float32, pixels of the view; 0 is no blur
    solarize: np.ndarray  # bool


def parameters(
    uniforms: np.ndarray, sizes: np.ndarray, policies: Sequence[Policy]
) -> Parameters:
    """Returns the parameters of a batch of views.

    Args:
      uniforms: float32 [b, v, NUMBERS] in [0, 1).
      sizes: int [b, 2], height and width of the images, or [2] for all.
      policies: one per view.

    Raises:
      ValueError: the number of policies is not v.
    """
    if len(policies) != uniforms.shape[1]:
        raise ValueError(
            f"expected {uniforms.shape[1]} policies, one per view; got {len(policies)}"
        )
    sizes = np.broadcast_to(sizes, (len(uniforms), 2))
    views = [
        _parameters(dict(zip(SLOTS, uniforms[:, i].T, strict=True)), sizes, policy)
        for i, policy in enumerate(policies)
    ]
    return Parameters(
        *(np.stack(values, axis=1) for values in zip(*views, strict=True))
    )


def _parameters(u, sizes, policy):
    jitter = u["jitter"] < policy.jitter

    def either(name, limit):
        return np.float32(limit) * (2 * u[name] - 1)

    def factor(name, limit):
        return np.where(jitter, 1 + either(name, limit), 1).astype(np.float32)

    least, most = np.float32(policy.sigma)
    sigma = least + (most - least) * u["sigma"]
    return Parameters(
        box=crop_boxes(u, sizes, policy.crop_scale, policy.crop_ratio),
        flip=u["flip"] < policy.flip,
        rotation=either("rotation", np.deg2rad(policy.rotation)),
        shear=either("shear", policy.shear),
        brightness=factor("brightness", policy.brightness),
        contrast=factor("contrast", policy.contrast),
        saturation=factor("saturation", policy.saturation),
        hue=np.where(jitter, either("hue", policy.hue), 0).astype(np.float32),
        order=ORDERS[(u["order"] * len(ORDERS)).astype(np.int32)],
        grey=u["grey"] < policy.grey,
        sigma=np.where(u["blur"] < policy.blur, sigma, 0).astype(np.float32),
        solarize=u["solarize"] < policy.solarize,
    )


def crop_boxes(
    u: dict[str, np.ndarray],
    sizes: np.ndarray,
    scale: tuple[float, float],
    ratio: tuple[float, float],
) -> np.ndarray:
    """Returns random-resized-crop boxes, float32 [b, 4]: top, left, height, width.

    As torchvision draws them: an area uniform in `scale` and a ratio of width to height
    log-uniform in `ratio`, rounded to whole pixels; the first of ten attempts that fits
    the image, else the largest centred crop of an allowed ratio.

    Args:
      u: the uniforms [b] of the slots.
      sizes: int [b, 2], height and width.
    """
    height, width = sizes[:, 0], sizes[:, 1]
    attempts = np.arange(10)[:, None]
    area = np.stack([u[f"area{i}"] for i in range(10)]).astype(np.float64)
    shape = np.stack([u[f"ratio{i}"] for i in range(10)]).astype(np.float64)
    area = (scale[0] + (scale[1] - scale[0]) * area) * (height * width)
    shape = np.exp(np.log(ratio[0]) + (np.log(ratio[1]) - np.log(ratio[0])) * shape)
    w = np.rint(np.sqrt(area * shape)).astype(np.int64)
    h = np.rint(np.sqrt(area / shape)).astype(np.int64)
    fits = (w > 0) & (w <= width) & (h > 0) & (h <= height)
    first = np.where(fits, attempts, 10).min(axis=0)

    own = width / height
    fallback_w = np.where(own > ratio[1], np.rint(height * ratio[1]), width)
    fallback_h = np.where(own < ratio[0], np.rint(width / ratio[0]), height)
    found, chosen = first < 10, np.minimum(first, 9)[None]
    w = np.where(found, np.take_along_axis(w, chosen, axis=0)[0], fallback_w)
    h = np.where(found, np.take_along_axis(h, chosen, axis=0)[0], fallback_h)
    # A draw of randint(0, room + 1), from a uniform number.
    top = np.where(found, np.floor(u["top"] * (height - h + 1)), (height - h) // 2)
    left = np.where(found, np.floor(u["left"] * (width - w + 1)), (width - w) // 2)
    return np.stack([top, left, h, w], axis=-1).astype(np.float32)
