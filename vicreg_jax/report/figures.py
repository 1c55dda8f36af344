"""Charts of a run, each drawn once and kept both as SVG and as PNG; no files."""

import contextlib
import importlib.util
import io
import re
import warnings
import zlib
from collections.abc import Iterator, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Light colours, in the PNG; in the page they become variables of its style sheet,
# which gives others in the dark.
COLOURS = {
    "paper": "#ffffff",
    "ink": "#1b1f24",
    "muted": "#5b6570",
    "rule": "#d9dee3",
    "accent": "#0b62a4",
    "bad": "#b3400a",
    "other": "#b4bcc4",  # points whose label has no colour
    "second": "#d98d00",  # of shares, with the accent; differ in lightness too
    "third": "#5aa897",
}
SHARES = ("accent", "second", "third")
POINTS = 300  # of a line, at most; longer records are binned

PANEL = (3.4, 2.25)  # inches; 72 units of the SVG each
_STYLE = {
    "svg.fonttype": "none",
    "svg.hashsalt": "vicreg_jax",
    "image.composite_image": False,
    "font.family": "sans-serif",
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


def check_installed() -> None:
    """Raises ModuleNotFoundError without matplotlib."""
    if not importlib.util.find_spec("matplotlib"):
        raise ModuleNotFoundError(
            "the report needs matplotlib, which is not installed; run:"
            ' pip install "vicreg_jax[report]"'
        )


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
    with panel(title) as (figure, axes):
        mid, mean, low, high = binned(x, y)
        if len(mid) < len(x):
            axes.fill_between(mid, low, high, color=COLOURS["accent"], alpha=0.2, lw=0)
        for text, value in references:
            line = np.broadcast_to(value, x.shape)
            at, level, _, _ = binned(x, line)
            axes.plot(at, level, color=COLOURS["muted"], lw=0.9, dashes=(4, 2))
            top = level.argmax()
            right = top > len(at) / 2
            side = {"xy": (at[top], level[top]), "ha": "right" if right else "left"}
            axes.annotate(
                text,
                **side,
                xytext=(-2 if right else 2, 2.5),
                textcoords="offset points",
                color=COLOURS["muted"],
                fontsize=6.5,
            )
        one = {"marker": "o", "markersize": 2.5} if len(mid) == 1 else {}
        axes.plot(mid, mean, color=COLOURS["accent"], **one)
        _scales(axes, "step", x[-1], log=log)
        if percent:
            axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        last = f"{100 * y[-1]:.1f} %" if percent else short(y[-1])
        _at_end(axes, {last: mean[-1]})
        return finish(figure, title)


def shares(title: str, x: np.ndarray, parts: Mapping[str, np.ndarray]) -> Drawn:
    """Draws what share of their sum each part [t] has at steps x, as layers."""
    with panel(title) as (figure, axes):
        total = np.maximum(sum(parts.values()), 1e-30)
        lower, ends = np.zeros(len(binned(x, x)[0])), {}
        for colour, (name, part) in zip(SHARES, parts.items(), strict=False):
            mid, share, _, _ = binned(x, part / total)
            axes.fill_between(
                mid, lower, lower + share, color=COLOURS[colour], lw=0, alpha=0.85
            )
            ends[f"{name[:3]} {share[-1]:.0%}"] = lower[-1] + share[-1] / 2
            lower = lower + share
        _scales(axes, "step", x[-1])
        axes.set_ylim(0, 1)
        axes.yaxis.set_major_formatter(lambda value, _: f"{100 * value:g} %")
        _at_end(axes, ends)
        return finish(figure, title)


def spectra(
    title: str, curves: Mapping[str, np.ndarray], *, xlabel: str, log: bool
) -> Drawn:
    """Draws sorted values of one or more encoders over their rank, labelled directly.

    Args:
      log: both axes are logarithmic.
    """
    with panel(title) as (figure, axes):
        for i, (name, values) in enumerate(curves.items()):
            y = np.sort(np.asarray(values, float))[::-1]
            x = np.arange(1, len(y) + 1)
            shown = y > 0 if log else y >= 0
            colour = COLOURS[SHARES[i % len(SHARES)]]
            axes.plot(x[shown], y[shown], color=colour)
            if len(curves) > 1 and shown.any():
                middle = np.flatnonzero(shown)[int(shown.sum() * 0.6 ** (i + 1))]
                above = i % 2 == 0  # the next one goes below, as curves may coincide
                axes.annotate(
                    name,
                    (x[middle], y[middle]),
                    xytext=(3, 3) if above else (-3, -9),
                    textcoords="offset points",
                    ha="left" if above else "right",
                    color=COLOURS["ink"],
                    fontsize=6.5,
                )
        longest = max(len(values) for values in curves.values())
        _scales(axes, xlabel, longest, loglog=log)
        return finish(figure, title)


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


@contextlib.contextmanager
def panel(
    title: str, size: tuple[float, float] = PANEL
) -> Iterator[tuple["Figure", "Axes"]]:
    """Yields an empty figure of the report's style and its axes."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=size)
        axes = figure.add_axes((0.125, 0.165, 0.74, 0.7))
        if title:
            axes.set_title(title, x=-0.169)
        yield figure, axes


def finish(figure: "Figure", title: str) -> Drawn:
    """Returns the figure as an element of the page and as a PNG of 200 dpi."""
    svg, png = io.StringIO(), io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type"))
    with warnings.catch_warnings():
        # Names in other scripts: the page shows them, only the PNG has boxes.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        figure.savefig(svg, format="svg", transparent=True, metadata=nothing)
        figure.savefig(
            png,
            format="png",
            dpi=200,
            facecolor=COLOURS["paper"],
            metadata={"Software": None},
        )
    return Drawn(_element(svg.getvalue(), title), png.getvalue())


def _element(svg: str, title: str) -> str:
    """Returns an SVG file as an element: no prolog, names of its own, page colours."""
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<(metadata|style).*?</\1>", "", svg, flags=re.DOTALL)
    prefix = f"f{zlib.crc32(title.encode()):x}-"

    def renamed(match):
        """Changes a tag, never the text between tags."""
        tag = match[0]
        if tag.startswith(("<g ", "<image ")):  # nothing refers to these
            tag = re.sub(' id="[^"]*"', "", tag)
        for opening in (' id="', "url(#", 'href="#'):
            tag = tag.replace(opening, opening + prefix)
        for name, value in COLOURS.items():
            tag = tag.replace(value, f"var(--{name})")
        return re.sub(r"(\.\d{3})\d+", r"\1", tag)  # finer than any screen

    box = re.search(r'viewBox="[^"]*"', svg)[0]
    head = f'<svg role="img" aria-label="{escape(title)}" {box}>'
    return head + re.sub("<[^>]+>", renamed, svg[svg.index(">") + 1 :])


def _scales(axes, xlabel, last, *, log=False, loglog=False):
    from matplotlib.ticker import MaxNLocator

    axes.set_xlabel(xlabel)
    if log or loglog:
        axes.set_yscale("log")
        _log_ticks(axes.yaxis, axes.get_ylim())
    else:
        if axes.dataLim.y0 >= 0:
            axes.set_ylim(bottom=0)
        axes.yaxis.set_major_locator(MaxNLocator(5))
        if axes.get_ylim()[1] >= 1000:
            axes.yaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    if loglog:
        axes.set_xscale("log")
        _log_ticks(axes.xaxis, axes.get_xlim())
    else:
        axes.set_xlim(0, max(last, 1))
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")


def _log_ticks(axis, limits):
    """Labels powers of ten, and 2 and 5 times those where there are few."""
    from matplotlib.ticker import LogLocator

    decades = np.log10(limits[1] / limits[0])
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
