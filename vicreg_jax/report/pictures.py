"""Figures made of images: the map, nearest neighbours, pairs of views; no files."""

import base64
import io
import json
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from vicreg_jax.report import maps
from vicreg_jax.report.figures import COLOURS, Drawn, finish, panel
from vicreg_jax.report.maps import Gallery

# Of the most frequent labels: M. Petroff's ten, made to be told apart without full
# colour vision (arXiv:2107.02270), ordered so that its greys come last.
LABELS = (
    *("#3f90da", "#ffa90e", "#bd1f01", "#832db6", "#92dadd"),
    *("#e76300", "#a96b59", "#b9ac70", "#94a4a2", "#717581"),
)
NEIGHBOURS = 8
ROWS = 10  # of the gallery of neighbours
PAIRS = 12  # of views
SMOOTH = 24  # pixels; smaller images are shown as squares of one colour
MAP = 5.0  # inches of its side
SPRITES = 800_000  # pixels of all thumbnails under the pointer, at most


class Map(NamedTuple):
    drawn: Drawn
    method: str
    hover: str  # elements that the page's script shows under the pointer


def feature_map(gallery: Gallery) -> Map:
    """Draws a map of the features: a point for each image, some as thumbnails."""
    from matplotlib.patches import Rectangle

    method, xy = maps.project(gallery.features)
    span = np.maximum(np.ptp(xy, axis=0), 1e-12)
    xy = 0.06 + 0.88 * (xy - xy.min(axis=0)) / span
    colours, named = _coloured(gallery)
    title = f"{method} map of the representations"
    side, half = 0.04, 0.02
    images = thumbnails(gallery.thumbnails, 32)
    with panel("", (MAP, MAP)) as (figure, axes):
        _bare(figure, axes, (0, 1), (0, 1))
        axes.scatter(*xy.T, s=5, c=colours, linewidths=0, alpha=0.8, clip_on=False)
        names = {
            label: _clipped(class_name(gallery.classes, label), 18) for label in named
        }
        boxes = []
        for label, name in names.items():
            size = (0.012 + 0.0058 * len(name), 0.018)  # of the text below, about
            boxes.append(maps.label_box(xy[gallery.labels == label], size, boxes))
        for i in maps.spaced(xy, 1.25 * side, boxes):
            _place(axes, images[i], xy[i] - half, side)
            frame = {"fill": False, "edgecolor": colours[i], "linewidth": 1.2}
            axes.add_patch(Rectangle(xy[i] - half, side, side, zorder=4, **frame))
        for (label, colour), box in zip(named.items(), boxes, strict=True):
            axes.text(
                *box[:2],
                names[label],
                ha="center",
                va="center",
                fontsize=6.5,
                zorder=5,
                bbox={
                    "facecolor": COLOURS["paper"],
                    "edgecolor": colour,
                    "linewidth": 0.8,
                    "boxstyle": "round,pad=0.2",
                },
            )
        drawn = finish(figure, title)
    return Map(drawn, method, _hover(gallery, xy))


def neighbours(gallery: Gallery) -> Drawn:
    """Draws some images and their nearest by cosine; other labels are written out."""
    from matplotlib.patches import Rectangle

    labels, n = gallery.labels, len(gallery.features)
    asked = maps.queries(labels, n, ROWS)
    near = maps.nearest(gallery.features, asked, min(NEIGHBOURS, n - 1))
    images = thumbnails(gallery.thumbnails, 40)
    names = ["" if labels is None else _name(gallery, i, 16) for i in asked]
    pitch, gap = 1.34, 0.5  # in sides of an image
    left = 0.3 + 0.14 * max(map(len, names))
    width = left + 1 + gap + near.shape[1] * 1.14
    height = 0.35 + len(asked) * pitch
    with panel("", (0.46 * width, 0.46 * height)) as (figure, axes):
        _bare(figure, axes, (0, width), (height, 0))
        small = {"color": COLOURS["muted"], "fontsize": 6.5, "va": "center"}
        axes.text(left, 0.15, "query", **small)
        axes.text(left + 1 + gap, 0.15, "nearest first", **small)
        for row, (query, found) in enumerate(zip(asked, near, strict=True)):
            top = 0.35 + row * pitch
            beside = {"ha": "right", "va": "center", "fontsize": 7.5}
            axes.text(left - 0.2, top + 0.5, names[row], **beside)
            _place(axes, images[query], (left, top), 1)
            for column, i in enumerate(found):
                at = left + 1 + gap + 1.14 * column
                _place(axes, images[i], (at, top), 1)
                if labels is not None and labels[i] != labels[query]:
                    frame = {"fill": False, "edgecolor": COLOURS["bad"], "lw": 1.2}
                    axes.add_patch(Rectangle((at, top), 1, 1, zorder=4, **frame))
                    axes.text(
                        at + 0.5,
                        top + 1.15,
                        f"× {_name(gallery, i, 8)}",
                        color=COLOURS["bad"],
                        fontsize=5.5,
                        ha="center",
                        va="center",
                    )
        return finish(figure, "Nearest neighbours")


def views(gallery: Gallery) -> Drawn:
    """Draws pairs of augmented views, the two of a pair side by side."""
    pairs = gallery.views[:PAIRS]
    size = pairs.shape[2]
    images = thumbnails(pairs.reshape(-1, *pairs.shape[2:]), 64)
    columns = min(4, len(pairs))
    rows = -(-len(pairs) // columns)
    width, height = columns * 2.3 - 0.26, rows * 1.14 - 0.14
    inches = 5.4 / (4 * 2.3 - 0.26)
    with panel("", (inches * width, inches * height)) as (figure, axes):
        _bare(figure, axes, (0, width), (height, 0))
        for i, image in enumerate(images):
            pair, second = divmod(i, 2)
            row, column = divmod(pair, columns)
            _place(axes, image, (column * 2.3 + second * 1.02, row * 1.14), 1)
        return finish(figure, f"Pairs of views of {size} x {size} pixels")


def class_name(classes: Sequence[str], label: int) -> str:
    """Returns the name of a label, its number where it has none."""
    return str(classes[label]) if 0 <= label < len(classes) else f"{label}"


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


def _bare(figure, axes, xlim, ylim):
    """Makes the axes fill the figure, without anything around them."""
    axes.set_position((0, 0, 1, 1))
    axes.set_axis_off()
    axes.set(xlim=xlim, ylim=ylim, autoscale_on=False)


def _place(axes, image, corner, side):
    """Draws an image with its least x and y at the corner."""
    (left, low), upwards = corner, axes.get_ylim()[1] > axes.get_ylim()[0]
    bottom, top = (low, low + side) if upwards else (low + side, low)
    axes.imshow(
        image,
        extent=(left, left + side, bottom, top),
        interpolation="none",
        aspect="auto",
        zorder=3,
    )


def _hover(gallery, xy):
    """Returns the thumbnails as one image, and where they are on the map as JSON."""
    n, side = len(xy), 72 * MAP
    images = thumbnails(gallery.thumbnails, min(48, int((SPRITES / n) ** 0.5)))
    columns = int(np.ceil(n**0.5))
    size = images.shape[1]
    sheet = np.zeros((-(-n // columns) * size, columns * size, 3), np.uint8)
    for i, image in enumerate(images):
        row, column = divmod(i, columns)
        sheet[row * size :, column * size :][:size, :size] = image
    file = io.BytesIO()
    Image.fromarray(sheet).save(file, "JPEG", quality=75)
    labels = [] if gallery.labels is None else gallery.labels.tolist()
    facts = {
        "side": side,
        "size": size,
        "columns": columns,
        "x": np.round(xy[:, 0] * side, 1).tolist(),
        "y": np.round((1 - xy[:, 1]) * side, 1).tolist(),
        "names": [class_name(gallery.classes, x) for x in labels],
    }
    text = json.dumps(facts, separators=(",", ":")).replace("<", "\\u003c")
    encoded = base64.b64encode(file.getvalue()).decode()
    return (
        f'<script type="application/json" id="points">{text}</script>'
        f'<img id="sprites" hidden alt="" src="data:image/jpeg;base64,{encoded}">'
    )
