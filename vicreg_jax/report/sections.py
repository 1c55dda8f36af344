"""What the sections of the page draw and tabulate; their words are the template's."""

from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import numpy as np

from vicreg_jax import methods
from vicreg_jax.config import Config, fields
from vicreg_jax.files import is_number
from vicreg_jax.methods import health
from vicreg_jax.report import charts, spectra
from vicreg_jax.report import map as maps
from vicreg_jax.report.charts import Reference, curve, short
from vicreg_jax.report.read import Gallery, Record
from vicreg_jax.report.uncertainty import interval, margin
from vicreg_jax.run import goodput

__all__ = [
    "column",
    "compose",
    "evaluation",
    "feature_map",
    "few_labels",
    "head",
    "loss",
    "neighbours",
    "settings",
    "speed",
    "spread",
    "text_of",
    "views",
]


Section = dict[str, Any]  # "panels": drawings by the names of their files; and numbers


def compose(record: Record, gallery: Gallery | None) -> dict[str, Section]:
    """Returns what the page shows, by section; one that has no data is empty."""
    return {
        "head": head(record),
        "loss": loss(record),
        "spread": spread(record),
        "spectrum": spectra.spectrum(record),
        "speed": speed(record),
        "evaluation": evaluation(record),
        "few_labels": few_labels(record.few_labels),
        "feature_map": feature_map(gallery) if gallery else {},
        "neighbours": neighbours(gallery) if gallery else {},
        "views": views(gallery) if gallery and len(gallery.views) else {},
        "settings": settings(record.config),
    }


def head(record: Record) -> Section:
    """Returns the verdict, the last numbers and what was trained."""
    return {
        "verdict": _verdict(record),
        "tiles": _tiles(record),
        "last": {k: short(x) for line in record.metrics[-1:] for k, x in line.items()},
        "facts": {name: _text(value) for name, value in _facts(record).items()},
    }


def loss(record: Record) -> Section:
    """Returns curves of the loss and of its terms, whatever they are."""
    weights = {name: weight for name, weight in record.weights.items() if weight > 0}
    panels = _curves(record, {"loss": ("Loss", {})})
    steps, values = _columns(record, *weights)
    parts = {
        name: weight * value
        for (name, weight), value in zip(weights.items(), values, strict=True)
    }
    positive = all(np.all(part >= 0) for part in parts.values())
    if len(steps) and len(parts) > 1 and positive:
        title = "Share of each weighted term"
        panels["shares"] = charts.shares(title, steps, parts)
    names = {name: (name.capitalize(), {}) for name in record.weights}
    panels |= _curves(record, names)
    steps, (ratio, std) = _columns(record, "covariance_over_noise", "embedding_std")
    if len(steps):
        title, chance = "Covariance over its chance level", std**4
        references = [Reference("chance at this std", chance)]
        drawn = curve(title, steps, ratio, references=references)
        panels["covariance_over_noise"] = drawn
    n, d = record.config.data.batch_size, record.config.model.expander[-1]
    noise = short(2 * (d - 1) / (n - 1))
    return {"panels": panels, "n": n, "d": d, "noise": noise} if panels else {}


def spread(record: Record) -> Section:
    """Returns curves of what tells a healthy run from a collapsing one."""
    target = [Reference("target 1", 1.0)] if "variance" in record.weights else []
    wanted = {
        "embedding_std": ("Std of embeddings", {"references": target}),
        "embedding_rank": ("Effective rank of embeddings", {}),
        "embedding_correlation": ("Correlation of embeddings", {}),
        "representation_std": ("Std of representations", {}),
        "representation_rank": ("Effective rank of representations", {}),
        "grad_norm": ("Norm of the gradient, log scale", {"log": True}),
    }
    panels, config = _curves(record, wanted), record.config
    most = min(health.LIMIT, config.data.batch_size, config.model.expander[-1])
    return {"panels": panels, "most": most} if panels else {}


def speed(record: Record) -> Section:
    """Returns curves of the schedule, and of what the input costs."""
    limit = {"percent": True, "references": [Reference("too slow above", 0.1)]}
    wanted = {
        "learning_rate": ("Learning rate", {}),
        "images_per_second": ("Images per second", {}),
        "data_wait": ("Time spent waiting for images", limit),
    }
    panels = _curves(record, wanted)
    return {"panels": panels} if panels else {}


def evaluation(record: Record) -> Section:
    """Returns accuracies while training, and results beside published ones."""
    wanted = {
        "knn_top1": ("20-NN accuracy, per cent", {}),
        "probe_top1": ("Accuracy of the linear probe, per cent", {}),
    }
    panels, rows, notes = _curves(record, wanted), [], []
    for result in record.results:
        name, tested = result["name"], result["tested"]
        notes += [f"{name}: {note}" for note in result["notes"]]
        about = {"name": name, "data": result["data"], "tested": tested}
        for metric, value in result["results"].items():
            if "top-5" in metric and (metric.startswith("1-NN") or value == 100):
                continue  # one neighbour has one vote; of five classes all are named
            rows.append(
                {
                    "about": about,
                    "metric": metric,
                    "value": value,
                    "half": interval(value, tested) if "top-" in metric else None,
                    "published": result["published"].get(metric),
                }
            )
            about = {}  # in the first row of several only
    if not panels and not rows:
        return {}
    return {"panels": panels, "rows": rows, "notes": notes}


def few_labels(rows: Sequence[Mapping[str, Any]]) -> Section:
    """Returns accuracies by features, probe and labels per class; the last gain.

    That of the last features over the first, draw by draw.
    """
    if not rows:
        return {}
    draws = {
        (str(r["features"]), (str(r["probe"]), r["labels"])): np.array(r["draws"])
        for r in rows
    }
    columns = list(dict.fromkeys(column for _, column in draws))
    features = list(dict.fromkeys(name for name, _ in draws))
    best = {
        column: max(x.mean() for (_, other), x in draws.items() if other == column)
        for column in columns
    }
    pairs = [
        (draws.get((features[-1], column)), draws.get((features[0], column)))
        for column in columns
    ]
    paired = len(features) > 1 and all(
        a is not None and b is not None and a.shape == b.shape for a, b in pairs
    )
    return {
        "draws": max(len(x) for x in draws.values()),
        "probes": Counter(probe for probe, _ in columns),
        "labels": [labels for _, labels in columns],
        "rows": {
            name: [_mean(draws.get((name, column)), best[column]) for column in columns]
            for name in features
        },
        "gain": f"{features[-1]} − {features[0]}",
        "gains": [_mean(a - b) for a, b in pairs] if paired else [],
    }


def feature_map(gallery: Gallery) -> Section:
    """Returns the map of a gallery, and what it shows under the pointer."""
    drawn, method, hover = maps.feature_map(gallery)
    labels = gallery.labels
    return {
        "panels": {"map": drawn},
        "smooth": _smooth(gallery.thumbnails),
        "method": method,
        "n": len(gallery.features),
        "labelled": labels is not None,
        "few": labels is not None and len(np.unique(labels)) <= len(charts.LABELS),
        "hover": hover,
    }


def neighbours(gallery: Gallery) -> Section:
    """Returns some images with their nearest, and how often labels agree."""
    n, labels = len(gallery.features), gallery.labels
    k = min(maps.NEIGHBOURS, n - 1)
    return {
        "panels": {"neighbours": maps.neighbours(gallery)},
        "smooth": _smooth(gallery.thumbnails),
        "k": k,
        "n": n,
        "agreement": None
        if labels is None
        else maps.agreement(gallery.features, labels, k),
    }


def views(gallery: Gallery) -> Section:
    """Returns pairs of augmented views."""
    panels = {"views": maps.views(gallery)}
    return {"panels": panels, "smooth": _smooth(gallery.views[:, 0])}


def settings(config: Config) -> Section:
    """Returns by group the name, value and default of every field of the config.

    The default is None where the value is no other.
    """
    method = methods.METHODS.get(config.method, methods.Method)
    defaults, groups = fields.flat(Config(loss=dict(method.weights))), {}
    for name, value in fields.flat(config).items():
        group, _, last = name.rpartition(".")
        default = defaults.get(name)
        was = None if value == default else text_of(default)
        groups.setdefault(group or "run", []).append((last, text_of(value), was))
    return {"groups": groups}


def _verdict(record):
    """Returns how far the run is and, where its log tells, whether it is healthy."""
    if not record.metrics:
        return None
    first, last = record.metrics[0], record.metrics[-1]
    where = f"Step {last['step']:,}"
    if last.get("epoch", 0) > 0:
        with suppress(OverflowError):  # numbers that no run has written
            total = round(record.config.epochs * last["step"] / last["epoch"])
            where += f" of {total:,}"
            where += ", not finished" if last["step"] < total else ""
    if not {"embedding_std", "embedding_rank"} <= first.keys() & last.keys():
        return {"where": where, "judged": None}
    # A method of the user's own is judged by what all have in common.
    method = methods.METHODS.get(record.config.method, methods.Method)
    return {"where": where, "judged": method.health(first, last, record.weights)}


def _tiles(record):
    """Returns the last values, and what to hold them against."""
    if not record.metrics:
        return []
    first, last = record.metrics[0], dict(record.metrics[-1])
    _, speeds = column(record, "images_per_second")
    if len(speeds):
        last["images_per_second"] = float(np.median(speeds))
    target = ", target 1" if "variance" in record.weights else ""
    wanted = {
        "loss": ("loss", "{} at the start"),
        "embedding_std": ("embedding std", "{} at the start" + target),
        "embedding_rank": ("rank of embeddings", "{} at the start"),
        "representation_rank": ("rank of representations", "{} at the start"),
        "images_per_second": ("images per second", "median"),
    }
    return [
        (title, short(last[name]), note.format(short(first.get(name, 0.0))))
        for name, (title, note) in wanted.items()
        if name in last
    ]


def _facts(record):
    config = record.config
    data, model, optimizer = config.data, config.model, config.optimizer
    where = data.dataset if data.name == "tfds" else data.path or data.name
    weights = record.weights.items()
    examples = record.environment.get("examples")
    images = f"{examples:,} images, " if is_number(examples) else ""
    local = (
        f", {data.local_views} local of {data.sizes[-1]}" if data.local_views else ""
    )
    facts = {
        "data": f"{images}{where}, views of {data.image_size} pixels squared{local}",
        "encoder": f"{model.encoder}, width {model.width}, {model.dtype}",
        "expander": "–".join(map(str, model.expander)),
        "loss": " + ".join(f"{weight:g} {name}" for name, weight in weights),
        "training": f"{config.epochs} epochs, batch of {data.batch_size},"
        f" {optimizer.name}, base rate {optimizer.base_lr:g}, seed {config.seed}",
    }
    if record.starts:
        seconds = sum(sum(line["seconds"].values()) for line in record.starts)
        spent = goodput.words(record.starts).removeprefix("time: ")
        facts["time"] = f"{timedelta(seconds=round(seconds))}: {spent}"
    known = ("commit", "devices", "host_cores", "jax", "python", "started")
    found = {name: record.environment.get(name) for name in known}
    return facts | {name.replace("_", " "): value for name, value in found.items()}


def _text(value):
    """Returns a value of a JSON file as text, equal entries of a list counted."""
    if isinstance(value, list):
        counts = Counter(map(str, value)).items()
        return ", ".join(f"{n} × {name}" if n > 1 else name for name, n in counts)
    return str(value) if value not in (None, {}) else ""


def text_of(value: Any) -> str:
    """Returns a value of a config as it is typed, lists without brackets."""
    if isinstance(value, list):
        return ", ".join(map(text_of, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (f"{value:.4g}" if isinstance(value, float) else str(value)) or "–"


def _mean(values, best=None):
    """Returns a mean with its margin, and whether it is the best of its column."""
    if values is None:
        return None
    mean = values.mean()
    return {"mean": mean, "margin": margin(values), "best": mean == best}


def _smooth(images):
    """Tells images that are large enough to be shown without square pixels."""
    return images.shape[1] >= maps.SMOOTH


def column(record: Record, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Returns the steps that have a value, and the values, [t]; perhaps none."""
    steps, (values,) = _columns(record, name)
    return steps, values


def _columns(record, *names):
    """Returns the steps that have all these values, and the values of each, [t]."""
    lines = [line for line in record.metrics if line.keys() >= set(names)]
    steps = np.array([line["step"] for line in lines], float)
    return steps, [np.array([line[name] for line in lines], float) for name in names]


def _curves(record, wanted):
    """Returns a panel for each of the wanted values that has been logged."""
    panels = {}
    for name, (title, options) in wanted.items():
        steps, values = column(record, name)
        if len(steps):
            panels[name] = curve(title, steps, values, **options)
    return panels
