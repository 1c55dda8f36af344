"""Figures made of images: the map, nearest neighbours, pairs of views; no files."""

import base64
import io
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import numpy as np
from matplotlib.patches import Rectangle
from PIL import Image

from vicreg_jax.refusals import printable
from vicreg_jax.report.charts import COLOURS, LABELS, Drawn, finish, panel
from vicreg_jax.report.read import Gallery

__all__ = [
    "NEIGHBOURS",
    "PAIRS",
    "ROWS",
    "Map",
    "agreement",
    "class_name",
    "feature_map",
    "label_box",
    "nearest",
    "neighbours",
    "pca",
    "project",
    "queries",
    "spaced",
    "thumbnails",
    "views",
]


NEIGHBOURS = 8
ROWS = 10  # of the gallery of neighbours
PAIRS = 12  # of views
SMOOTH = 24  # pixels; smaller images are shown as squares of one colour
MAP = 5.0  # inches of its side
SPRITES = 800_000  # pixels of all thumbnails under the pointer, at most


class Map(NamedTuple):
    drawn: Drawn
    method: str
    hover: dict[str, Any]  # what the page's script shows under the pointer


def feature_map(gallery: Gallery) -> Map:
    """Draws a map of the features: a point for each image, some as thumbnails."""
    method, xy = project(gallery.features)
    span = np.maximum(np.ptp(xy, axis=0), 1e-12)
    xy = 0.06 + 0.88 * (xy - xy.min(axis=0)) / span
    colours, named = _coloured(gallery)
    title = f"{method} map of the representations"
    side, half = 0.04, 0.02
    images = thumbnails(gallery.thumbnails, 32)
    with panel(title, bare=(MAP, MAP)) as axes:
        axes.set(xlim=(0, 1), ylim=(0, 1), autoscale_on=False)
        axes.scatter(*xy.T, s=5, c=colours, linewidths=0, alpha=0.8, clip_on=False)
        boxes = []
        for label, colour in named.items():
            name = _clipped(class_name(gallery.classes, label), 18)
            size = (0.012 + 0.0058 * len(name), 0.018)  # of the text, about
            boxes.append(label_box(xy[gallery.labels == label], size, boxes))
            frame = {"boxstyle": "round,pad=0.2", "linewidth": 0.8}
            frame |= {"facecolor": COLOURS["paper"], "edgecolor": colour}
            style = {"ha": "center", "va": "center", "fontsize": 6.5, "zorder": 5}
            axes.text(*boxes[-1][:2], name, **style, bbox=frame)
        for i in spaced(xy, 1.25 * side, boxes):
            _place(axes, images[i], xy[i] - half, side, frame=colours[i])
        drawn = finish(axes, title)
    return Map(drawn, method, _hover(gallery, xy))


def neighbours(gallery: Gallery) -> Drawn:
    """Draws some images and their nearest by cosine; other labels are written out."""
    labels, n = gallery.labels, len(gallery.features)
    asked = queries(labels, n, ROWS)
    near = nearest(gallery.features, asked, min(NEIGHBOURS, n - 1))
    images = thumbnails(gallery.thumbnails, 40)
    names = ["" if labels is None else _name(gallery, i, 16) for i in asked]
    pitch, gap = 1.34, 0.5  # in sides of an image
    left = 0.3 + 0.14 * max(map(len, names))
    width = left + 1 + gap + near.shape[1] * 1.14
    height = 0.35 + len(asked) * pitch
    title = "Nearest neighbours"
    with panel(title, bare=(0.46 * width, 0.46 * height)) as axes:
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        small = {"color": COLOURS["muted"], "fontsize": 6.5, "va": "center"}
        axes.text(left, 0.15, "query", **small)
        axes.text(left + 1 + gap, 0.15, "nearest first", **small)
        for row, (query, found) in enumerate(zip(asked, near, strict=True)):
            top = 0.35 + row * pitch
            axes.text(left - 0.2, top + 0.5, names[row], ha="right", va="center")
            _place(axes, images[query], (left, top), 1)
            for column, i in enumerate(found):
                at = left + 1 + gap + 1.14 * column
                other = labels is not None and labels[i] != labels[query]
                frame = COLOURS["bad"] if other else None
                _place(axes, images[i], (at, top), 1, frame=frame)
                if other:
                    wrong = {"color": COLOURS["bad"], "fontsize": 5.5}
                    wrong |= {"ha": "center", "va": "center"}
                    axes.text(
                        at + 0.5, top + 1.15, f"× {_name(gallery, i, 8)}", **wrong
                    )
        return finish(axes, title)


def views(gallery: Gallery) -> Drawn:
    """Draws pairs of augmented views, the two of a pair side by side."""
    pairs = gallery.views[:PAIRS]
    size = pairs.shape[2]
    images = thumbnails(pairs.reshape(-1, *pairs.shape[2:]), 64)
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    width, height = columns * 2.3 - 0.26, rows * 1.14 - 0.14
    inches = 5.4 / (4 * 2.3 - 0.26)
    title = f"Pairs of views of {size} x {size} pixels"
    with panel(title, bare=(inches * width, inches * height)) as axes:
        axes.set(xlim=(0, width), ylim=(height, 0), autoscale_on=False)
        for i, image in enumerate(images):
            pair, second = divmod(i, 2)
            row, column = divmod(pair, columns)
            _place(axes, image, (column * 2.3 + second * 1.02, row * 1.14), 1)
        return finish(axes, title)


def class_name(classes: Sequence[str], label: int) -> str:
    """Returns the name of a label, which can be drawn; its number if it has none."""
    named = 0 <= label < len(classes)
    return printable(str(classes[label])) if named else f"{label}"


def thumbnails(images: np.ndarray, most: int) -> np.ndarray:
    """Returns uint8 [n, t, t, 3] of images [n, s, s, c], t = most where s is larger."""
    if images.shape[-1] == 1:
        images = np.repeat(images, 3, axis=-1)
    if max(images.shape[1:3]) <= most:
        return images
    small = [Image.fromarray(x).resize((most, most), Image.BOX) for x in images]
    return np.stack([np.asarray(x) for x in small])


def _coloured(gallery):
    """Returns a colour for each image, and those of the ten most frequent labels."""
    colours = np.full(len(gallery.features), COLOURS["accent"], object)
    if gallery.labels is None:
        return colours, {}
    found, counts = np.unique(gallery.labels, return_counts=True)
    frequent = sorted(found[np.argsort(-counts, kind="stable")][: len(LABELS)])
    named = dict(zip(frequent, LABELS, strict=False))
    colours[:] = COLOURS["other"]
    for label, colour in named.items():
        colours[gallery.labels == label] = colour
    return colours, named


def _name(gallery, i, most):
    return _clipped(class_name(gallery.classes, gallery.labels[i]), most)


def _clipped(text, most):
    return text if len(text) <= most else text[: most - 1] + "…"


def _place(axes, image, corner, side, *, frame=None):
    """Draws an image with its least x and y at the corner, perhaps in a frame."""
    (left, low), upwards = corner, axes.get_ylim()[1] > axes.get_ylim()[0]
    bottom, top = (low, low + side) if upwards else (low + side, low)
    box = (left, left + side, bottom, top)
    axes.imshow(image, extent=box, interpolation="none", aspect="auto", zorder=3)
    if frame:
        square = Rectangle(corner, side, side, fill=False, edgecolor=frame, lw=1.2)
        axes.add_patch(square).set_zorder(4)


def _hover(gallery, xy):
    """Returns the thumbnails as one image, and where they are on the map."""
    n, side = len(xy), 72 * MAP
    images = thumbnails(gallery.thumbnails, min(48, int((SPRITES / n) ** 0.5)))
    columns = int(np.ceil(n**0.5))
    size = images.shape[1]
    sheet = np.zeros((-(-n // columns) * columns, *images.shape[1:]), np.uint8)
    sheet[:n] = images
    sheet = sheet.reshape(-1, columns, size, size, 3).swapaxes(1, 2)
    file = io.BytesIO()
    picture = Image.fromarray(sheet.reshape(-1, columns * size, 3))
    picture.save(file, "JPEG", quality=75)
    labels = [] if gallery.labels is None else gallery.labels.tolist()
    points = {
        "side": side,
        "size": size,
        "columns": columns,
        "x": np.round(xy[:, 0] * side, 1).tolist(),
        "y": np.round((1 - xy[:, 1]) * side, 1).tolist(),
        "names": [class_name(gallery.classes, x) for x in labels],
    }
    sprites = base64.b64encode(file.getvalue()).decode()
    return {"points": points, "sprites": sprites}


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
    with suppress(Exception):
        from umap import UMAP

        return UMAP
    with suppress(ImportError):
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
