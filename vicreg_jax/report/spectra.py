"""The section on how features use their dimensions; it computes no features."""

from typing import Any

import numpy as np

from vicreg_jax.files import is_number
from vicreg_jax.report import charts
from vicreg_jax.report.read import Record

__all__ = ["spectrum"]


def spectrum(record: Record) -> dict[str, Any]:
    """Returns how evenly evaluated features use their dimensions."""
    found = _diagnosed(record)
    panels = {}
    values = {
        name: x / max(x.max(), 1e-30)
        for name, x in _series(found, "singular_values").items()
    }
    if values:
        title = "Singular values over the largest"
        drawn = charts.spectra(title, values, xlabel="rank", log=True)
        panels["singular_values"] = drawn
    if stds := _series(found, "stds"):
        title, xlabel = "Std of each dimension", "dimension, sorted"
        panels["stds"] = charts.spectra(title, stds, xlabel=xlabel, log=False)
    titles = {
        "std": "mean std",
        "dead": "dead dimensions",
        "correlation": "correlation",
        "rank": "effective rank",
        "alpha": "α",
        "lidar": "LiDAR",
    }
    used = [key for key in titles if any(is_number(x.get(key)) for x in found.values())]
    rows = {
        name: [f"{x[key]:.3g}" if is_number(x.get(key)) else "" for key in used]
        for name, x in found.items()
    }
    if not panels and not used:
        return {}
    return {"panels": panels, "titles": [titles[key] for key in used], "rows": rows}


def _diagnosed(record):
    """Returns the statistics of each kind of features that has been evaluated."""
    found = {}
    for folder, facts in record.diagnostics.items():
        before = f"{folder}, " if len(record.diagnostics) > 1 else ""
        for kind in ("representation", "embedding"):
            own = {
                name.removeprefix(f"{kind}_"): value
                for name, value in facts.items()
                if name.startswith(f"{kind}_")
            }
            if own:
                found[f"{before}{kind}s"] = own
                if "lidar" in facts and kind == "representation":
                    own["lidar"] = facts["lidar"]
    return found


def _series(found, key):
    """Returns those of the found that have a list of numbers under the key, [d]."""
    values = {name: own.get(key) for name, own in found.items()}
    return {
        name: np.array(x, float)
        for name, x in values.items()
        if isinstance(x, list) and x and all(map(is_number, x))
    }
