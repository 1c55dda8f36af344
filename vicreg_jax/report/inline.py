"""Figures of runs in the output of a notebook's cell; it writes no file."""

import base64
import os
from html import escape

from vicreg_jax.refusals import Refusal
from vicreg_jax.report.page import check_installed
from vicreg_jax.report.read import Gallery, check_gallery, read_run

__all__ = ["Shown", "show"]


class Shown:
    """What a notebook shows as the last line of a cell.

    Args:
      heading: plain text. panels: PNG files by name.
      colours: of the curves, by what they are named.
    """

    def __init__(self, heading: str, panels: dict[str, bytes], colours: dict[str, str]):
        self.heading, self.panels, self.colours = heading, panels, colours

    def _repr_html_(self) -> str:
        images = "".join(
            f'<img alt="{escape(name)}" style="max-width: 100%; height: 16rem"'
            f' src="data:image/png;base64,{base64.b64encode(png).decode()}">'
            for name, png in self.panels.items()
        )
        names = "".join(
            f' <span style="color: {colour}">■</span> {escape(name)}'
            for name, colour in self.colours.items()
        )
        return f"<p>{escape(self.heading)}{names}</p><div>{images}</div>"

    def __repr__(self) -> str:
        names = ", ".join(self.colours)
        return f"{self.heading} {names}\nfigures: {', '.join(self.panels)}"


def show(*runs: str | os.PathLike, gallery: Gallery | None = None) -> Shown:
    """Returns the curves of a run, or of several over each other, for a notebook.

    Args:
      runs: workdirs, finished or not.
      gallery: of the one run; its map and nearest neighbours are shown instead.

    Raises:
      NotFound: a folder holds no run.
      NotInstalled: matplotlib or jinja2 is missing.
      Refusal: there is no run, a gallery but several, or one that cannot be read.
    """
    check_installed()
    from vicreg_jax.report import charts, comparison, sections  # they need matplotlib

    if not runs or (gallery is not None and len(runs) > 1):
        raise Refusal(
            f"report.show takes runs, or one run and its gallery; got {len(runs)}"
        )
    if len(runs) > 1:
        records = comparison.read(runs)
        drawn = comparison.panels(records)
        colours = dict(zip(records, charts.LABELS, strict=False))
        pictures = {name: x.png for name, x in drawn.items()}
        return Shown(f"{len(records)} runs:", pictures, colours)
    record = read_run(runs[0])
    if gallery is not None:
        check_gallery(gallery)
        shown = (sections.feature_map(gallery), sections.neighbours(gallery))
    else:
        shown = (sections.loss(record), sections.spread(record))
    drawn = {
        k: x.png for section in shown for k, x in section.get("panels", {}).items()
    }
    verdict = sections.head(record)["verdict"] or {"where": "nothing logged yet"}
    heading = f"{record.name}: {verdict['where']}"
    if judged := verdict.get("judged"):
        word = "healthy" if judged.healthy else "NOT healthy"
        heading += f", {word}: {judged.reason}"
    return Shown(heading, drawn, {})
