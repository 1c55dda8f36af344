"""Reads what a run has left in its workdir; it writes nothing there."""

import json
import math
import os
from pathlib import Path
from typing import Any, NamedTuple

from vicreg_jax import config as configs
from vicreg_jax.config import Config


class Record(NamedTuple):
    """All that a workdir says of its run; what is absent is empty."""

    name: str  # of the workdir
    config: Config
    metrics: list[dict[str, float]]  # by step; finite numbers
    damaged: int  # lines of metrics.jsonl that could not be read
    environment: dict[str, Any]
    few_labels: list[dict[str, Any]]
    results: list[dict[str, Any]]  # of eval/*/result.json
    diagnostics: dict[str, dict[str, Any]]  # name of its folder -> diagnostics.json
    unreadable: list[str]  # files that are there, but not what they should be


def read(workdir: str | os.PathLike) -> Record:
    """Returns the record of a run.

    Raises:
      FileNotFoundError: the folder holds no run.
      ValueError: its config.json cannot be read.
    """
    workdir = Path(workdir).expanduser()
    path = workdir / "config.json"
    if not path.is_file():
        raise FileNotFoundError(f"{workdir} is no run: there is no config.json")
    try:
        config = configs.parse(json.loads(path.read_text()))
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    metrics, damaged = _metrics(workdir / "metrics.jsonl")
    unreadable = []

    def load(path, good):
        try:
            found = json.loads(path.read_text())
        except (OSError, ValueError):
            found = None
        if not good(found):
            unreadable.append(str(path.relative_to(workdir)))
            return None
        return found

    def load_if_there(name, good, otherwise):
        path = workdir / name
        return (load(path, good) if path.exists() else None) or otherwise

    results = [load(p, _is_result) for p in sorted(workdir.glob("eval/*/result.json"))]
    diagnostics = {
        p.parent.name: load(p, lambda x: isinstance(x, dict))
        for p in sorted(workdir.glob("eval/*/diagnostics.json"))
    }
    return Record(
        name=workdir.resolve().name,
        config=config,
        metrics=metrics,
        damaged=damaged,
        environment=load_if_there(
            "environment.json", lambda x: isinstance(x, dict), {}
        ),
        few_labels=load_if_there("few_labels.json", _is_few_labels, []),
        results=[x for x in results if x],
        diagnostics={name: x for name, x in diagnostics.items() if x},
        unreadable=unreadable,
    )


def is_number(x: Any) -> bool:
    """Tells finite numbers, which bool is not, from the rest of JSON."""
    return isinstance(x, int | float) and not isinstance(x, bool) and math.isfinite(x)


def _metrics(path):
    """Returns the lines by step, the last one of each, and how many were damaged."""
    lines, damaged = {}, 0
    if not path.exists():
        return [], 0
    for text in path.read_text(errors="replace").splitlines():
        try:
            line = json.loads(text)
        except ValueError:
            line = None
        if not isinstance(line, dict) or not is_number(line.get("step")):
            damaged += 1
            continue
        lines[line["step"]] = {name: x for name, x in line.items() if is_number(x)}
    return [lines[step] for step in sorted(lines)], damaged


def _is_result(x):
    if not isinstance(x, dict) or not isinstance(x.get("results"), dict):
        return False
    published, notes = x.get("published", {}), x.get("notes", [])
    return (
        all(is_number(value) for value in x["results"].values())
        and isinstance(published, dict)
        and all(is_number(value) for value in published.values())
        and isinstance(notes, list)
    )


def _is_few_labels(x):
    return isinstance(x, list) and all(
        isinstance(row, dict)
        and {"features", "probe", "labels", "draws"} <= set(row)
        and isinstance(row["draws"], list)
        and row["draws"]
        and all(is_number(value) for value in row["draws"])
        for row in x
    )
