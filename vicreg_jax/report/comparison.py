"""The page of several runs: their curves over each other, and what differs."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vicreg_jax import files
from vicreg_jax.config import fields
from vicreg_jax.refusals import Refusal, printable
from vicreg_jax.report import charts, sections
from vicreg_jax.report.charts import LABELS, Drawn, short
from vicreg_jax.report.page import render
from vicreg_jax.report.read import Record, read_run

__all__ = ["compare", "panels", "read", "rows", "settings"]

TITLES = {
    "loss": "Loss",
    "embedding_std": "Std of embeddings",
    "embedding_rank": "Effective rank of embeddings",
    "embedding_correlation": "Correlation of embeddings",
    "representation_std": "Std of representations",
    "representation_rank": "Effective rank of representations",
    "learning_rate": "Learning rate",
    "images_per_second": "Images per second",
    "knn_top1": "20-NN accuracy, per cent",
    "probe_top1": "Accuracy of the linear probe, per cent",
}


def compare(runs: Sequence[str | os.PathLike], path: str | os.PathLike) -> Path:
    """Writes a page that compares runs; it needs no other file and no network.

    Args:
      runs: workdirs of 2 to 10 runs.
      path: of the page, which is replaced.

    Returns: the path.

    Raises:
      NotFound: a folder holds no run.
      Refusal: a config.json cannot be read; or another number of runs.
      Unusable: the page cannot be written.
    """
    records = read(runs)
    page = render(
        "comparison.html.jinja",
        runs={name: LABELS[i] for i, name in enumerate(records)},
        rows=rows(records),
        settings=settings(records),
        panels=panels(records),
    )
    path = files.expanded(path)
    files.write(path, page.encode(errors="replace"))
    return path


def read(runs: Sequence[str | os.PathLike]) -> dict[str, Record]:
    """Returns the records by the names of their folders, or paths where these repeat.

    Raises: see `compare`.
    """
    paths = list(dict.fromkeys(printable(str(run)) for run in runs))
    if not 2 <= len(paths) <= len(LABELS):
        raise Refusal(
            f"2 to {len(LABELS)} runs are compared, by their workdirs, such as"
            f" --config.runs=\"('A','B')\"; got {len(paths)}"
            f"{': ' if paths else ''}{', '.join(paths)}"
        )
    records = [read_run(path) for path in paths]
    names = [record.name for record in records]
    found = zip(paths, names, records, strict=True)
    return {name if names.count(name) == 1 else path: x for path, name, x in found}


def panels(records: dict[str, Record]) -> dict[str, Drawn]:
    """Returns a panel for each value that some run has logged."""
    drawn = {}
    for key, title in TITLES.items():
        curves = {name: sections.column(x, key) for name, x in records.items()}
        if any(len(steps) for steps, _ in curves.values()):
            drawn[key] = charts.curves(title, curves)
    return drawn


def rows(records: dict[str, Record]) -> dict[str, list[str]]:
    """Returns a row of cells, one a run, for each fact that some run has."""
    columns = [_facts(record) for record in records.values()]
    known = dict.fromkeys(name for column in columns for name in column)
    return {name: [column.get(name, "") for column in columns] for name in known}


def _facts(record):
    """Returns what there is to tell of a run, by what it is."""
    found: dict[str, Any] = sections.head(record)
    verdict, facts = found["verdict"] or {"where": "nothing logged yet"}, found["facts"]
    told = {"reached": verdict["where"]}
    if judged := verdict.get("judged"):
        told["health"] = "healthy" if judged.healthy else "not healthy"
    told |= {title: value for title, value, _ in found["tiles"]}
    told |= {name: facts[name] for name in ("time", "devices") if facts.get(name)}
    for row in record.few_labels:
        if row["features"] == record.few_labels[-1]["features"]:
            name = (
                f"{row['probe']}, {row['labels'] or 'all'} labels per class, per cent"
            )
            told[name] = f"{sum(row['draws']) / len(row['draws']):.1f}"
    for result in record.results:
        for metric, value in result["results"].items():
            told[f"{result['name']} on {result['data']}: {metric}"] = short(value)
    return {name: printable(text) for name, text in told.items()}


def settings(records: dict[str, Record]) -> dict[str, list[str]]:
    """Returns the fields in which the runs differ, with the value of each run."""
    columns = [
        fields.flat(x.config) | {f"loss.{k}": weight for k, weight in x.weights.items()}
        for x in records.values()
    ]
    known = dict.fromkeys(name for column in columns for name in column)
    found = {name: [column.get(name, "") for column in columns] for name in known}
    return {
        name: [sections.text_of(value) for value in values]
        for name, values in found.items()
        if any(value != values[0] for value in values)
    }
