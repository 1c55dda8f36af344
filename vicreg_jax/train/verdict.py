"""What a run has done to its encoder, on images that it never saw: before and after."""

import warnings
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from vicreg_jax import files
from vicreg_jax.config import Config
from vicreg_jax.data import batches, plan
from vicreg_jax.data.augment import draw
from vicreg_jax.data.labels import exist, known
from vicreg_jax.data.source import Source
from vicreg_jax.devices import sharding
from vicreg_jax.evaluate import diagnostics, logistic, neighbours
from vicreg_jax.evaluate.augmented import augmented_features
from vicreg_jax.evaluate.features import Whole, stream
from vicreg_jax.methods import Method
from vicreg_jax.refusals import Refusal
from vicreg_jax.run.prefetch import Feed
from vicreg_jax.run.state import TrainState
from vicreg_jax.train.build import encoder_variables

__all__ = ["FILE", "Verdict", "change_of_shares", "jackknife"]

Z95 = 1.96  # standard errors that hold 95 % of a normal distribution
FILE = "verdict.json"
QUERIES, BANK, NEIGHBOURS, FITTED = 10_000, 50_000, 20, 10_000  # at most
IMAGES, VIEWS = 1000, 4  # without labels
BLOCKS, T95 = 8, 2.365  # of a jackknife; Student's t of 7 degrees of freedom
TEMPERATURE = 0.07  # of the votes


class Verdict:
    """Judges a run by the images that it held out, before its first step and after.

    With labels by nearest neighbours among the training images, and beside them by
    logistic regression on those; without by LiDAR, and
    beside it RankMe, alpha-ReQ and the loss of views augmented as in training. What was
    found before lies in verdict.json, so that a run that continues still knows it.

    Args:
      train, test: the images trained on, and those held out.
      workdir: of the run.
    """

    def __init__(
        self,
        method: Method,
        train: Source,
        test: Source,
        config: Config,
        mesh: Mesh,
        workdir: Path,
    ):
        self._method, self._config, self._mesh = method, config, mesh
        self._train, self._test, self._path = train, test, workdir / FILE
        self._labelled = exist(train.labels) and exist(test.labels)

    def before(self, state: TrainState) -> None:
        """Measures the state of step 0.

        Raises:
          Refusal: a held-out image cannot be read.
        """
        self._write({"before": self._measured(state)})

    def after(self, state: TrainState) -> str:
        """Returns the verdict in one line, of the last state; measured once."""
        try:
            known = files.read_json(self._path, {"before": dict})
        except Refusal as error:
            return f"no verdict: {error}"
        if "after" not in known:
            known["after"] = self._measured(state)
            self._write(known)
        count = known["before"]["images"]
        return f"verdict on {count:,} images held out: {_words(known)}"

    def _write(self, content):
        if jax.process_index() == 0:
            files.write_json(self._path, files.sealed(content))

    def _measured(self, state):
        variables = encoder_variables(state)
        if self._labelled:
            return self._by_labels(variables)
        rows = np.arange(min(len(self._test), IMAGES))  # drawn by the seed already
        found = {"images": len(rows)}
        y = self._features(variables, self._test, rows)
        seen = augmented_features(
            self._apply,
            variables,
            self._test,
            self._config,
            rows=rows,
            count=VIEWS,
            mesh=self._mesh,
        )
        found["LiDAR"] = _without_blocks(diagnostics.lidar, seen)
        found["RankMe"] = _without_blocks(_rank, y)
        if min(y.shape[1], len(y) - len(y) // BLOCKS) > diagnostics.RANKS[0] + 1:
            found["alpha-ReQ"] = _without_blocks(diagnostics.alpha_req, y)
        return found | self._loss(state, rows)

    def _apply(self, variables, views):
        return self._method.encoder.apply(variables, views, train=False)

    def _features(self, variables, source, rows):
        whole = Whole(source, self._config.data, rows)
        parts = stream(self._apply, variables, whole, mesh=self._mesh)
        return np.concatenate(list(parts))

    def _by_labels(self, variables):
        """Returns which held-out images neighbours and a linear probe get right."""
        chosen = []
        for source, most in ((self._test, QUERIES), (self._train, BANK)):
            rows = known(source.labels)
            order = plan.shuffled("knn_bank", len(rows), seed=self._config.seed)
            chosen.append(rows[order[:most]])
        (asked, bank), k = chosen, min(NEIGHBOURS, len(chosen[1]))
        labels, near = (
            np.asarray(source.labels)[rows]
            for source, rows in zip((self._test, self._train), chosen, strict=True)
        )
        y, others = (
            self._features(variables, source, rows)
            for source, rows in ((self._test, asked), (self._train, bank))
        )
        similarities, indices = neighbours.nearest(y, others, k=k, mesh=self._mesh)
        votes = neighbours.votes(
            similarities,
            near[indices],
            classes=int(max(labels.max(), near.max())) + 1,
            temperature=TEMPERATURE,
        )
        right = votes.argmax(axis=1) == labels
        found = {"images": len(asked), "k": k, "right": right.astype(int).tolist()}
        guesses = _linear(others[:FITTED], near[:FITTED], y)
        if guesses is not None:
            found["linear"] = (guesses == labels).astype(int).tolist()
        return found

    def _loss(self, state, rows):
        """Returns the loss of each block of images, as a step computes it."""
        least = self._mesh.size * self._config.model.microbatches
        size = len(rows) // BLOCKS // least * least
        if size < 2:
            return {}
        data = replace(self._config.data, batch_size=size)
        config = replace(self._config, data=data)
        made = batches.Batches(self._test, config, self._mesh)
        own = sharding.rows(size)

        def planner(step):
            shape = (size, data.views, draw.NUMBERS)
            chosen = rows[step * size : (step + 1) * size]
            local = data.local_views
            numbers = plan.uniforms(config.seed, step, shape, local_views=local)
            return plan.Plan(chosen, numbers)

        whole = sharding.whole(self._mesh)

        @partial(jax.jit, in_shardings=(None, *made.sharding), out_shardings=whole)
        def loss(variables, resident, batch):
            params, others = variables
            views = made.render(resident, batch)
            key = jax.random.key(config.seed)
            return self._method.objective(params, others, views, key=key)[0]

        def make(step):
            return made.make(planner, step, own)

        variables, resident = (state.params, state.others()), made.resident()
        feed = Feed(make, range(BLOCKS), sharding=sharding.split(self._mesh))
        found = [float(loss(variables, resident, batch)) for _, batch in feed]
        return {"loss": _without_blocks(np.mean, np.array(found))}


def change_of_shares(before: np.ndarray, after: np.ndarray) -> tuple[float, float]:
    """Returns the change of a share of the same images, and half its 95 % interval.

    Both in per cent, from bool [n]. Half an image is added to each of the four cells of
    the table before x after, so that no interval is empty.

    Source: Agresti and Min, Simple improved confidence intervals for comparing matched
    proportions, Statistics in Medicine 24 (2005).
    """
    before, after = np.asarray(before, bool), np.asarray(after, bool)
    gained, lost = (np.sum(x) + 0.5 for x in (~before & after, before & ~after))
    n = len(before) + 2
    error = np.sqrt(gained + lost - (gained - lost) ** 2 / n) / n
    return float(100 * (after.mean() - before.mean())), float(100 * Z95 * error)


def jackknife(
    before: Mapping[str, Any], after: Mapping[str, Any]
) -> tuple[float, float]:
    """Returns the change of a statistic, and half its 95 % interval.

    Args:
      before, after: "all", of all images, and "without", of all but one block of them,
        the same blocks in both.

    Source: Efron and Stein, The jackknife estimate of variance, 1981, of blocks.
    """
    parts = np.subtract(after["without"], before["without"])
    error = np.sqrt((BLOCKS - 1) * np.var(parts))
    return after["all"] - before["all"], float(T95 * error)


def _words(known):
    before, after = known["before"], known["after"]
    if "right" in before:
        said = []
        for key, name in (("right", f"{before['k']}-NN"), ("linear", "linear")):
            if key not in before or key not in after:
                continue
            change, half = change_of_shares(before[key], after[key])
            old, new = (100 * np.mean(x[key]) for x in (before, after))
            said.append(
                f"{_judged(change, half)}: {name} top-1 {old:.1f} % before, {new:.1f} %"
                f" after, {change:+.1f} ±{half:.1f}"
            )
        return "; ".join(said)
    names = [name for name, x in before.items() if isinstance(x, dict)]
    said = []
    for name in names:
        change, half = jackknife(before[name], after[name])
        values = f"{before[name]['all']:.3g} before, {after[name]['all']:.3g} after"
        said.append(f"{name} {values}, {change:+.2g} ±{half:.2g}")
    return f"{_judged(*jackknife(before['LiDAR'], after['LiDAR']))}: {'; '.join(said)}"


def _linear(features, labels, asked):
    """Returns what a linear probe takes images for; None where all are of one class."""
    classes, numbers = np.unique(labels, return_inverse=True)
    if len(classes) < 2:
        return None
    mean, scale = features.mean(axis=0), features.std() or 1.0
    a, b = ((x - mean) / scale for x in (features, asked))
    with warnings.catch_warnings():  # how near to the minimum it is decides nothing
        warnings.simplefilter("ignore", RuntimeWarning)
        fitted = logistic.fit(a, numbers, classes=len(classes))
    return classes[logistic.predict(fitted, b)]


def _judged(change, half):
    if abs(change) <= half:
        return "within noise"
    return "better" if change > 0 else "worse"


def _without_blocks(statistic: Callable[[np.ndarray], float], x: np.ndarray):
    """Returns a statistic of all rows, and of all but one block of them in turn."""
    blocks = np.array_split(np.arange(len(x)), BLOCKS)
    without = [float(statistic(np.delete(x, block, axis=0))) for block in blocks]
    return {"all": float(statistic(x)), "without": without}


def _rank(features):
    values = np.linalg.svd(features.astype(np.float64), compute_uv=False)
    return diagnostics.effective_rank(values)
