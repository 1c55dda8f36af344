"""Writes the page of a run and its figures; what they show is decided elsewhere."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.refusals import require
from vicreg_jax.report.read import Gallery, check_gallery, read_run

__all__ = ["check_installed", "render", "write"]


HERE = Path(__file__).parent  # of the template, the style sheet and the script


def check_installed() -> None:
    """Raises NotInstalled without the packages that only reports need."""
    for module in ("matplotlib", "jinja2"):
        require(module, "the report", install="vicreg_jax[report]")


def write(workdir: str | os.PathLike, *, gallery: Gallery | None = None) -> Path:
    """Writes `report.html` and `report/*.png` into the folder of a run.

    The page needs no other file and no network. What the run has not left behind (an
    evaluation, a log) is left out; an earlier report is replaced.

    Args:
      workdir: of a run, finished or not.
      gallery: representations of some images, for the map, the neighbours and the
        augmented views.

    Returns: the path of the page.

    Raises:
      NotFound: the folder holds no run.
      NotInstalled: matplotlib or jinja2 is missing.
      Refusal: its config.json cannot be read.
      Unusable: the folder cannot be written to.
      ValueError: the gallery's arrays do not fit.
    """
    check_installed()
    from vicreg_jax.report import sections  # they need matplotlib

    if gallery is not None:
        check_gallery(gallery)
    record = read_run(workdir)
    found = sections.compose(record, gallery)
    drawn = {}
    for section in found.values():
        drawn |= section.get("panels", {})
    workdir = files.expanded(workdir)
    _replace_figures(workdir / "report", {name: x.png for name, x in drawn.items()})
    path = workdir / "report.html"
    # Names in JSON and of folders may have halves of characters, which UTF-8 has not.
    files.write(path, _render(record, found).encode(errors="replace"))
    return path


def _replace_figures(folder, images):
    """Writes PNG files by their names, and removes those of an earlier report."""
    with files.writing(folder):
        folder.mkdir(exist_ok=True)
        for old in folder.glob("*.png"):
            if old.stem not in images:
                old.unlink()
    for name, png in images.items():
        files.write(folder / f"{name}.png", png)


def _render(record, found):
    script = (
        (HERE / "hover.js").read_text(encoding="utf-8") if found["feature_map"] else ""
    )
    return render(
        "page.html.jinja",
        **found,
        record=record,
        config=record.config,
        script=script,
        hash=base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
    )


def render(template: str, **values: Any) -> str:
    """Returns a page of a template in this folder; what is not safe is escaped.

    A script that runs is named by a hash, so that no other does.
    """
    import jinja2

    from vicreg_jax.report import charts

    pages = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.filters |= {
        "short": charts.short,
        "count": "{:,}".format,
        "tenths": "{:.1f}".format,
        "signed": lambda x: f"{x:+.1f}".replace("-", "−"),
    }
    style = (HERE / "style.css").read_text(encoding="utf-8")
    return pages.get_template(template).render(
        values, style=style, most_points=charts.POINTS
    )
