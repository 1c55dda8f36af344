"""One step's batch: the host's part, and the device's that turns it into views."""

from dataclasses import asdict
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from vicreg_jax import sharding
from vicreg_jax.config import Config
from vicreg_jax.data import host_pixels, pixels, plan, views
from vicreg_jax.data.encoded import Encoded
from vicreg_jax.data.records import IN_MEMORY


def policies(config: Config) -> list[views.Policy]:
    """Returns the augmentations of the first and the second view."""
    shared = asdict(config.augment)
    del shared["colour"]
    pairs = {name: shared.pop(name) for name in ("blur", "solarize")}
    return [
        views.Policy(
            **shared, **{name: pair[i % len(pair)] for name, pair in pairs.items()}
        )
        for i in range(config.data.views)
    ]


def check(images: Any, config: Config) -> None:
    """Refuses what these images do not allow `config` to have done where it says.

    Raises:
      ValueError: colours on the host of other images than files, or rotation or shear
        where the colours or the resizing ask for something else.
      ModuleNotFoundError: colours on the host, and Numba is not installed.
    """
    data, policy = config.data, config.augment
    encoded = isinstance(images, Encoded)
    turned = bool(policy.rotation or policy.shear)
    if policy.colour == "host":
        if not encoded:
            raise ValueError(
                "config.augment.colour 'host' is for image files (data.name=folder,"
                f" prepared, tfrecord, or tfds of any sizes); data.name {data.name!r}"
                " gives arrays, whose colours the device changes"
            )
        if turned:
            raise ValueError(
                "config.augment.colour 'host' cannot rotate or shear; set both to 0, or"
                " augment.colour=device"
            )
        if data.resize == "device":
            raise ValueError(
                "config.augment.colour 'host' needs crops that are resized there too;"
                " set data.resize=host, or augment.colour=device"
            )
        host_pixels.compile()
    if encoded and turned and data.resize == "device":
        raise ValueError(
            "config.data.resize 'device' would show what surrounds a crop where"
            " augment.rotation or augment.shear turns it; set data.resize=host"
        )


def is_small(images: Any) -> bool:
    """Tells whether every device can hold all images: arrays of at most 1 GiB."""
    return isinstance(images, np.ndarray) and images.nbytes <= IN_MEMORY


def canvas(images: Any, config: Config) -> int:
    """Returns height and width of what encoded images are put on, uncropped, or 0.

    Decoding leaves the host more time if the accelerator does the resizing. Rotation
    and shear would show what surrounds a crop, so their images are cropped on the host.
    """
    resize, policy = config.data.resize, config.augment
    if resize == "auto":
        bound = jax.default_backend() == "cpu" or policy.colour == "host"
        bound = bound or policy.rotation or policy.shear
        resize = "host" if bound else "device"
    if resize == "host" or not isinstance(images, Encoded):
        return 0
    return images.canvas(config.data.image_size)


def batch(
    planner: plan.Planner,
    images: Any,
    config: Config,
    step: int,
    *,
    rows: slice,
    canvas: int = 0,
) -> tuple[np.ndarray, views.Parameters]:
    """Returns the host's part of a step: what to see, and augmentation parameters.

    That is the indices of images that the device holds, else images or crops of them.

    Args:
      rows: of the global batch, those that this host prepares. They do not depend on
        what other hosts do.
      canvas: see `Encoded.views`.
    """
    indices, uniforms = (x[rows] for x in planner(step))
    data = config.data
    if isinstance(images, Encoded):
        return images.views(
            indices,
            uniforms,
            policies(config)[: uniforms.shape[1]],
            size=data.image_size,
            channels=len(data.mean),
            canvas=canvas,
            colour=config.augment.colour == "host",
        )
    held = is_small(images)
    chosen = indices.astype(np.int32) if held else images[indices]
    sizes = np.array((images if held else chosen).shape[1:3])
    drawn = policies(config)[: uniforms.shape[1]]
    return chosen, views.parameters(uniforms, sizes, drawn)


class Renderer:
    """The device's part of every step: batch -> normalized views, see `render`.

    Attributes:
      sharding: of the parts of (*resident(), *batch), over the mesh.
    """

    def __init__(self, images: Any, config: Config, mesh: Mesh):
        whole, split = sharding.whole(mesh), sharding.split(mesh)
        self._images, self._config, self._whole = images, config, whole
        self._placed = None
        self._in_turn = jax.default_backend() == "cpu" and mesh.size == 1
        self.held = is_small(images)
        self.sharding = (whole if self.held else (), (split, split))

    def resident(self) -> tuple[jax.Array, ...]:
        """Returns what the devices hold throughout: all images, or nothing."""
        if not self.held:
            return ()
        # In rows: the tiles of a TPU would blow up a last axis of 3 channels.
        rows = self._images.reshape(len(self._images), -1)
        if self._placed is None:
            self._placed = (sharding.place(rows, self._whole),)
        return self._placed

    def __call__(self, batch: tuple[Any, ...]) -> jax.Array:
        resident, batch = batch
        shape = self._images.shape[1:] if self.held else ()
        how = dict(config=self._config, in_turn=self._in_turn, shape=shape)
        return render((*resident, *batch), **how)


def render(
    batch: tuple[Any, ...],
    *,
    config: Config,
    in_turn: bool = False,
    shape: tuple[int, ...] = (),
) -> jax.Array:
    """Returns the device's part: the normalized views [b, v, s, s, c] of a batch.

    Args:
      batch: (images, parameters), or (all images [n, h * w * c], indices, parameters).
      in_turn: see `pixels.recolour`.
      shape: [h, w, c] of the images, where all of them are given.
    """
    *given, parameters = batch
    if len(given) == 2:
        everything, indices = given
        images = everything[indices].reshape(len(indices), *shape)
    else:
        (images,) = given
    data = config.data
    result = []
    for i, policy in enumerate(policies(config)[: parameters.flip.shape[1]]):
        view = jax.tree.map(lambda x, i=i: x[:, i], parameters)
        if config.augment.colour == "host":
            pictures = pixels.as_float(images[:, i])
        elif images.ndim == 5:  # crops [b, v, size, size, c]
            pictures = pixels.render_crops(
                images[:, i], view, policy=policy, in_turn=in_turn
            )
        else:
            pictures = pixels.render(
                images, view, size=data.image_size, policy=policy, in_turn=in_turn
            )
        result.append(pixels.normalize(pictures, mean=data.mean, std=data.std))
    return jnp.stack(result, axis=1)
