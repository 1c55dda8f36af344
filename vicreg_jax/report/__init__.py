"""Writes the report of a run: one HTML page and its figures; it runs no encoder."""

import os
from pathlib import Path

from vicreg_jax.report import page, records
from vicreg_jax.report.figures import check_installed
from vicreg_jax.report.maps import Gallery, check

__all__ = ["Gallery", "check_installed", "write"]


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
      FileNotFoundError: the folder holds no run.
      ValueError: its config.json cannot be read, or the gallery's arrays do not fit.
      ModuleNotFoundError: matplotlib is not installed.
    """
    check_installed()
    if gallery is not None:
        check(gallery)
    record = records.read(workdir)
    text, drawn = page.compose(record, gallery)
    workdir = Path(workdir).expanduser()
    folder = workdir / "report"
    folder.mkdir(exist_ok=True)
    for old in folder.glob("*.png"):
        if old.stem not in drawn:
            old.unlink()
    for name, figure in drawn.items():
        _replace(folder / f"{name}.png", figure.png)
    path = workdir / "report.html"
    _replace(path, text.encode())
    return path


def _replace(path, content):
    """Writes a file whole or not at all."""
    draft = path.with_suffix(".tmp")
    draft.write_bytes(content)
    os.replace(draft, path)
