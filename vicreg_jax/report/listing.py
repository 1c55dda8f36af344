"""The runs in a folder as a table, perhaps the best first; it writes nothing."""

import os

from rich.console import Console
from rich.table import Table

from vicreg_jax import files
from vicreg_jax.refusals import NotFound, Refusal, require
from vicreg_jax.report import study
from vicreg_jax.report.read import Record, read_run

__all__ = ["found", "show"]


def found(folder: str | os.PathLike) -> dict[str, Record]:
    """Returns the records of the runs in a folder and below, by their paths in it.

    Raises:
      NotFound: there is no such folder, or no run in it.
    """
    folder = files.expanded(folder)
    records = {}
    for path in sorted(folder.rglob("config.json")):
        name = str(path.parent.relative_to(folder))
        try:
            records[name] = read_run(path.parent)
        except Refusal:
            pass  # of an evaluation, an export, or of something else
    if not records:
        raise NotFound(f"{folder}: there is no run here; give --workdir=FOLDER")
    return records


def show(folder: str | os.PathLike, *, by: str = "") -> None:
    """Prints a line for each run of a folder.

    Args:
      by: name of a value, see `study.values`: the greatest comes first.

    Raises:
      NotFound: see `found`.
      Refusal: no run has a value of that name.
    """
    require("matplotlib", "the list of runs", install="vicreg_jax[report]")
    from vicreg_jax.report import sections
    from vicreg_jax.report.charts import short

    records = found(folder)
    values = {name: study.values(record) for name, record in records.items()}
    order = list(records)
    if by:
        known = dict.fromkeys(x for one in values.values() for x in one)
        if by not in known:
            raise Refusal(f"config.by: no run has {by!r}; there are {', '.join(known)}")
        order.sort(key=lambda name: -values[name].get(by, float("-inf")))
    out = Table()
    for title in ("run", "method", "encoder", "reached", "health", *filter(None, [by])):
        out.add_column(title)
    for name in order:
        config = records[name].config
        verdict = sections.head(records[name])["verdict"] or {"where": "nothing logged"}
        health = ""
        if judged := verdict.get("judged"):
            health = "healthy" if judged.healthy else "not healthy"
        cells = [name, config.method, config.model.encoder, verdict["where"], health]
        if by:
            cells.append(short(values[name][by]) if by in values[name] else "–")
        out.add_row(*cells)
    Console().print(out, markup=False)
