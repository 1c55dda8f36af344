"""Exact nearest neighbours of features by cosine similarity, and votes of their labels.

Nothing here encodes an image or learns anything.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, PartitionSpec

from vicreg_jax.devices import sharding
from vicreg_jax.refusals import Refusal

__all__ = ["accuracy", "nearest", "votes"]

CHUNK = 4096  # rows or queries that the host looks at together, for its memory


def nearest(
    queries: np.ndarray,
    bank: np.ndarray,
    *,
    k: int,
    mesh: Mesh,
    score_bytes: int = 2**28,
) -> tuple[np.ndarray, np.ndarray]:
    """Returns the k rows of a bank that are most similar to each query.

    They come as similarities, float32 [m, k], and indices of rows, int32 [m, k]. The
    similarity is the cosine, in float32 from products in full precision. The most
    similar row comes first, of equal ones that of the lower index; a row of zeros has
    the similarity 0 to everything.

    Every device of the mesh keeps its share of the bank, finds the best k of its own
    rows for a block of queries, and the best of all devices' candidates win. ImageNet's
    bank of 1,281,167 x 2048 takes 10.5 GB, so 1.3 GB on each of 8 devices; beside it
    are the scores of a block, here of 419 queries, and k candidates a query and device.

    Args:
      queries: [m, f]; bank: [n, f]; any float dtype, rounded to float32, of any scale.
      k: neighbours, at most n.
      mesh: of the devices that share the work.
      score_bytes: what the scores of a block take on each device; one query at least
        is looked up at a time, whatever it takes.

    Raises:
      Refusal: shapes that do not fit, k outside 1 to n, or features that are not
        finite in float32.
    """
    queries, bank = np.asarray(queries), np.asarray(bank)
    if queries.ndim != 2 or bank.ndim != 2 or queries.shape[1:] != bank.shape[1:]:
        raise Refusal(
            "neighbours need queries [m, f] and a bank [n, f] of the same f; got"
            f" {queries.shape} and {bank.shape}"
        )
    m, n = len(queries), len(bank)
    if not 1 <= k <= n:
        raise Refusal(f"k must be from 1 to the {n} rows of the bank; got {k}")
    norms = [_norms(x, name) for x, name in ((queries, "queries"), (bank, "bank"))]

    rows = -(-n // mesh.size)
    padded, split = rows * mesh.size, sharding.split(mesh)
    block = min(max(1, score_bytes // (4 * rows)), max(m, 1))

    def share(index):
        return _unit(bank, norms[1], *index[0].indices(padded)[:2])

    placed = jax.make_array_from_callback((padded, bank.shape[1]), split, share)
    similarities, indices = np.empty((m, k), np.float32), np.empty((m, k), np.int32)
    for start in range(0, m, block):
        here = slice(start, start + block)
        units = _unit(queries, norms[0], start, start + block)
        units = sharding.place(units, sharding.whole(mesh))
        found = jax.device_get(_search(units, placed, n=n, k=k, mesh=mesh))
        similarities[here], indices[here] = (part[: m - start] for part in found)
    return similarities, indices


def votes(
    similarities: np.ndarray,
    labels: np.ndarray,
    *,
    classes: int,
    temperature: float | None,
) -> np.ndarray:
    """Returns the votes of neighbours for classes, float64 [m, classes].

    A neighbour of similarity s votes with exp((s - s_1) / temperature), where s_1 is
    the similarity of the nearest one: the weights of the source, up to a factor of each
    query that keeps them finite. Without a temperature every neighbour has one vote,
    and a class gets up to half a vote more, the more the nearer its nearest neighbour
    is: a tie goes to the class of the nearest neighbour among those tied.

    Args:
      similarities: float [m, k], the nearest first, as `nearest` gives them; labels:
        int [m, k], of the same neighbours. The votes of fewer neighbours are those of
        the first columns.
      classes: their number; labels are 0 to classes - 1.
      temperature: of the weights, or None for one vote each.

    Raises:
      Refusal: shapes that differ, labels out of range, or a temperature <= 0.

    Source: arXiv:1805.01978, section 3.4.
    """
    similarities, labels = np.asarray(similarities), np.asarray(labels)
    if similarities.ndim != 2 or similarities.shape != labels.shape:
        raise Refusal(
            "votes need similarities and labels of one shape [m, k]; got"
            f" {similarities.shape} and {labels.shape}"
        )
    _check_labels(labels, classes, "neighbours")
    if temperature is not None and not temperature > 0:
        raise Refusal(f"the temperature must be > 0 or None; got {temperature}")
    m, k = labels.shape
    cells, size = np.arange(m)[:, None] * classes + labels, m * classes
    if temperature is not None:
        weights = np.exp((similarities - similarities[:, :1]) / float(temperature))
        return np.bincount(cells.ravel(), weights.ravel(), size).reshape(m, classes)
    first = np.full(size, k)
    np.minimum.at(first, cells, np.arange(k)[None, :])
    counts = np.bincount(cells.ravel(), minlength=size)
    return (counts + (k - first) / (2 * k)).reshape(m, classes)


def accuracy(
    queries: np.ndarray,
    labels: np.ndarray,
    bank: np.ndarray,
    bank_labels: np.ndarray,
    *,
    neighbours: tuple[int, ...] = (1, 10, 20, 200),
    temperature: float = 0.07,
    mesh: Mesh,
    classes: int,
) -> dict[tuple[int, str], tuple[float, float]]:
    """Returns (k, "weighted" or "plain") -> top-1 and top-5 accuracy in per cent.

    One search serves every k. Of classes with equal votes the lower number is ranked
    first, and a class without votes is never right.

    Args:
      queries: [m, f]; bank: [n, f]; see `nearest`. labels: int [m]; bank_labels:
        int [n].
      neighbours: the k to vote with.
      temperature: of the weighted votes, see `votes`.
      mesh, classes: see `nearest` and `votes`.

    Raises:
      Refusal: see `nearest` and `votes`; no queries, labels that do not fit them.
    """
    labels, bank_labels = np.asarray(labels), np.asarray(bank_labels)
    for known, x, name in ((labels, queries, "queries"), (bank_labels, bank, "bank")):
        if known.shape != (len(x),):
            raise Refusal(
                f"the {len(x)} rows of the {name} need as many labels; got labels of"
                f" shape {known.shape}"
            )
        _check_labels(known, classes, name)
    if not len(queries) or not neighbours:
        raise Refusal(
            "an accuracy needs at least one query and one k; got"
            f" {len(queries)} queries and neighbours={neighbours}"
        )
    similarities, indices = nearest(queries, bank, k=max(neighbours), mesh=mesh)
    kinds = {"weighted": temperature, "plain": None}
    found = {}
    for k, (name, t) in itertools.product(neighbours, kinds.items()):
        ranks = []
        for start in range(0, len(labels), CHUNK):
            here = slice(start, start + CHUNK)
            near = bank_labels[indices[here, :k]]
            scores = votes(similarities[here, :k], near, classes=classes, temperature=t)
            ranks.append(_ranks(scores, labels[here]))
        rank = np.concatenate(ranks)
        found[k, name] = tuple(100 * float(np.mean(rank < top)) for top in (1, 5))
    return found


@partial(jax.jit, static_argnames=("n", "k", "mesh"))
def _search(queries, bank, *, n, k, mesh):
    """Returns the best k of all rows: the devices' own best, merged."""
    rows, padded = len(bank) // mesh.size, len(bank) - n
    kept = min(k + padded, rows)  # the padded rows may be among a device's best
    split, whole = sharding.split(mesh).spec, sharding.whole(mesh)

    def own(queries, bank):
        scores = jnp.matmul(queries, bank.T, precision=jax.lax.Precision.HIGHEST)
        return jax.lax.top_k(scores, kept)

    specs = dict(in_specs=(whole.spec, split), out_specs=PartitionSpec(None, *split))
    found = jax.shard_map(own, mesh=mesh, **specs)(queries, bank)
    scores, indices = jax.lax.with_sharding_constraint(found, whole)
    indices += rows * jnp.repeat(jnp.arange(mesh.size, dtype=jnp.int32), kept)[None, :]
    # top_k takes the first of equals. The candidates are in the order of the devices
    # and so of the bank, hence of ties the lower index wins.
    scores, places = jax.lax.top_k(jnp.where(indices < n, scores, -jnp.inf), k)
    best = scores, jnp.take_along_axis(indices, places, axis=1)
    return jax.lax.with_sharding_constraint(best, whole)  # every process reads them


def _norms(x, name):
    """Returns the lengths of rows, float32 [n], of features that are finite."""
    norms = np.empty(len(x), np.float32)
    for start in range(0, len(x), CHUNK):
        with np.errstate(over="ignore"):
            part = np.asarray(x[start : start + CHUNK], np.float32)
            squares = np.einsum("nf,nf->n", part, part, dtype=np.float64)
            norms[start : start + CHUNK] = np.sqrt(squares)
    wrong = np.count_nonzero(~np.isfinite(norms))
    if wrong:
        raise Refusal(
            f"{wrong} of the {len(x)} rows of the {name} are not finite in float32;"
            " look for a diverged encoder"
        )
    return norms


def _unit(x, norms, start, stop):
    """Returns rows start to stop of x as unit vectors, zeros beyond its end."""
    units = np.zeros((stop - start, x.shape[1]), np.float32)
    for at in range(start, min(stop, len(x)), CHUNK):
        to = min(at + CHUNK, stop, len(x))
        length = np.where(norms[at:to] == 0, np.float32(1), norms[at:to])
        np.divide(x[at:to], length[:, None], units[at - start : to - start])
    return units


def _ranks(scores, labels):
    """Returns how many classes come before the right one, int [m]."""
    own = np.take_along_axis(scores, labels[:, None], axis=1)
    lower = np.arange(scores.shape[1])[None, :] < labels[:, None]
    before = (scores > own) | ((scores == own) & lower)
    return np.where(own[:, 0] > 0, before.sum(axis=1), scores.shape[1] + 5)


def _check_labels(labels, classes, name):
    if not np.issubdtype(labels.dtype, np.integer):
        raise Refusal(f"labels of the {name} must be integers; got {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise Refusal(
            f"labels of the {name} must be from 0 to {classes - 1}; got"
            f" {labels.min()} to {labels.max()}"
        )
