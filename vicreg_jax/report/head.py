"""Head and foot of the page: what was trained, its health, what was skipped."""

from html import escape

import numpy as np

from vicreg_jax import methods
from vicreg_jax.report import tables
from vicreg_jax.report.figures import short
from vicreg_jax.report.records import Record


def head(record: Record) -> str:
    """Returns the title, the verdict, the last numbers and what was trained."""
    return (
        '<p class="eyebrow">Report of a VICReg run</p>'
        f"<h1>{escape(record.name)}</h1>"
        f"{_verdict(record)}{_tiles(record.metrics)}{tables.facts(_facts(record))}"
    )


def foot(record: Record) -> str:
    """Returns what could not be read, and where else the figures are."""
    notes = []
    if record.damaged:
        lines = "line" if record.damaged == 1 else "lines"
        notes.append(f"{record.damaged} damaged {lines} of metrics.jsonl skipped.")
    if record.unreadable:
        notes.append(f"Could not be read: {escape(', '.join(record.unreadable))}.")
    notes.append(
        "Figures are also PNG files in the folder report. VICReg:"
        ' <a href="https://arxiv.org/abs/2105.04906">arXiv:2105.04906</a>.'
    )
    return "".join(f"<p>{note}</p>" for note in notes)


def _verdict(record):
    lines = record.metrics
    if not lines:
        return '<p class="verdict">Nothing has been logged yet.</p>'
    first, last = lines[0], lines[-1]
    where = f"Step {last['step']:,}"
    if last.get("epoch", 0) > 0:
        total = round(record.config.epochs * last["step"] / last["epoch"])
        where += f" of {total:,}"
        where += ", not finished" if last["step"] < total else ""
    if not {"embedding_std", "embedding_rank"} <= first.keys() & last.keys():
        return f'<p class="verdict">{where}.</p>'
    method = methods.named(record.config.method)
    weights = method.weighed(record.config.loss)
    verdict = method.health(first, last, weights)
    kind, word = ("", "Healthy") if verdict.healthy else (" bad", "Not healthy")
    reason = f"{where}: {escape(verdict.reason)}."
    return f'<div class="verdict{kind}"><b>{word}</b> {reason}</div>'


def _tiles(lines):
    """Returns the last values in large type, and what to hold them against."""
    if not lines:
        return ""
    first, last = lines[0], lines[-1]
    speed = [line["images_per_second"] for line in lines if "images_per_second" in line]
    last = last | ({"images_per_second": float(np.median(speed))} if speed else {})
    notes = {
        "loss": ("loss", "{} at the start"),
        "embedding_std": ("embedding std", "{} at the start, target 1"),
        "embedding_rank": ("rank of embeddings", "{} at the start"),
        "representation_rank": ("rank of representations", "{} at the start"),
        "images_per_second": ("images per second", "median"),
    }
    tiles = "".join(
        f"<div><dt>{title}</dt><dd>{short(last[name])}"
        f"<small>{note.format(short(first.get(name, 0.0)))}</small></dd></div>"
        for name, (title, note) in notes.items()
        if name in last
    )
    return f'<dl class="tiles">{tiles}</dl>' if tiles else ""


def _facts(record):
    config = record.config
    data, model, optimizer = config.data, config.model, config.optimizer
    where = data.dataset if data.name == "tfds" else data.path or data.name
    weights = dict(config.loss).items()
    facts = {
        "data": f"{where}, views of {data.image_size} × {data.image_size} pixels",
        "encoder": f"{model.encoder}, width {model.width}, {model.dtype}",
        "expander": "–".join(map(str, model.expander)),
        "loss": " + ".join(f"{weight:g} {name}" for name, weight in weights),
        "training": f"{config.epochs} epochs, batch of {data.batch_size},"
        f" {optimizer.name}, base rate {optimizer.base_lr:g}, seed {config.seed}",
    }
    known = ("commit", "devices", "host_cores", "jax", "python", "started")
    found = {name: _counted(record.environment.get(name)) for name in known}
    return facts | {name.replace("_", " "): value for name, value in found.items()}


def _counted(value):
    """Returns a list with equal entries counted: 8 × NVIDIA H100."""
    if not isinstance(value, list):
        return value
    names = list(map(str, value))
    return [
        f"{names.count(x)} × {x}" if names.count(x) > 1 else x
        for x in dict.fromkeys(names)
    ]
