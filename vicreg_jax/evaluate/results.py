"""Results of evaluations: written, shown, set beside published ones; not computed."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from vicreg_jax import files, models
from vicreg_jax.evaluate.inputs import Inputs
from vicreg_jax.report.uncertainty import interval

__all__ = ["published", "read", "show", "write"]

# Of VICReg on ImageNet by encoder and width, in per cent. Source: arXiv:2105.04906,
# tables 1, 9, 10 and 11. The paper does not say at which temperature neighbours vote.
PUBLISHED = {
    ("linear", "resnet50", 1): {"top-1": 73.2, "top-5": 91.1},
    ("linear", "resnet50", 2): {"top-1": 75.5, "top-5": 92.1},
    ("linear", "resnet200", 2): {"top-1": 77.3, "top-5": 93.3},
    ("knn", "resnet50", 1): {"20-NN top-1": 64.5, "200-NN top-1": 62.8},
    ("finetune 1 %", "resnet50", 1): {"top-1": 54.8, "top-5": 79.4},
    ("finetune 1 %", "resnet50", 2): {"top-1": 62.6, "top-5": 84.5},
    ("finetune 1 %", "resnet200", 2): {"top-1": 68.8, "top-5": 88.2},
    ("finetune 10 %", "resnet50", 1): {"top-1": 69.5, "top-5": 89.5},
    ("finetune 10 %", "resnet50", 2): {"top-1": 73.9, "top-5": 92.1},
    ("finetune 10 %", "resnet200", 2): {"top-1": 77.3, "top-5": 93.6},
}
IMAGENET = (1000, 50_000)  # classes, test images


def published(task: str, module: Any, found: Inputs) -> dict[str, float]:
    """Returns the published numbers of this encoder and task on ImageNet, if any.

    Args:
      task: of the evaluation; of fine-tuning with the share of labels.
    """
    tested = len(found.test) if found.test else 0
    spec = models.spec(module)
    if (found.classes, tested) != IMAGENET or spec is None:
        return {}
    if len(found.kept) < len(found.train) and not task.startswith("finetune"):
        return {}
    return PUBLISHED.get((task, spec["name"], spec["width"]), {})


def write(workdir: Path, content: Mapping[str, Any]) -> None:
    """Writes result.json, and shows it.

    Args:
      content: "task"; "name" of the config file; "checkpoint" and, where it is known,
        its "step"; the checksum of its "variables" and digests of the "images"; "data";
        "results", by name in per cent of the "tested" images, and
        those "published"; "notes", lines.
    """
    files.write_json(workdir / "result.json", content)
    show(content)


def read(workdir: Path) -> dict[str, Any] | None:
    """Returns what `write` wrote there, if it did."""
    path = workdir / "result.json"
    return json.loads(path.read_text()) if path.exists() else None


def show(content: Mapping[str, Any]) -> None:
    """Prints the table; accuracies with half the width of 95 % binomial intervals."""
    n = content["tested"]
    out = Table()
    out.add_column("")
    out.add_column("per cent", justify="right")
    if content["published"]:
        out.add_column("published", justify="right")
    for name, value in content["results"].items():
        known = content["published"].get(name)
        cells = [] if not content["published"] else [f"{known:.1f}" if known else ""]
        half = f" ±{interval(value, n):.1f}" if "top-" in name else ""
        out.add_row(name, f"{value:.1f}{half}", *cells)
    console = Console()
    title = f"{content['name']}: {content['data']}, {n} test images"
    if content["step"] is not None:
        title += f", checkpoint of step {content['step']}"
    console.print(title, highlight=False, markup=False)
    console.print(out)
    for note in content["notes"]:
        console.print(note, highlight=False, markup=False)
