"""Frozen features of whole images, in memory or in files; no crops, no gradients."""

import functools
import json
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from vicreg_jax import files
from vicreg_jax.config import Data
from vicreg_jax.data.augment import on_device
from vicreg_jax.data.source import Source, as_source
from vicreg_jax.devices import processes, sharding
from vicreg_jax.refusals import Refusal
from vicreg_jax.run.prefetch import Feed
from vicreg_jax.weights import Encoder

BATCH = 256
ROWS = 2**16  # of a file


class Features(NamedTuple):
    """What `joined` returns; arrays in host memory."""

    representations: np.ndarray  # float32 [n, f]
    embeddings: np.ndarray | None  # float32 [n, d]
    labels: np.ndarray | None  # int [n]
    names: np.ndarray  # str [n]; for arrays the numbers of the images


def encode(
    encoder: Encoder,
    images: Any,
    *,
    rows: np.ndarray | None = None,
    shorter_side: int = 0,
    mesh: Mesh | None = None,
) -> np.ndarray:
    """Returns the representations of images, float32 [n, f], by all devices.

    Args:
      images: a `Source` or what `as_source` makes one of: arrays uint8 [n, h, w, c],
        seen whole, or files, of which the centre is seen; either at the encoder's
        image size.
      shorter_side: of files before the centre is cut out; by default 8/7 image_size.
      rows: int [n], which images; by default all.
      mesh: by default over all devices.

    Raises:
      Refusal: the encoder's image size is not known, or a file cannot be read.
    """
    data = Data(image_size=encoder.known_size(), mean=encoder.mean, std=encoder.std)

    def apply(variables, views):
        return encoder.module.apply(variables, views, train=False)

    how = dict(shorter_side=shorter_side, rows=rows, mesh=mesh)
    found = stream(apply, encoder.variables, as_source(images), data, **how)
    return np.concatenate(list(found))


def stream(
    apply: Callable[[Any, jax.Array], Any],
    variables: Any,
    source: Source,
    data: Data,
    *,
    shorter_side: int = 0,
    rows: np.ndarray | None = None,
    mesh: Mesh | None = None,
):
    """Yields a tree of float32 [b, ...] for each batch of images: see `encode`.

    Args:
      apply: (variables, views [b, s, s, c]) -> a tree of [b, ...].
    """
    mesh = sharding.data_mesh() if mesh is None else mesh
    rows = np.arange(len(source)) if rows is None else rows
    split = sharding.split(mesh)
    size = -(-BATCH // mesh.size) * mesh.size

    see = _see(apply, data, mesh)

    own, failed = sharding.rows(size), []

    def make(step):
        chosen = rows[step * size : (step + 1) * size]
        chosen = np.pad(chosen, (0, size - len(chosen)), mode="edge")[own]
        try:
            return source.centres(
                chosen,
                size=data.image_size,
                shorter=shorter_side or round(data.image_size * 8 / 7),
                channels=len(data.mean),
            )
        except Refusal as error:
            failed.append(error)
            shape = (data.image_size, data.image_size, len(data.mean))
            return np.zeros((len(chosen), *shape), np.uint8)

    variables = sharding.replicate(variables, mesh)
    stop = -(-len(rows) // size)
    for step, batch in Feed(make, range(stop), sharding=split):
        if failed and jax.process_count() == 1:
            raise failed[0]
        kept = min(size, len(rows) - step * size)  # the rest repeats the last image
        yield jax.tree.map(lambda x, k=kept: np.asarray(x)[:k], see(variables, batch))
    with processes.all_or_none(ValueError):  # one that left early would bar the others
        if failed:
            raise failed[0]


def parts(
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]],
    variables: Any,
    images: Source,
    data: Data,
    folder: Path,
    *,
    rows: np.ndarray,
    shorter_side: int,
    mesh: Mesh,
    source: str,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the content of files of features in a folder, after writing what lacks.

    Each file, part-00000.npz and so on, holds `representations`, perhaps `embeddings`
    and `labels`, and `names`, of up to 65,536 images, and is complete or absent: what
    was stopped goes on where it was, and a damaged file is made again. Of several
    processes each calls this alike and gets all features; the first writes.

    Args:
      apply: (variables, views) -> a dict of "representations" and "embeddings".
      rows: int [n], which images.
      source: what made the features; files of another are refused.
      progress: is told how many images are done.

    Raises:
      ValueError: the folder holds the features of something else, or a file cannot be
        read.
    """
    facts = dict(
        source=source,
        variables=checksum(variables),
        rows=zlib.crc32(np.ascontiguousarray(rows, np.int64)),
        images=len(rows),
        data=[data.name, data.path, data.dataset, data.split],
        sees=[data.image_size, shorter_side, list(data.mean), list(data.std)],
    )
    lead = jax.process_index() == 0
    with processes.all_or_none(ValueError):
        if lead:
            _claim(folder, facts)
    for number, start in enumerate(range(0, len(rows), ROWS)):
        path = folder / f"part-{number:05}.npz"
        chosen = rows[start : start + ROWS]
        part = _read(path)
        if processes.first_line("missing" if part is None else ""):  # to any of them
            how = dict(shorter_side=shorter_side, rows=chosen, mesh=mesh)
            outputs = []
            done = start
            batches = stream(apply, variables, images, data, **how)
            for output in batches:
                outputs.append(output)
                done += len(output["representations"])
                progress(done)
            part = {
                name: np.concatenate([output[name] for output in outputs])
                for name in outputs[0]
            }
            if images.labels is not None:
                part["labels"] = np.asarray(images.labels[chosen])
            names = images.names
            shown = chosen if names is None else [names[i] for i in chosen.tolist()]
            part["names"] = np.array([str(name) for name in shown])
            with processes.all_or_none(OSError):
                if lead:
                    _write(path, part)
        progress(start + len(chosen))
        yield part


def joined(found: Iterable[dict[str, np.ndarray]]) -> Features:
    """Returns all features of the files that `parts` yields."""
    found = list(found)
    whole = {name: np.concatenate([p[name] for p in found]) for name in found[0]}
    return Features(
        whole["representations"],
        whole.get("embeddings"),
        whole.get("labels"),
        whole["names"],
    )


def _claim(folder, facts):
    """Makes the folder for these features; refuses one of others."""
    folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.json"
    if not index.exists():
        files.write_json(index, facts)
    elif (found := json.loads(index.read_text())) != facts:
        other = [name for name in facts if found.get(name) != facts[name]]
        raise ValueError(
            f"{folder} holds features of another {', '.join(other)}; remove it, or"
            " choose another --workdir"
        )


def _write(path, part):
    draft = path.with_suffix(".tmp")
    with draft.open("wb") as file:
        np.savez(file, **part)
        file.flush()
        os.fsync(file.fileno())
    os.replace(draft, path)


def _read(path):
    """Returns the arrays of a file, whose own checksums hold, or None."""
    if not path.exists():
        return None
    try:
        with path.open("rb") as file, np.load(file) as content:
            return dict(content)
    except Exception as error:  # whatever a damaged file makes zipfile or NumPy raise
        logging.warning("%s is damaged and made again: %s", path, error)
        return None


@functools.lru_cache(maxsize=8)
def _see(apply, data, mesh):
    """Returns the jitted part of `stream`: compiled once for the same function."""

    def see(variables, pictures):
        outputs = apply(variables, _whole_views(pictures, data))
        return jax.tree.map(lambda x: x.astype(jnp.float32), outputs)

    whole, split = sharding.whole(mesh), sharding.split(mesh)
    return jax.jit(see, in_shardings=(whole, split), out_shardings=whole)


def _whole_views(images, data):
    n, height, width = images.shape[:3]
    views = on_device.as_float(images)
    if (height, width) != (data.image_size, data.image_size):
        box = np.tile(np.array([0, 0, height, width], np.float32), (n, 1))
        views = on_device.crop_resize(views, box, size=data.image_size)
    return on_device.normalize(views, mean=data.mean, std=data.std)


def checksum(tree: Any) -> int:
    """Returns the CRC-32 of all arrays of a tree."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), value)
    return value
