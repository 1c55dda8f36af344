"""How far a few labels go: 1-NN and linear probes of frozen features, paired draws."""

from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from rich.console import Console
from rich.table import Table

from vicreg_jax import files
from vicreg_jax.config import Config
from vicreg_jax.data import plan
from vicreg_jax.data.labels import known
from vicreg_jax.data.source import Arrays, Splits
from vicreg_jax.evaluate import apart
from vicreg_jax.evaluate.features import encode
from vicreg_jax.refusals import Refusal, require
from vicreg_jax.report.uncertainty import margin
from vicreg_jax.weights import Encoder

__all__ = [
    "Accuracy",
    "check",
    "check_installed",
    "few_labels",
    "gains",
    "save",
    "show",
]


class Accuracy(NamedTuple):
    """Test accuracies in per cent, one for each draw of labels."""

    features: str  # row of the table
    probe: str  # "1-NN" or "linear"
    labels: int  # per class; 0 means all
    draws: list[float]


def check(splits: Splits, config: Config) -> None:
    """Raises, before any training, what would stop `few_labels` after it.

    Raises:
      Refusal: a split without labels or of files, more labels asked for than a class
        has, or test images that are training images.
      ModuleNotFoundError: scikit-learn is not installed.
    """
    train, test = splits
    given = [x for x in splits if x is not None and x.array is not None]
    if len(given) < 2 or not all(len(known(x.labels)) for x in given):
        raise Refusal(
            "config.evaluate.draws needs arrays with labels and a labelled test split;"
            f" the data {config.data.name!r} lacks them; set config.evaluate.draws=0"
        )
    if train.array.shape[1:] != test.array.shape[1:]:
        raise Refusal(
            f"training and test images differ: {train.array.shape} and"
            f" {test.array.shape}; expected the same height, width and channels"
        )
    most = max(config.evaluate.labels_per_class, default=0)
    labels = train.labels[known(train.labels)]
    fewest = np.unique(labels, return_counts=True)[1].min()
    if most > fewest:
        raise Refusal(
            f"config.evaluate.labels_per_class asks for {most}; a class has only"
            f" {fewest}"
        )
    apart.check(train, test)
    check_installed()


def check_installed() -> None:
    """Raises ModuleNotFoundError without scikit-learn."""
    require("sklearn", "config.evaluate.draws", install="vicreg_jax[demo]")


def few_labels(
    splits: Splits, encoders: Mapping[str, Encoder], config: Config
) -> list[Accuracy]:
    """Returns the accuracies of raw pixels, whitened pixels and encoders.

    Images without a label are left out. Labels are drawn from the training split, the
    same draws for every row, so that rows can be compared in pairs. Features are
    centred and scaled as a whole to unit mean variance by statistics of the training
    split, which need no labels. (Scaling each feature would hurt raw pixels.) 1-NN goes
    by cosine; the linear probe is logistic regression with scikit-learn's default L2
    penalty, C = 1.

    Args:
      encoders: by name, one row each.

    Raises:
      Refusal: see `check`.
    """
    check(splits, config)
    splits = Splits(*map(_labelled, splits))
    train, test = splits
    draws = {
        n: [
            _draw(train.labels, n, config.seed, i) for i in range(config.evaluate.draws)
        ]
        for n in config.evaluate.labels_per_class
    }
    draws[0] = [np.arange(len(train.labels))]
    pixels = _flat(train.array), _flat(test.array)
    rows = {"raw pixels": pixels, "PCA-whitened pixels": _whitened(*pixels)}
    for name, encoder in encoders.items():
        rows[name] = tuple(encode(encoder, images) for images in splits)
    results = []
    for name, (a, b) in rows.items():
        mean, scale = a.mean(axis=0), np.sqrt(a.var(axis=0).mean())
        a, b = (a - mean) / scale, (b - mean) / scale
        for probe, predict in (("1-NN", _nearest), ("linear", _linear)):
            for n, choices in draws.items():
                guesses = (predict(a[i], train.labels[i], b) for i in choices)
                right = [100 * np.mean(guess == test.labels) for guess in guesses]
                results.append(Accuracy(name, probe, n, right))
    return results


def gains(
    table: list[Accuracy], better: str | None = None, than: str = "raw pixels"
) -> dict[tuple[str, int], tuple[float, float, float]]:
    """Returns (probe, labels) -> mean paired difference, and its 95 % interval.

    Args:
      better, than: names of features; by default the last ones and the raw pixels.
    """
    better = better or table[-1].features
    draws = {(r.features, r.probe, r.labels): np.array(r.draws) for r in table}
    result = {}
    for features, *key in draws:
        if features == than:
            d = draws[better, *key] - draws[than, *key]
            result[*key,] = (d.mean(), d.mean() - margin(d), d.mean() + margin(d))
    return result


def save(table: list[Accuracy], path: Path) -> None:
    """Writes every accuracy of every draw as JSON."""
    files.write_json(path, [row._asdict() for row in table])


def show(table: list[Accuracy]) -> None:
    """Prints the table: mean accuracies in per cent, gains over pixels below."""
    columns = list(dict.fromkeys((r.probe, r.labels) for r in table))
    out = Table(title="Test accuracy in per cent, by labels per class")
    out.add_column("features")
    for probe, n in columns:
        out.add_column(f"{probe}\n{n or 'all'}", justify="right")
    means = {(r.features, r.probe, r.labels): np.mean(r.draws) for r in table}
    for name in dict.fromkeys(r.features for r in table):
        out.add_row(name, *(f"{means[name, *column]:.1f}" for column in columns))
    out.add_section()
    paired = gains(table)
    cells = [
        f"{mean:+.1f}" + (f"\n±{high - mean:.1f}" if high > mean else "")
        for mean, _, high in (paired[column] for column in columns)
    ]
    out.add_row(f"{table[-1].features} - raw pixels", *cells)
    console = Console(width=max(100, Console().width))
    console.print(out)
    draws = max(len(r.draws) for r in table)
    console.print(
        f"Means over {draws} draws of labels; below, paired differences and half the"
        " width of their 95 % interval.",
        highlight=False,
    )


def _labelled(images):
    rows = known(images.labels)
    if len(rows) == len(images):
        return images
    return Arrays(images.array[rows], images.labels[rows])


def _draw(labels, n, seed, number):
    """Returns the indices of n examples of each class."""
    order = plan.shuffled("few_labels", len(labels), seed=seed, number=number, part=n)
    return np.concatenate([order[labels[order] == c][:n] for c in np.unique(labels)])


def _flat(images):
    return (
        images.reshape(len(images), -1).astype(np.float32) / np.iinfo(images.dtype).max
    )


def _whitened(train, test):
    """Returns both in the training split's principal components, of unit variance.

    Components beyond 99 % of the variance are left out: they are noise.
    """
    from sklearn.decomposition import PCA

    model = PCA(0.99, whiten=True, svd_solver="full").fit(train.astype(np.float64))
    return tuple(model.transform(x).astype(np.float32) for x in (train, test))


def _unit(x):
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def _nearest(known, labels, asked):
    return labels[np.argmax(_unit(asked) @ _unit(known).T, axis=1)]


def _linear(known, labels, asked):
    from sklearn.linear_model import LogisticRegression

    model = LogisticRegression(C=1.0, max_iter=1000, tol=1e-3)
    return model.fit(known.astype(np.float64), labels).predict(asked)
