"""Tables of a report as HTML, every text escaped; it reads and draws nothing."""

import math
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np

from vicreg_jax import fields, methods
from vicreg_jax.config import Config
from vicreg_jax.metrics import Z95, interval
from vicreg_jax.report.records import is_number


def settings(config: Config) -> str:
    """Returns every field of the config by group; what differs from its default marked.

    A default that was changed is written below the value.
    """
    weights = dict(methods.named(config.method).weights)
    values, defaults = fields.flat(config), fields.flat(Config(loss=weights))
    groups = {}
    for name, value in values.items():
        group, _, last = name.rpartition(".")
        changed = value != defaults[name]
        was = f"<small>default {_value(defaults[name])}</small>" if changed else ""
        row = f"<th scope=row>{escape(last)}</th><td>{_value(value)}{was}</td>"
        mark = ' class="changed"' if changed else ""
        groups.setdefault(group or "run", []).append(f"<tr{mark}>{row}</tr>")
    cards = "".join(
        f"<section><h3>{escape(name)}</h3><table><tbody>{''.join(rows)}</tbody></table>"
        "</section>"
        for name, rows in groups.items()
    )
    return f'<div class="groups">{cards}</div>'


def evaluations(results: Sequence[Mapping[str, Any]]) -> str:
    """Returns results in per cent, published ones beside them where there are any."""
    published = any(result.get("published") for result in results)
    heads = ["evaluation", "data", "metric", "images", "this run", "± 95 %"]
    if published:
        heads += ["published", "difference"]
    lines = []
    for result in results:
        tested, known = result.get("tested"), result.get("published", {})
        for i, (metric, value) in enumerate(result["results"].items()):
            half = half_width(value, tested) if "top-" in metric else None
            cells = [
                "" if i else _text(result.get("name") or result.get("task")),
                "" if i else _text(result.get("data")),
                _text(metric),
                "" if i or not isinstance(tested, int) else f"{tested:,}",
                f"<b>{value:.1f}</b>",
                "" if half is None else f"{half:.1f}",
            ]
            if published:
                there = metric in known
                cells += [f"{known[metric]:.1f}" if there else ""]
                cells += [_signed(value - known[metric]) if there else ""]
            line = _row(cells, texts=3)
            lines.append(line.replace("<tr>", '<tr class="more">') if i else line)
    return _table(_row(heads, texts=3, tag="th"), lines)


def half_width(percent: float, tested: Any) -> float | None:
    """Returns half the Wilson interval of 95 % of an accuracy, in per cent.

    Of a share of `tested` independent images; None where it is none.
    """
    if not isinstance(tested, int) or tested < 1 or not 0 <= percent <= 100:
        return None
    return interval(percent, tested)


def few_labels(rows: Sequence[Mapping[str, Any]]) -> str:
    """Returns accuracies by features, probe and labels per class; the last gain.

    That of the last features over the first, draw by draw.
    """
    draws = {
        (str(r["features"]), str(r["probe"]), r["labels"]): np.array(r["draws"])
        for r in rows
    }
    columns = list(dict.fromkeys((probe, labels) for _, probe, labels in draws))
    features = list(dict.fromkeys(name for name, _, _ in draws))
    best = {
        column: max(
            draws[name, *column].mean() for name in features if (name, *column) in draws
        )
        for column in columns
    }
    probes = list(dict.fromkeys(probe for probe, _ in columns))
    top = "".join(
        f'<th class="span" colspan={sum(p == probe for p, _ in columns)}'
        f" scope=colgroup>{escape(probe)}</th>"
        for probe in probes
    )
    heads = ["features", *(str(n) if n else "all" for _, n in columns)]
    lines = []
    for name in features:
        cells = [escape(name)]
        for column in columns:
            found = draws.get((name, *column))
            text = "" if found is None else _mean(found)
            if found is not None and found.mean() == best[column]:
                text = f'<span class="best">{text}</span>'
            cells.append(text)
        lines.append(_row(cells, texts=1))
    pairs = [
        (draws.get((features[-1], *c)), draws.get((features[0], *c))) for c in columns
    ]
    if len(features) > 1 and all(
        a is not None and b is not None and a.shape == b.shape for a, b in pairs
    ):
        cells = [f"{escape(features[-1])} − {escape(features[0])}"]
        cells += [_mean(a - b, signed=True) for a, b in pairs]
        lines.append(_row(cells, texts=1).replace("<tr>", '<tr class="gain">'))
    return _table(f"<tr><th></th>{top}</tr>" + _row(heads, texts=1, tag="th"), lines)


def diagnostics(
    found: Mapping[str, Mapping[str, Any]], names: Mapping[str, str]
) -> str:
    """Returns a row for each of the found, and its numbers under their titles."""
    used = [key for key in names if any(is_number(x.get(key)) for x in found.values())]
    lines = [
        _row(
            [escape(name)]
            + [f"{x[key]:.3g}" if is_number(x.get(key)) else "" for key in used],
            texts=1,
        )
        for name, x in found.items()
    ]
    heads = ["features", *(names[key] for key in used)]
    return _table(_row(heads, texts=1, tag="th"), lines)


def facts(pairs: Mapping[str, Any]) -> str:
    """Returns a list of names and what they are; the empty are left out."""
    entries = "".join(
        f"<dt>{escape(name)}</dt><dd>{_text(value)}</dd>"
        for name, value in pairs.items()
        if value not in ("", None, [], {})
    )
    return f'<dl class="facts">{entries}</dl>' if entries else ""


def _table(head, lines):
    return f"<table><thead>{head}</thead><tbody>{''.join(lines)}</tbody></table>"


def _row(cells, *, texts, tag="td"):
    """Returns a row whose first `texts` cells are words and the others numbers."""
    return "<tr>{}</tr>".format(
        "".join(
            f"<{tag}>{cell}</{tag}>"
            if i < texts
            else f'<{tag} class="number">{cell}</{tag}>'
            for i, cell in enumerate(cells)
        )
    )


def _mean(values, *, signed=False):
    text = _signed(values.mean()) if signed else f"{values.mean():.1f}"
    if len(values) < 2:
        return text
    error = Z95 * values.std(ddof=1) / math.sqrt(len(values))
    return f"{text} <small>±{error:.1f}</small>"


def _signed(x):
    return f"{x:+.1f}".replace("-", "−")


def _text(value):
    if isinstance(value, list | tuple):
        value = ", ".join(map(str, value))
    return escape("" if value is None else str(value))


def _value(value):
    """Returns a value of a config as it is typed, lists without brackets."""
    if isinstance(value, list):
        return ", ".join(map(_value, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    return escape(str(value)) or "–"
