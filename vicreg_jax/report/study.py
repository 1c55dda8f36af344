"""The table of a study: values of its runs, means over seeds; it trains nothing."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from vicreg_jax import files
from vicreg_jax.config import Study
from vicreg_jax.refusals import Refusal
from vicreg_jax.report.read import Record
from vicreg_jax.report.uncertainty import margin, wilson

__all__ = ["Cell", "Run", "gains", "means", "values", "write"]


SHARE = "healthy"  # is counted, not averaged


class Run(NamedTuple):
    """A finished run of a study."""

    row: str
    variation: str  # a change that it has beside those of its row, or ""
    seed: int
    values: dict[str, float]  # see `values`


class Cell(NamedTuple):
    """A mean over the runs of a row."""

    mean: float
    half: float  # of its 95 % interval, Student's; 0 of one run
    count: int  # of runs


def values(record: Record) -> dict[str, float]:
    """Returns the numbers that a run has left behind, by name.

    "healthy": 100 or 0, the verdict at the end; "minutes", over all starts; what was
    logged, at the end by its own name, at the first step as "embedding_std at first";
    accuracies, in per cent: "1-NN, 5 labels" of the table of few labels, also of
    "untrained encoder: 1-NN, 5 labels" and so on, "knn: 20-NN top-1" of evaluations.
    """
    from vicreg_jax.report import sections

    found = {}
    verdict = sections.head(record)["verdict"] or {}
    if judged := verdict.get("judged"):
        found[SHARE] = 100.0 if judged.healthy else 0.0
    seconds = sum(sum(x["seconds"].values()) for x in record.starts)
    found["minutes"] = seconds / 60
    for line in record.metrics[:1]:
        found |= {f"{name} at first": x for name, x in line.items()}
    for line in record.metrics[-1:]:
        found |= line
    for row in record.few_labels:
        name = f"{row['probe']}, {row['labels'] or 'all'} labels"
        if row["features"] != record.few_labels[-1]["features"]:
            name = f"{row['features']}: {name}"
        found[name] = float(np.mean(row["draws"]))
    for result in record.results:
        for metric, value in result["results"].items():
            found[f"{result['name']}: {metric}"] = value
    return found


def means(runs: Sequence[Run], columns: Sequence[str]) -> dict[str, dict[str, Cell]]:
    """Returns row -> column -> mean of the runs that have the value.

    Raises:
      Refusal: no run has a value of that name.
    """
    known = dict.fromkeys(name for run in runs for name in run.values)
    if unknown := [name for name in columns if name not in known]:
        raise Refusal(
            f"config.columns: no run has {', '.join(unknown)}; there are"
            f" {', '.join(known)}"
        )
    table = {}
    for row in dict.fromkeys(run.row for run in runs):
        own = [run.values for run in runs if run.row == row]
        found = {c: np.array([x[c] for x in own if c in x]) for c in columns}
        table[row] = {c: _cell(x) for c, x in found.items() if len(x)}
    return table


def gains(
    runs: Sequence[Run], columns: Sequence[str], baseline: str
) -> dict[str, dict[str, Cell]]:
    """Returns row -> column -> mean difference to the baseline, run by run.

    A run is paired with that of the baseline of the same variation and seed.
    """
    based = {(x.variation, x.seed): x.values for x in runs if x.row == baseline}
    table = {}
    columns = [column for column in columns if column != SHARE]
    for run in runs:
        other = based.get((run.variation, run.seed), {})
        if run.row != baseline:
            for column in columns:
                if column in run.values and column in other:
                    difference = run.values[column] - other[column]
                    own = table.setdefault(run.row, {}).setdefault(column, [])
                    own.append(difference)
    return {
        row: {column: _cell(np.array(x)) for column, x in own.items()}
        for row, own in table.items()
    }


def write(study: Study, runs: Sequence[Run], workdir: Path) -> str:
    """Writes study.csv, study.md and study.html, and returns the Markdown.

    Args:
      runs: those that have finished, one or more.

    Raises:
      Refusal: a column that no run has.
      Unusable: they cannot be written.
    """
    from vicreg_jax.report import charts, page

    table = means(runs, study.columns)
    tables = {"": _lines(study, table, study.published)}
    if differences := gains(runs, study.columns, study.baseline):
        title = f"Less {study.baseline}, run by run"
        tables[title] = _lines(study, differences, {})
    panels = [
        charts.dots(
            column,
            {
                row: [x.values[column] for x in runs if _has(x, row, column)]
                for row in table
            },
        )
        for column in study.columns
        if column != SHARE
    ]
    html = page.render("study.html.jinja", tables=tables, panels=panels, runs=len(runs))
    text = "\n".join(_markdown(title, lines) for title, lines in tables.items())
    files.write(workdir / "study.csv", _csv(runs).encode())
    files.write(workdir / "study.md", text.encode())
    files.write(workdir / "study.html", html.encode(errors="replace"))
    return text


def _cell(x):
    return Cell(float(x.mean()), margin(x), len(x))


def _has(run, row, column):
    return run.row == row and column in run.values


def _csv(runs):
    """Returns a line for each run, with every value that any run has."""
    known = sorted({name for run in runs for name in run.values})
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n")
    lines.writerow(["row", "variation", "seed", *known])
    for run in runs:
        cells = [run.values.get(name, "") for name in known]
        lines.writerow([run.row, run.variation, run.seed, *cells])
    return out.getvalue()


def _lines(study, table, published):
    """Returns a table as text, its head first: names, means, what is published."""
    columns = [x for x in study.columns if any(x in cells for cells in table.values())]
    title = f"published {study.published_as}".strip()
    lines = [["", *columns, *([title] if published else []), "runs"]]
    for row, cells in table.items():
        shown = [_text(column, cells.get(column)) for column in columns]
        if published:
            shown.append(f"{published[row]:g}" if row in published else "")
        lines.append([row, *shown, str(max(x.count for x in cells.values()))])
    return lines


def _text(column, cell):
    """Returns a mean with half its interval; a share of runs with its bounds."""
    if cell is None:
        return "–"
    if column == SHARE:
        right = round(cell.mean * cell.count / 100)
        low, high = wilson(right, cell.count)
        return f"{right} of {cell.count} ({low:.0f}–{high:.0f} %)"
    from vicreg_jax.report.charts import short

    return f"{short(cell.mean)}{f' ±{short(cell.half)}' if cell.half else ''}"


def _markdown(title, lines):
    head, *rest = lines
    rule = ["---", *["--:"] * (len(head) - 1)]
    rows = [head, rule, *rest]
    table = "\n".join(f"| {' | '.join(row)} |" for row in rows)
    return f"{title and title + ':'}\n\n{table}\n".lstrip()
