"""One step's batch: the host's part, and the device's that turns it into views."""

from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from vicreg_jax.config import Config
from vicreg_jax.data import plan, tf_data
from vicreg_jax.data.augment import draw, on_device, on_host
from vicreg_jax.data.source import Source
from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal

__all__ = ["Batch", "Batches", "Views", "policies", "views_like"]

# Of n images [n, v, h, w, c]; or a pair of that: the global and the local views.
Views = jax.Array | tuple[jax.Array, jax.Array]


@flax.struct.dataclass
class Batch:
    """The images of a batch and what to do to them, for v views of each of b images.

    Attributes:
      images: by the kind:
        "whole": uint8 [b, h, w, c], which the device crops
        "crops": uint8 [b, v, size, size, c], which the device recolours; with local
          views one after the other, see `How.views_in`
        "finished": the same, the views
        "normalized": float32 [b, v, size, size, c], the views as the network sees them
        "held": int32 [b], numbers of images that every device holds, and crops
      parameters: arrays [b, v, ...].
    """

    images: Any
    parameters: draw.Parameters
    kind: str = flax.struct.field(pytree_node=False)


class Batches:
    """Makes the batches of a run on the host, and renders them on the devices.

    Attributes:
      held: whether every device holds all images, so that a batch is small.
      pipeline: what reads and decodes image files, "tf_data" or "threads"; or "".
      canvas: height and width of images that the device crops, if they differ; or 0.
      sharding: of (what `resident` returns, a batch), over the mesh.

    Args:
      source: where the images are from; some of them are looked at.
      config: its data, augmentations and guard.
      mesh: of one axis, "data".

    Raises:
      Refusal: these images are not what the config describes, or do not allow what it
        wants to have done, where it wants it.
      NotInstalled: colours on the host, and Numba is not installed.
    """

    def __init__(self, source: Source, config: Config, mesh: Mesh):
        self._source, self._config = source, config
        self._policies = policies(config)
        accelerator = jax.default_backend() != "cpu"
        self._how = source.how(config, accelerator=accelerator)
        source.check(config)
        if self._how.kind == "finished":
            on_host.compile()
        self._in_turn = not accelerator and mesh.size == 1
        self.pipeline = _pipeline(config, source, accelerator=accelerator)
        self.held = self._how.kind == "held"
        self.canvas = self._how.canvas
        self.sharding = sharding.whole(mesh), sharding.split(mesh)
        self._resident = None

    def make(
        self, planner: Callable[[int], plan.Plan], step: int, rows: slice
    ) -> Batch:
        """Returns the host's part of a step.

        Args:
          rows: of the global batch, those that this host prepares. They do not depend
            on what other hosts do.
        """
        indices, uniforms = (x[rows] for x in planner(step))
        images, parameters = self._source.views(
            indices, uniforms, self._policies, self._how
        )
        return Batch(images, parameters, self._how.kind)

    def stream(
        self, planner: Callable[[int], plan.Plan], rows: slice, *, stop: int
    ) -> Callable[[int], Batch]:
        """Returns `make` for steps in order, by the config's pipeline, which is ahead.

        Args:
          planner: may be called by several threads.
          stop: the step after the last.
        """
        if self.pipeline != "tf_data":
            return lambda step: self.make(planner, step, rows)
        how = dict(policies=self._policies, how=self._how)
        made = tf_data.Stream(self._source, planner, rows=rows, stop=stop, **how)
        return lambda step: Batch(*made.views(step), self._how.kind)

    def resident(self) -> tuple[jax.Array, ...]:
        """Returns what the devices hold throughout: all images, or nothing."""
        if not self.held:
            return ()
        if self._resident is None:
            # In rows: the tiles of a TPU would blow up a last axis of 3 channels.
            rows = self._source.array.reshape(len(self._source), -1)
            self._resident = (sharding.place(rows, self.sharding[0]),)
        return self._resident

    def render(self, resident: tuple[jax.Array, ...], batch: Batch) -> Views:
        """Returns the normalized views, float32 [b, v, size, size, c]."""
        images, data = batch.images, self._config.data
        if batch.kind == "normalized":
            return images
        if batch.kind == "held":
            (everything,) = resident
            shape = self._source.array.shape[1:]
            images = everything[images].reshape(len(images), *shape)
        made = batch.kind in ("finished", "crops")
        parts = self._how.views_in(images) if made else [images] * len(data.sizes)
        seen = []
        for i, (policy, size) in enumerate(
            zip(self._policies, data.sizes, strict=True)
        ):
            view = jax.tree.map(lambda x, i=i: x[:, i], batch.parameters)
            how = dict(policy=policy, in_turn=self._in_turn)
            if batch.kind == "finished":
                pixels = on_device.as_float(parts[i])
            elif batch.kind == "crops":
                pixels = on_device.render_crops(parts[i], view, **how)
            else:
                pixels = on_device.render(parts[i], view, size=size, **how)
            seen.append(on_device.normalize(pixels, mean=data.mean, std=data.std))
        stack = partial(jnp.stack, axis=1)
        if not data.local_views:
            return stack(seen)
        return stack(seen[: data.views]), stack(seen[data.views :])


def views_like(config: Config, rows: int) -> Views:
    """Returns shape and dtype of the views of so many images."""
    data, found = config.data, []
    for count, size in (
        (data.views, data.sizes[0]),
        (data.local_views, data.sizes[-1]),
    ):
        shape = (rows, count, size, size, len(data.mean))
        found.append(jax.ShapeDtypeStruct(shape, jnp.float32))
    return tuple(found) if data.local_views else found[0]


def _pipeline(config, source, *, accelerator):
    """Returns what is to read image files: "tf_data", "threads", or "" for others."""
    wanted = config.data.pipeline
    if source.read is None:
        if wanted != "tf_data":
            return ""
        raise Refusal(
            "config.data.pipeline 'tf_data' is for image files (data.name=folder,"
            " prepared, tfrecord, or tfds of any sizes); data.name"
            f" {config.data.name!r} gives arrays; leave data.pipeline=auto"
        )
    if wanted == "auto":
        return "tf_data" if accelerator and tf_data.installed() else "threads"
    return wanted


def policies(config: Config) -> list[draw.Policy]:
    """Returns the augmentations of config.data.views views, then of the local ones.

    View i has the i-th probabilities of blur and solarize, which begin again at their
    end.
    """
    shared = asdict(config.augment)
    del shared["colour"]
    local = {"crop_scale": shared.pop("local_scale")}
    turns = {name: shared.pop(name) for name in ("blur", "solarize")}
    found = []
    for i in range(len(config.data.sizes)):
        own = {name: x[i % len(x)] for name, x in turns.items()}
        own |= local if i >= config.data.views else {}
        found.append(draw.Policy(**shared | own))
    return found
