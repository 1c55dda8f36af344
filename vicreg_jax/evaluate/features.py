"""Frozen features of whole images, in memory or in files; no crops, no gradients."""

import functools
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
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
from vicreg_jax.data.source import Source, as_source, check_channels
from vicreg_jax.devices import processes, sharding
from vicreg_jax.refusals import NotFound, Refusal, Unusable
from vicreg_jax.run.prefetch import Feed
from vicreg_jax.weights import Encoder

__all__ = ["Features", "Whole", "checksum", "encode", "joined", "parts", "stream"]

BATCH = 256
ROWS = 2**16  # of a file


class Whole(NamedTuple):
    """Images to be seen whole, or of files the centre."""

    source: Source
    data: Data  # image size, mean and std
    rows: np.ndarray | None = None  # int [n], which images; all
    shorter_side: int = 0  # of files before the centre is cut out; 8/7 image_size

    @property
    def shorter(self) -> int:
        return self.shorter_side or round(self.data.image_size * 8 / 7)


class Features(NamedTuple):
    """What `joined` returns; arrays in host memory."""

    representations: np.ndarray  # float32 [n, f]
    names: np.ndarray  # str [n]; for arrays the numbers of the images
    embeddings: np.ndarray | None = None  # float32 [n, d]
    labels: np.ndarray | None = None  # int [n]


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
      Refusal: the encoder's image size is not known, images have other channels, there
        are no such rows, or a file cannot be read.
    """
    data = Data(image_size=encoder.known_size(), mean=encoder.mean, std=encoder.std)
    source = as_source(images)
    check_channels(source, encoder.channels)
    whole = Whole(source, data, _checked_rows(rows, len(source)), shorter_side)
    apply = functools.partial(encoder.module.apply, train=False)
    return np.concatenate(list(stream(apply, encoder.variables, whole, mesh=mesh)))


def _checked_rows(rows, count):
    if rows is None:
        return None
    rows = np.asarray(rows)
    whole = rows.ndim == 1 and rows.size and np.issubdtype(rows.dtype, np.integer)
    if not (whole and 0 <= rows.min() and rows.max() < count):
        raise Refusal(
            f"expected rows as one or more integers from 0 to {count - 1}, [n]; got"
            f" {rows.dtype} {list(rows.shape)}"
            + (f" from {rows.min()} to {rows.max()}" if rows.size else "")
        )
    return rows


def stream(
    apply: Callable[[Any, jax.Array], Any],
    variables: Any,
    whole: Whole,
    *,
    mesh: Mesh | None = None,
):
    """Yields a tree of float32 [b, ...] for each batch of images: see `encode`.

    Args:
      apply: (variables, views [b, s, s, c]) -> a tree of [b, ...].
    """
    mesh = sharding.data_mesh() if mesh is None else mesh
    source, data = whole.source, whole.data
    rows = np.arange(len(source)) if whole.rows is None else whole.rows
    size = -(-BATCH // mesh.size) * mesh.size
    own, failed = sharding.rows(size), []

    def make(step):
        chosen = rows[step * size : (step + 1) * size]
        chosen = np.pad(chosen, (0, size - len(chosen)), mode="edge")[own]
        side, channels = data.image_size, len(data.mean)
        try:
            return source.centres(
                chosen, size=side, shorter=whole.shorter, channels=channels
            )
        except Refusal as error:
            failed.append(error)
            return np.zeros((len(chosen), side, side, channels), np.uint8)

    see, variables = _see(apply, data, mesh), sharding.replicate(variables, mesh)
    stop = -(-len(rows) // size)
    for step, batch in Feed(make, range(stop), sharding=sharding.split(mesh)):
        if failed and jax.process_count() == 1:
            raise failed[0]
        kept = min(size, len(rows) - step * size)  # the rest repeats the last image
        yield jax.tree.map(lambda x, k=kept: np.asarray(x)[:k], see(variables, batch))
    with processes.all_or_none(Refusal):  # one that left early would bar the others
        if failed:
            raise failed[0]


def parts(
    apply: Callable[[Any, jax.Array], dict[str, jax.Array]],
    variables: Any,
    whole: Whole,
    folder: Path,
    *,
    data: Mapping[str, str],
    mesh: Mesh,
    progress: Callable[[int], None] = lambda done: None,
) -> Iterator[dict[str, np.ndarray]]:
    """Yields the content of files of features in a folder, after writing what lacks.

    Each file, part-00000.npz and so on, holds `representations`, perhaps `embeddings`
    and `labels`, and `names`, of up to 65,536 images, and is complete or absent: what
    was stopped goes on where it was, and a damaged file is made again. Of several
    processes each calls this alike and gets all features; the first writes.

    Args:
      apply: (variables, views) -> a dict of "representations" and "embeddings".
      data: digests of the images; files of others are refused.
      progress: is told how many images are done.

    Raises:
      Refusal: the folder holds the features of something else, or a file cannot be
        read.
    """
    rows = np.arange(len(whole.source)) if whole.rows is None else whole.rows
    view, lead = whole.data, jax.process_index() == 0
    facts = dict(
        variables=checksum(variables),
        rows=zlib.crc32(np.ascontiguousarray(rows, np.int64)),
        images=len(rows),
        data=dict(data),
        sees=[view.image_size, whole.shorter, list(view.mean), list(view.std)],
    )
    names = {"representations", "names"}
    names |= set() if whole.source.labels is None else {"labels"}
    with processes.all_or_none(Refusal):
        if lead:
            _claim(folder, facts)
    for number, start in enumerate(range(0, len(rows), ROWS)):
        path, chosen = folder / f"part-{number:05}.npz", rows[start : start + ROWS]
        part = _read(path, len(chosen), names)
        if processes.first_line("missing" if part is None else ""):  # to any of them
            outputs, done = [], start
            batch = whole._replace(rows=chosen)
            for output in stream(apply, variables, batch, mesh=mesh):
                outputs.append(output)
                done += len(output["representations"])
                progress(done)
            part = _joined(outputs) | _known(whole.source, chosen)
            with processes.all_or_none(Unusable):
                if lead:
                    files.write_npz(path, part)
        progress(start + len(chosen))
        yield part


def joined(found: Iterable[dict[str, np.ndarray]]) -> Features:
    """Returns all features of the files that `parts` yields."""
    return Features(**_joined(list(found)))


def checksum(tree: Any) -> int:
    """Returns the CRC-32 of all arrays of a tree."""
    value = 0
    for leaf in jax.tree.leaves(tree):
        value = zlib.crc32(np.ascontiguousarray(leaf).reshape(-1).view(np.uint8), value)
    return value


def _joined(found):
    return {name: np.concatenate([x[name] for x in found]) for name in found[0]}


def _known(source, rows):
    """Returns the labels of images, where there are any, and their names."""
    labels = (
        {} if source.labels is None else {"labels": np.asarray(source.labels[rows])}
    )
    names = source.names
    shown = rows if names is None else [names[i] for i in rows.tolist()]
    return labels | {"names": np.array([str(name) for name in shown])}


def _claim(folder, facts):
    """Makes the folder for these features; refuses one of others."""
    with files.writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
    index = folder / "index.json"
    if not index.exists() and not any(folder.glob("part-*.npz")):
        files.write_json(index, facts)
    found = files.read_json(index, {})
    if found != facts:
        other = [name for name in facts if found.get(name) != facts[name]]
        raise Refusal(
            f"{folder} holds features of another {', '.join(other)}; remove it, or"
            " choose another --workdir"
        )


def _read(path, count, names):
    """Returns the arrays of a file, if they are whole and of so many images."""
    try:
        found = files.read_npz(path)
    except NotFound:
        return None
    except Unusable as error:
        logging.warning("%s; it is made again", error)
        return None
    if found.keys() >= names and all(x.shape[:1] == (count,) for x in found.values()):
        return found
    logging.warning("%s has other arrays; it is made again", path)
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
