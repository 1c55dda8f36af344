"""Charts of a run, each drawn once and kept both as SVG and as PNG; no files."""

import io
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from html import escape
from itertools import cycle
from pathlib import Path
from typing import NamedTuple

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator

__all__ = [
    "COLOURS",
    "LABELS",
    "POINTS",
    "Drawn",
    "Reference",
    "binned",
    "curve",
    "curves",
    "dots",
    "finish",
    "panel",
    "shares",
    "short",
    "spectra",
]


# The light ones, in the PNG; in the page they become variables of its style sheet,
# which gives others in the dark.
_SHEET = (Path(__file__).parent / "style.css").read_text(encoding="utf-8")
COLOURS = dict(re.findall(r"--(\w+): (#\w{6})", _SHEET.partition("}")[0]))
SHARES = ("accent", "second", "third")
# Of labels and runs: M. Petroff's ten, made to be told apart without full colour vision
# (arXiv:2107.02270), ordered so that its greys come last.
LABELS = (
    "#3f90da #ffa90e #bd1f01 #832db6 #92dadd #e76300 #a96b59 #b9ac70 #94a4a2 #717581"
).split()
POINTS = 300  # of a line, at most; longer records are binned

PANEL = (3.4, 2.25)  # inches; 72 units of the SVG each
_STYLE = {
    "svg.fonttype": "none",
    "image.composite_image": False,
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 7.5,
    "text.color": COLOURS["ink"],
    "text.parse_math": False,
    "axes.edgecolor": COLOURS["rule"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.labelsize": 7.5,
    "axes.titlesize": 8,
    "axes.titlelocation": "left",
    "axes.titleweight": "bold",
    "axes.titlepad": 7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.ymargin": 0.08,
    "axes.formatter.use_mathtext": False,
    "grid.color": COLOURS["rule"],
    "grid.linewidth": 0.5,
    "xtick.color": COLOURS["rule"],
    "ytick.color": COLOURS["rule"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["muted"],
    "ytick.major.size": 0,
    "xtick.minor.size": 0,
    "ytick.minor.size": 0,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
}


class Drawn(NamedTuple):
    """One figure, twice."""

    svg: str  # an <svg> element, in the colours of the page
    png: bytes


class Reference(NamedTuple):
    """What a line is to be compared with: one value, or one for each x."""

    text: str
    y: float | np.ndarray


def curve(
    title: str,
    x: np.ndarray,
    y: np.ndarray,
    *,
    references: Sequence[Reference] = (),
    log: bool = False,
    percent: bool = False,
) -> Drawn:
    """Draws a value at some steps, the last one written beside it.

    Args:
      x: steps, y: values, [t]; of more than 300, means over bins with their extremes
        as a band.
      log: the y axis is logarithmic, if all values are positive; else it begins at 0.
      percent: y is a share.
    """
    log = log and bool(np.all(y > 0))
    with panel(title) as axes:
        mid, mean, low, high = binned(x, y)
        if len(mid) < len(x):
            axes.fill_between(mid, low, high, color=COLOURS["accent"], alpha=0.2, lw=0)
        for text, value in references:
            line = np.broadcast_to(value, x.shape)
            at, level, _, _ = binned(x, line)
            axes.plot(at, level, color=COLOURS["muted"], lw=0.9, dashes=(4, 2))
            top = level.argmax()
            side = -1 if top > len(at) / 2 else 1
            _beside(axes, text, (at[top], level[top]), (2 * side, 2.5), "muted")
        marker = "o" if len(mid) == 1 else None
        axes.plot(mid, mean, color=COLOURS["accent"], marker=marker, markersize=2.5)
        _scales(axes, "step", x[-1], log=log)
        if percent:
            axes.yaxis.set_major_formatter(_percent)
        last = f"{100 * y[-1]:.1f} %" if percent else short(y[-1])
        _at_end(axes, {last: mean[-1]})
        return finish(axes, title)


def curves(title: str, found: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Drawn:
    """Draws one value of several runs, in the colours of LABELS; names are elsewhere.

    Args:
      found: by run steps and values, [t], perhaps none; means over at most 300 bins.
    """
    with panel(title) as axes:
        for colour, (x, y) in zip(LABELS, found.values(), strict=False):
            if len(x):
                mid, mean, _, _ = binned(x, y)
                marker = "o" if len(mid) == 1 else None
                axes.plot(mid, mean, color=colour, marker=marker, markersize=2.5)
        _scales(axes, "step", max(x[-1] for x, _ in found.values() if len(x)))
        return finish(axes, title)


def shares(title: str, x: np.ndarray, parts: Mapping[str, np.ndarray]) -> Drawn:
    """Draws what share of their sum each part [t] has at steps x, as layers."""
    with panel(title) as axes:
        total = np.maximum(sum(parts.values()), 1e-30)
        lower, ends = np.zeros(len(binned(x, x)[0])), {}
        for colour, (name, part) in zip(cycle(SHARES), parts.items(), strict=False):
            mid, share, _, _ = binned(x, part / total)
            axes.fill_between(
                mid, lower, lower + share, color=COLOURS[colour], lw=0, alpha=0.85
            )
            ends[f"{name[:3]} {share[-1]:.0%}"] = lower[-1] + share[-1] / 2
            lower = lower + share
        _scales(axes, "step", x[-1])
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(_percent)
        _at_end(axes, ends)
        return finish(axes, title)


def spectra(
    title: str, curves: Mapping[str, np.ndarray], *, xlabel: str, log: bool
) -> Drawn:
    """Draws sorted values of one or more encoders over their rank, labelled directly.

    Args:
      log: both axes are logarithmic.
    """
    with panel(title) as axes:
        for colour, (name, values) in zip(cycle(SHARES), curves.items(), strict=False):
            y = np.sort(np.asarray(values, float))[::-1]
            y = y[y > 0] if log else y[y >= 0]
            if len(y):
                x = np.arange(1, len(y) + 1)
                axes.plot(x, y, color=COLOURS[colour], label=name)
        longest = max(len(values) for values in curves.values())
        _scales(axes, xlabel, longest, log=log, log_x=log)
        if len(curves) > 1:
            _name_lines(axes)
        return finish(axes, title)


def dots(title: str, found: Mapping[str, Sequence[float]]) -> Drawn:
    """Draws the values of some runs by row, each a dot, with a line at their mean."""
    with panel(title) as axes:
        longest = max(len(name) for name in found)
        left = min(0.06 + 0.015 * longest, 0.5)
        axes.set_position((left, 0.1, 0.96 - left, 0.76))
        axes.title.set_x(-left / (0.96 - left))
        axes.figure.set_figheight(max(PANEL[1], 0.6 + 0.16 * len(found)))
        for i, values in enumerate(found.values()):
            y = np.full(len(values), i)
            style = dict(s=14, color=COLOURS["accent"], alpha=0.7, linewidths=0)
            axes.scatter(values, y, **style, clip_on=False, zorder=3)
            if len(values):
                axes.plot([np.mean(values)] * 2, [i - 0.3, i + 0.3], lw=1.4)
                axes.lines[-1].set_color(COLOURS["ink"])
        axes.set_yticks(range(len(found)), list(found))
        axes.set_ylim(len(found) - 0.5, -0.5)
        axes.grid(axis="x")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        return finish(axes, title)


def binned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, ...]:
    """Returns mean x, and mean, least and largest y, of at most 300 even bins."""
    edges = np.linspace(0, len(x), min(len(x), POINTS) + 1).astype(int)[:-1]
    count = np.diff(np.append(edges, len(x)))
    return (
        np.add.reduceat(np.asarray(x, float), edges) / count,
        np.add.reduceat(np.asarray(y, float), edges) / count,
        np.minimum.reduceat(np.asarray(y, float), edges),
        np.maximum.reduceat(np.asarray(y, float), edges),
    )


def short(x: float) -> str:
    """Returns a number in three digits: 0.0273, 13.7, 5,820, 1.0e-5."""
    if x == 0:
        return "0"
    if not 1e-3 <= abs(x) < 1e6:
        return f"{x:.1e}".replace("e-0", "e-").replace("e+0", "e")
    digits = 0 if abs(x) >= 100 else 3 if abs(x) < 1 else 2 if abs(x) < 10 else 1
    digits = 4 if abs(x) < 0.1 else digits
    return f"{x:,.{digits}f}"


@contextmanager
def panel(title: str, bare: tuple[float, float] | None = None) -> Iterator[Axes]:
    """Yields the axes of an empty figure of the report's style.

    Args:
      bare: the size in inches of a figure that its axes fill, with nothing around them.
    """
    # The salt makes the names in the SVG other ones than those of other figures.
    with matplotlib.rc_context(_STYLE | {"svg.hashsalt": title}):
        figure = Figure(figsize=bare or PANEL)
        if bare:
            axes = figure.add_axes((0, 0, 1, 1))
            axes.set_axis_off()
        else:
            axes = figure.add_axes((0.125, 0.165, 0.74, 0.7))
            axes.set_title(title, x=-0.169)
        yield axes


def finish(axes: Axes, title: str) -> Drawn:
    """Returns the figure as an element of the page and as a PNG of 200 dpi."""
    svg, png = io.StringIO(), io.BytesIO()
    with warnings.catch_warnings():
        # Names in other scripts: the page shows them, only the PNG has boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        axes.figure.savefig(svg, format="svg", transparent=True)
        axes.figure.savefig(
            png, dpi=200, facecolor=COLOURS["paper"], metadata={"Software": None}
        )
    return Drawn(_element(svg.getvalue(), title), png.getvalue())


def _element(svg: str, title: str) -> str:
    """Returns an SVG file as an element of the page, in the colours of the page.

    What looks like a colour, a number or a name is one inside of tags only, where a >
    comes before the next <: texts have these two escaped.
    """
    svg = svg[svg.index("<svg") :].replace(
        "<svg ", f'<svg role="img" aria-label="{escape(title)}" ', 1
    )
    variables = {value: f"var(--{name})" for name, value in COLOURS.items()}
    for pattern, replacement in (
        (r"(?s)<(metadata|style).*?</\1>", ""),  # of a file; the page has its own
        (r'(<(?:g|image)\b[^>]*?) id="[^"]*"', r"\1"),  # nothing refers to these
        (r"(\.\d{3})\d+(?=[^<>]*>)", r"\1"),  # finer than any screen
        (r"#\w{6}\b(?=[^<>]*>)", lambda found: variables.get(found[0], found[0])),
    ):
        svg = re.sub(pattern, replacement, svg)
    return svg


def _name_lines(axes):
    """Writes the name of each line at the point that is farthest from other lines.

    Above the line where the nearest other is below it or ends earlier, else below.
    """
    to_axes = axes.transData + axes.transAxes.inverted()
    points = [to_axes.transform(line.get_xydata()) for line in axes.lines]
    for i, line in enumerate(axes.lines):
        x, y = points[i].T
        gaps = [np.full(len(x), 2.0)]  # to the edge, where there is no other
        for other in points[:i] + points[i + 1 :]:
            gaps.append(y - np.interp(x, *other.T, left=-2, right=-2))
        nearest = np.array(gaps)[np.abs(gaps).argmin(axis=0), np.arange(len(x))]
        # Not at the right, where names would not fit; in turn, where lines coincide.
        aside = np.abs(x - 0.75 * (i + 0.5) / len(points))
        best = np.argmax(np.minimum(np.abs(nearest), 1) - 0.05 * aside - (x > 0.75))
        above = nearest[best] > 0 or (nearest[best] == 0 and i % 2 == 0)
        offset = (3, 3) if above else (-3, -9)
        name = _beside(axes, line.get_label(), line.get_xydata()[best], offset, "ink")
        # However close another line is, the colour tells whose name it is.
        frame = {"boxstyle": "round,pad=0.15", "facecolor": COLOURS["paper"]}
        name.set_bbox(frame | {"edgecolor": line.get_color(), "linewidth": 0.8})


def _beside(axes, text, point, offset, colour):
    """Writes a text at an offset from a point, in points, away from it."""
    return axes.annotate(
        text,
        point,
        xytext=offset,
        textcoords="offset points",
        ha="left" if offset[0] > 0 else "right",
        color=COLOURS[colour],
        fontsize=6.5,
    )


def _percent(value, _):
    return f"{100 * value:g} %"


def _scales(axes, xlabel, last, *, log=False, log_x=False):
    axes.set_xlabel(xlabel)
    if log:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis, axes.get_ylim())
    else:
        if axes.dataLim.y0 >= 0:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if axes.get_ylim()[1] >= 1000:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if log_x:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, axes.get_xlim())
    else:
        axes.set_xlim(0, max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _log_ticks(axis, limits):
    """Labels powers of ten, and 2 and 5 times those where there are few."""
    decades = np.log10(limits[1]) - np.log10(limits[0])
    axis.set_major_locator(LogLocator(subs=(1, 2, 5) if decades < 2 else (1,)))
    axis.set_major_formatter(lambda value, _: f"{value:g}".replace("e-0", "e-"))
    axis.set_minor_locator(LogLocator(subs=()))


def _at_end(axes, texts):
    """Writes texts beside the last point, each at its height, none over another."""
    low, high = axes.get_ylim()
    if axes.get_yscale() == "log":
        low, high = np.log(low), np.log(high)
        texts = {text: np.log(y) for text, y in texts.items()}
    least, above = 0.09, -1.0
    for text, y in sorted(texts.items(), key=lambda item: item[1]):
        above = max((y - low) / (high - low), above + least)
        axes.text(1.02, above, text, transform=axes.transAxes, va="center", fontsize=7)
