"""What a report is made of: a run's files and a gallery, both checked, none written."""

import os
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from vicreg_jax import files, methods
from vicreg_jax.config import Config
from vicreg_jax.files import is_number
from vicreg_jax.refusals import NotFound, Refusal, Unusable, printable
from vicreg_jax.run import goodput, json_lines, result_file, workdirs

__all__ = ["Gallery", "Record", "check_gallery", "read_run"]


MOST = 5000  # images of a gallery: the page and the map have their limits


class Record(NamedTuple):
    """All that a workdir says of its run; what is absent is empty."""

    name: str  # of the workdir
    config: Config
    weights: dict[str, float]  # of the terms of the loss
    metrics: list[dict[str, float]]  # by step; finite numbers
    damaged: int  # lines of metrics.jsonl that could not be read
    environment: dict[str, Any]
    few_labels: list[dict[str, Any]]
    results: list[dict[str, Any]]  # of eval/*/result.json
    starts: list[dict[str, Any]]  # lines of starts.jsonl
    diagnostics: dict[str, dict[str, Any]]  # name of its folder -> diagnostics.json
    unreadable: list[str]  # files that are there, but not what they should be


class Gallery(NamedTuple):
    """What a report shows of some images."""

    features: np.ndarray  # float32 [n, f], their representations
    thumbnails: np.ndarray  # uint8 [n, t, t, c]
    labels: np.ndarray | None  # int [n]
    classes: Sequence[str]  # names of the labels; may be empty
    views: np.ndarray  # uint8 [k, 2, s, s, c]: the augmented views of k images


def read_run(workdir: str | os.PathLike) -> Record:
    """Returns the record of a run.

    Raises:
      NotFound: the folder holds no run.
      Refusal: its config.json cannot be read.
    """
    workdir = files.expanded(workdir)
    if not (workdir / "config.json").is_file():
        raise NotFound(f"{workdir} is no run: there is no config.json")
    config = workdirs.read_config(workdir)
    unreadable = []

    def found(pattern, good):
        """Returns the contents of the good files that match, by their folders."""
        contents = {}
        for path in sorted(workdir.glob(pattern)):
            try:
                content = files.read_json(path)
            except Refusal:
                content = None
            if good(content):
                contents[printable(path.parent.name)] = content
            else:
                unreadable.append(printable(str(path.relative_to(workdir))))
        return contents

    def one(name, good, otherwise):
        return next(iter(found(name, good).values()), otherwise)

    lines, damaged = [], 0
    try:
        lines, damaged = _metrics(workdir / "metrics.jsonl")
    except Unusable:
        unreadable.append("metrics.jsonl")
    starts = []
    try:
        starts = goodput.read(workdir)
    except Refusal:
        unreadable.append(goodput.NAME)
    return Record(
        name=printable(workdir.resolve().name),
        config=config,
        weights=_weights(config),
        metrics=lines,
        damaged=damaged,
        environment=one("environment.json", _is_mapping, {}),
        few_labels=one("few_labels.json", _is_few_labels, []),
        results=list(
            found(f"eval/*/{result_file.FILE}", result_file.is_result).values()
        ),
        starts=starts,
        diagnostics=found("eval/*/diagnostics.json", _is_mapping),
        unreadable=unreadable,
    )


def check_gallery(gallery: Gallery) -> None:
    """Raises ValueError where the arrays do not fit each other."""
    features, thumbnails, labels, _, views = gallery
    n = len(features)
    if features.ndim != 2 or not 2 <= n <= MOST:
        raise Refusal(
            f"gallery.features are [n, f] with n from 2 to {MOST}; got {features.shape}"
        )
    if not np.isfinite(features).all():
        raise Refusal("gallery.features must be finite; got nan or inf")
    pairs = views.ndim == 5 and views.shape[1] == 2
    for name, images, good, wanted in (
        ("thumbnails", thumbnails, thumbnails.ndim == 4, "[n, t, t, 1 or 3]"),
        ("views", views, pairs, "pairs [k, 2, s, s, 1 or 3]"),
    ):
        if not good or images.shape[-1] not in (1, 3) or images.dtype != np.uint8:
            raise Refusal(
                f"gallery.{name} are uint8 {wanted}; got {images.dtype} {images.shape}"
            )
    if len(thumbnails) != n or (labels is not None and labels.shape != (n,)):
        found = "none" if labels is None else labels.shape
        raise Refusal(
            f"gallery: {n} features need {n} thumbnails and labels; got"
            f" {len(thumbnails)} and {found}"
        )


def _weights(config):
    """Returns the weights of the terms; of a user's own method those in its config."""
    method = methods.METHODS.get(config.method)
    return method.weighed(config.loss) if method else dict(config.loss)


def _metrics(path):
    """Returns the lines by step, the last one of each, and how many were damaged."""
    found, damaged = json_lines.read(path, lambda line: is_number(line.get("step")))
    lines = {}
    for line in found:
        lines[line["step"]] = {name: x for name, x in line.items() if is_number(x)}
    return [lines[step] for step in sorted(lines)], damaged


def _is_mapping(x):
    return isinstance(x, dict)


def _is_few_labels(x):
    return isinstance(x, list) and all(
        isinstance(row, dict)
        and {"features", "probe", "labels", "draws"} <= set(row)
        and is_number(row["labels"])
        and isinstance(row["draws"], list)
        and row["draws"]
        and all(map(is_number, row["draws"]))
        for row in x
    )
