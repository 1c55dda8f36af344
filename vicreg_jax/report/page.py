"""The frame of the page: head, order and numbers of its parts; it touches no file."""

import base64
import hashlib
from html import escape

from vicreg_jax.report import head, look, sections
from vicreg_jax.report.figures import Drawn
from vicreg_jax.report.maps import Gallery
from vicreg_jax.report.records import Record
from vicreg_jax.report.sections import Figure, Table


def compose(record: Record, gallery: Gallery | None) -> tuple[str, dict[str, Drawn]]:
    """Returns the page, and its figures by the names of their files.

    A section that the record has no data for is left out.
    """
    found = {
        "The loss": sections.loss(record),
        "Spread and rank": sections.diagnostics(record),
        "Spectrum": sections.spectrum(record),
        "Schedule and speed": sections.speed(record),
        "Evaluation": sections.evaluation(record),
        "Few labels": sections.few_labels(record),
    }
    if gallery is not None:
        found |= {
            "Map of the representations": sections.feature_map(gallery),
            "Nearest neighbours": sections.neighbours(gallery),
            "Augmented views": sections.views(record, gallery),
        }
    found["All settings"] = sections.settings(record)
    found = {title: parts for title, parts in found.items() if parts}
    counts, drawn, body = {"Figure": 0, "Table": 0}, {}, []
    for i, (title, parts) in enumerate(found.items()):
        body.append(f'<h2 id="section{i}">{title}</h2>')
        for part in parts:
            if isinstance(part, Figure):
                drawn |= part.panels
            body.append(_shown(part, counts))
    links = [f'<a href="#section{i}">{title}</a>' for i, title in enumerate(found)]
    return _document(record, " ".join(links), "\n".join(body), gallery), drawn


def _document(record, links, body, gallery):
    script = "" if gallery is None else look.SCRIPT
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    allowed = (
        "default-src 'none'; img-src data:; style-src 'unsafe-inline';"
        f" script-src 'sha256-{digest}'"
    )
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{allowed}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(record.name)}: report of a VICReg run</title>
<style>{look.STYLE}</style>
</head>
<body>
<header>{head.head(record)}<nav>{links}</nav></header>
<main>
{body}
</main>
<footer>{head.foot(record)}</footer>
{f"<script>{script}</script>" if script else ""}
</body>
</html>
"""


def _shown(part, counts):
    """Returns a part as HTML, its caption numbered."""
    if isinstance(part, str):
        return part
    kind = type(part).__name__
    counts[kind] += 1
    caption = f"<figcaption><b>{kind} {counts[kind]}.</b> {part.caption}</figcaption>"
    if isinstance(part, Table):
        return f'<figure><div class="scroll">{part.html}</div>{caption}</figure>'
    svgs = "\n".join(drawing.svg for drawing in part.panels.values())
    inside = f'<div class="{part.layout}">{svgs}{part.extra}</div>'
    if part.layout == "panels":
        return f"<figure>{inside}{caption}</figure>"
    return (
        f'<figure class="beside"><div class="scroll">{inside}</div>{caption}</figure>'
    )
