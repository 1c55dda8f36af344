"""Arrays behind the pictures of a gallery: a map, neighbours; it draws nothing."""

import contextlib
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

MOST = 5000  # images of a gallery: the page and the map have their limits


class Gallery(NamedTuple):
    """What a report shows of some images."""

    features: np.ndarray  # float32 [n, f], their representations
    thumbnails: np.ndarray  # uint8 [n, t, t, c]
    labels: np.ndarray | None  # int [n]
    classes: Sequence[str]  # names of the labels; may be empty
    views: np.ndarray  # uint8 [k, 2, s, s, c]: the augmented views of k images


def check(gallery: Gallery) -> None:
    """Raises ValueError where the arrays do not fit each other."""
    features, thumbnails, labels, _, views = gallery
    n = len(features)
    if features.ndim != 2 or not 2 <= n <= MOST:
        raise ValueError(
            f"gallery.features are [n, f] with n from 2 to {MOST}; got {features.shape}"
        )
    if not np.isfinite(features).all():
        raise ValueError("gallery.features must be finite; got nan or inf")
    for name, images, good, wanted in (
        ("thumbnails", thumbnails, thumbnails.ndim == 4, "[n, t, t, 1 or 3]"),
        (
            *("views", views, views.ndim == 5 and views.shape[1] == 2),
            "pairs [k, 2, s, s, 1 or 3]",
        ),
    ):
        if not good or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
            raise ValueError(
                f"gallery.{name} are uint8 {wanted}; got {images.dtype} {images.shape}"
            )
    if len(thumbnails) != n or (labels is not None and labels.shape != (n,)):
        found = "none" if labels is None else labels.shape
        raise ValueError(
            f"gallery: {n} features need {n} thumbnails and labels; got"
            f" {len(thumbnails)} and {found}"
        )


def project(features: np.ndarray) -> tuple[str, np.ndarray]:
    """Returns the name of a method and a map of the features, float64 [n, 2].

    Of features [n, f] of unit length, so that near means a large cosine. UMAP where it
    is installed, else t-SNE of scikit-learn, else principal components; deterministic.
    """
    x = _unit(features)
    method = _method() if len(x) >= 10 else None
    if method is None:
        return "PCA", pca(x, 2)
    x = pca(x, min(50, *x.shape))
    if method.__name__ == "UMAP":
        return "UMAP", method(random_state=0, n_jobs=1).fit_transform(x).astype(float)
    start = x[:, :2] * (1e-4 / max(np.std(x[:, 0]), 1e-12))
    perplexity = min(30.0, (len(x) - 1) / 3)
    tsne = method(init=start, perplexity=perplexity, random_state=0)
    return "t-SNE", tsne.fit_transform(x).astype(float)


def _method():
    """Returns the class UMAP or TSNE, whichever is installed, None without either."""
    # UMAP's import pulls in TensorFlow and torchvision; with a broken one it fails.
    with contextlib.suppress(Exception):
        from umap import UMAP

        return UMAP
    with contextlib.suppress(ImportError):
        from sklearn.manifold import TSNE

        return TSNE
    return None


def pca(x: np.ndarray, k: int) -> np.ndarray:
    """Returns the first k principal components of x [n, f], float64 [n, k].

    Their signs are such that the entry of largest size is positive; components beyond
    f are 0.
    """
    x = x.astype(np.float64) - x.mean(axis=0)
    u, s, _ = np.linalg.svd(x, full_matrices=False)
    scores = (u * s)[:, :k]
    largest = np.abs(scores).argmax(axis=0)
    scores = scores * np.where(scores[largest, np.arange(scores.shape[1])] < 0, -1, 1)
    return np.pad(scores, [(0, 0), (0, k - scores.shape[1])])


def nearest(features: np.ndarray, queries: np.ndarray, k: int) -> np.ndarray:
    """Returns int [q, k]: the nearest by cosine of all others, nearest first.

    Args:
      features: [n, f]; queries: int [q], rows of it; k: less than n.
    """
    x = _unit(features)
    found = []
    for rows in np.split(queries, range(512, len(queries), 512)):
        similarity = x[rows] @ x.T
        similarity[np.arange(len(rows)), rows] = -np.inf
        found.append(np.argsort(-similarity, axis=1, kind="stable")[:, :k])
    return np.concatenate(found)


def agreement(features: np.ndarray, labels: np.ndarray, k: int) -> tuple[float, float]:
    """Returns the share of k nearest neighbours of the same label, and that of chance.

    Args:
      features: [n, f]; labels: int [n].
    """
    n = len(labels)
    near = nearest(features, np.arange(n), k)
    counts = np.unique(labels, return_counts=True)[1]
    chance = np.sum(counts * (counts - 1.0)) / (n * (n - 1.0))
    return float(np.mean(labels[near] == labels[:, None])), float(chance)


def queries(labels: np.ndarray | None, n: int, count: int) -> np.ndarray:
    """Returns at most `count` of n examples: one of each class, then a second, ...

    Of more classes than that, some that are evenly spaced.
    """
    if labels is None:
        return np.unique(np.linspace(0, n - 1, min(count, n)).astype(int))
    order = np.argsort(labels, kind="stable")
    _, starts, sizes = np.unique(labels[order], return_index=True, return_counts=True)
    turn = np.empty(n, int)
    turn[order] = np.arange(n) - np.repeat(starts, sizes)
    turns = np.lexsort((labels, turn))
    if len(sizes) > count:
        return turns[np.linspace(0, len(sizes) - 1, count).astype(int)]
    return turns[:count]


def spaced(
    xy: np.ndarray, least: float, taken: Sequence[tuple[float, ...]] = ()
) -> list[int]:
    """Returns rows of xy [n, 2], none nearer than `least` to another in both axes.

    Args:
      taken: boxes (x, y, half width, half height) around which the same room is left.
    """
    rooms = [(x, y, least / 2 + w, least / 2 + h) for x, y, w, h in taken]
    chosen = []
    for i, (x, y) in enumerate(xy):
        if all(abs(x - a) >= w or abs(y - b) >= h for a, b, w, h in rooms):
            chosen.append(i)
            rooms.append((x, y, least, least))
    return chosen


def label_box(
    xy: np.ndarray, size: tuple[float, float], taken: Sequence[tuple[float, ...]]
) -> tuple[float, ...]:
    """Returns a box (x, y, half width, half height) for the name of some points.

    Its middle is the one of the points xy [m, 2], in the unit square, that lies among
    most others; of those for which the box overlaps none that is taken, if there are
    any.

    Args:
      size: half width and half height.
    """
    distance = np.linalg.norm(xy[:, None] - xy[None], axis=2)
    crowd = np.sum(np.exp(-((distance / 0.05) ** 2)), axis=1)
    for x, y, w, h in taken:
        overlap = np.abs(xy - (x, y)) < (w + size[0], h + size[1])
        crowd = np.where(overlap.all(axis=1), crowd - len(xy), crowd)
    return (*xy[crowd.argmax()], *size)


def _unit(x):
    x = np.asarray(x, np.float64)
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)
