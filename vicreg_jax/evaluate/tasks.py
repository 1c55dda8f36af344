"""The evaluations by name: from a config and a checkpoint to a result on disk."""

import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.console import Console

from vicreg_jax import devices, files, models
from vicreg_jax.config import Augment, Evaluation
from vicreg_jax.data import plan
from vicreg_jax.data.index_cache import IndexCache
from vicreg_jax.data.source import describe
from vicreg_jax.devices import processes
from vicreg_jax.evaluate import (
    diagnostics,
    features,
    heads,
    logistic,
    multilabel,
    neighbours,
    results,
    supervised,
)
from vicreg_jax.evaluate.augmented import augmented_features
from vicreg_jax.evaluate.features import Features
from vicreg_jax.evaluate.inputs import Inputs, held_out, need_labels, open_inputs
from vicreg_jax.refusals import Refusal
from vicreg_jax.run import result_file, workdirs
from vicreg_jax.run.progress import counted
from vicreg_jax.weights import Encoder, contents, loading

__all__ = ["TASKS", "Task", "run"]

DIAGNOSED = 25_600  # images at most, as many as RankMe's authors take


def run(config: Evaluation, workdir: Path, *, name: str) -> None:
    """Does the task of a config, or goes on with it; a finished one is only shown.

    Of several processes (`jax.distributed`) each calls it alike, with a workdir that
    all see; the first writes and speaks.

    Args:
      name: of the config file, for the result.

    Raises:
      Refusal: what is wrong with the checkpoint, the data or the
        workdir, before anything is written.
    """
    workdirs.agree(workdir, config)
    with processes.all_or_none(Refusal, of=Refusal):
        devices.mesh()
        encoder = loading.load(config.checkpoint, stem=config.model.stem)
        cache = IndexCache(workdir)
        inputs = open_inputs(config, encoder, cache)
        if config.task != "features":
            need_labels(inputs)
    judged = {
        "variables": features.checksum(encoder.variables),
        "images": inputs.fingerprint(),
    }
    processes.agree(judged)
    with workdirs.claimed(workdir, config) as (workdir, _):
        cache.write()
        finished = result_file.read(workdir)
        if finished:
            _need_same(workdir, finished, judged | {"step": encoder.step})
        else:
            task = Task(config, workdir, encoder, inputs, name, judged)
            if _is_first():
                sys.stderr.write(f"{task.opening()}\n")
            TASKS[config.task](task)
    if finished and _is_first():
        results.show(finished)


def _need_same(workdir, finished, now):
    """Refuses a result of another encoder or other images; one of old may not tell."""
    advice = "choose another --workdir, or remove it"
    if finished["step"] != now["step"]:
        raise Refusal(
            f"{workdir} has the result of step {finished['step']}, the checkpoint is"
            f" now at step {now['step']}; {advice}"
        )
    if finished.get("variables", now["variables"]) != now["variables"]:
        raise Refusal(f"{workdir} has the result of another encoder; {advice}")
    then = finished.get("images", now["images"])
    others = [x for x in then | now["images"] if then.get(x) != now["images"].get(x)]
    if others:
        raise Refusal(
            f"{workdir} has the result of other images ({', '.join(others)} differ);"
            f" {advice}"
        )


@dataclass(frozen=True)
class Task:
    """An evaluation in its workdir: what to do, to which encoder, on which images."""

    config: Evaluation
    workdir: Path
    encoder: Encoder
    inputs: Inputs
    name: str  # of the config file
    judged: Mapping[str, Any]  # checksum of the "variables", digests of the "images"

    def opening(self) -> str:
        """Returns a line on what is to be judged, on which images, where."""
        encoder, found = self.encoder, self.inputs
        spec = models.spec(encoder.module)
        model = spec["name"] if spec else type(encoder.module).__name__
        step = "" if encoder.step is None else f" at step {encoder.step}"
        words = f"{self.config.task} of {model}{step} from {encoder.source}: "
        words += f"{len(found.kept):,} of {describe(found.train)} for training"
        if found.test is not None:
            words += f", {describe(found.test)} for testing"
        return f"{words}; {processes.described()}; in {self.workdir}"

    def parts(self, part: str, *, embed: bool = False) -> Iterator[dict]:
        """Yields the features of "train" or "test", kept in the workdir, file by file.

        Args:
          embed: whether embeddings are to come with them.
        """
        if _is_first():
            workdirs.write_config(self.workdir, self.config)
        whole = self.inputs.whole(part)
        rest = self.encoder.expander if embed else None
        expander = contents.expander_of(rest) if rest else None

        def apply(variables, views):
            own, rest = variables
            y = self.encoder.module.apply(own, views, train=False)
            found = {"representations": y}
            if expander:
                found["embeddings"] = expander.apply(rest, y, train=False)
            return found

        silent = not _is_first()
        with counted(f"{part} features", len(whole.rows), silent=silent) as progress:
            yield from features.parts(
                apply,
                (self.encoder.variables, rest),
                whole,
                self.workdir / "features" / part,
                data=self.judged["images"],
                mesh=devices.mesh(),
                progress=progress,
            )

    def features(self) -> tuple[Features, Features]:
        """Returns the features of all training and test images."""
        return features.joined(self.parts("train")), features.joined(self.parts("test"))

    def drawn(self, count: int, at_most: int) -> np.ndarray:
        """Returns some of `count` images, drawn by the seed."""
        return plan.permutation(self.config.seed, 0, count)[:at_most]

    def top(self, right: Sequence[float]) -> dict[str, float]:
        """Returns top-1 and, with more than five classes, top-5, by name."""
        names = ("top-1", "top-5") if self.inputs.classes > 5 else ("top-1",)
        return {name: float(x) for name, x in zip(names, right, strict=False)}

    def finish(
        self,
        table: Mapping[str, float],
        notes: Sequence[str] = (),
        *,
        published: str = "",
    ) -> None:
        """Writes and shows the result.

        Args:
          table: per cent by name.
          published: the task in `results.PUBLISHED`, if not that of the config.
        """
        if not _is_first():
            return
        data, task = self.inputs.config.data, published or self.config.task
        content = {
            "task": self.config.task,
            "name": self.name,
            "checkpoint": self.config.checkpoint,
            "step": self.encoder.step,
            **self.judged,
            "data": data.dataset if data.name == "tfds" else data.path or data.name,
            "tested": len(self.inputs.tested),
            "results": dict(table),
            "published": results.published(task, self.encoder.module, self.inputs),
            "notes": list(notes),
        }
        result_file.write(self.workdir, content)
        results.show(content)


def linear(task: Task) -> None:
    config, found = task.config, task.inputs
    outcome = supervised.fit(
        config, task.workdir, task.encoder.module, task.encoder.variables, found
    )
    bank = heads.combinations(config.head)
    test = task.top(outcome.test[outcome.chosen])
    notes = []
    if len(bank) > 1:
        layer, rate, decay = bank[outcome.chosen]
        notes.append(
            f"Of {len(bank)} heads: rate {rate:g}, weight decay {decay:g}, layer"
            f" {layer}, with {outcome.held_out[outcome.chosen][0]:.1f} % of the images"
            " held out."
        )
    if outcome.maximum is not None:
        for key, value in task.top(outcome.maximum).items():
            test[f"{key}, maximum over epochs"] = value
        notes.append("The maximum is over test accuracies of all epochs: optimistic.")
    elif config.head.test_every_epoch:
        notes.append("The maximum over epochs is not known: metrics.jsonl is damaged.")
    published = ""
    if config.task == "finetune":
        published = f"finetune {100 * len(found.kept) / len(found.train):.0f} %"
        notes.append(f"Trained on {len(found.kept)} of {len(found.train)} images.")
    task.finish(test, notes, published=published)


def knn(task: Task) -> None:
    given, kept = task.config.knn, len(task.inputs.kept)
    if max(given.neighbours) > kept:
        raise Refusal(
            f"config.knn.neighbours asks for {max(given.neighbours)}; there are {kept}"
            " training images"
        )
    train, test = task.features()
    right = neighbours.accuracy(
        test.representations,
        test.labels,
        train.representations,
        train.labels,
        neighbours=given.neighbours,
        temperature=given.temperature,
        mesh=devices.mesh(),
        classes=task.inputs.classes,
    )
    table = {}
    for (k, kind), accuracies in right.items():
        if kind == "plain":
            table[f"{k}-NN top-1, plain votes"] = accuracies[0]
        else:
            table |= {f"{k}-NN {key}": x for key, x in task.top(accuracies).items()}
    weight = f"exp(cosine similarity / {given.temperature:g})"
    task.finish(table, [f"Votes weighted by {weight}, or plain."])


def logistic_regression(task: Task) -> None:
    train, test = task.features()
    mean, scale = train.representations.mean(axis=0), train.representations.std()
    a, b = ((x.representations - mean) / scale for x in (train, test))
    notes = []

    def accuracy(c, fit, x, labels):
        """Returns per cent right of x, fitted to some of the training images."""
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always", RuntimeWarning)
            options = dict(classes=task.inputs.classes, C=c)
            model = logistic.fit(a[fit], train.labels[fit], **options)
        notes.extend(f"C = {c:g}: {warning.message}" for warning in caught)
        return 100 * float(np.mean(logistic.predict(model, x) == labels))

    c, *others = candidates = task.config.logistic.c
    if others:
        fit, aside = held_out(np.arange(len(a)), train.labels, 0.1, task.config.seed)
        known = a[aside], train.labels[aside]
        right = {c: accuracy(c, fit, *known) for c in candidates}
        c = max(right, key=right.get)  # the first of equals
        notes.append(
            f"C = {c:g}, with {right[c]:.1f} % of a tenth of the training images"
        )
    task.finish({"top-1": accuracy(c, slice(None), b, test.labels)}, notes)


def svm(task: Task) -> None:
    train, test = task.features()
    given = task.config.svm
    scores = multilabel.fit_and_score(
        train.representations,
        train.labels,
        test.representations,
        test.labels,
        costs=given.costs,
        folds=given.folds,
        seed=task.config.seed,
    )
    table = {"mean average precision": scores.mean}
    classes = task.inputs.train.classes
    table |= dict(zip(classes, scores.average_precision, strict=True))
    task.finish(
        table, ["Area under precision and recall; difficult images are left out."]
    )


def write_features(task: Task) -> None:
    """Writes features of both parts, and what a sample of the training's says."""
    chosen = np.sort(task.drawn(len(task.inputs.kept), DIAGNOSED))
    sample, start = [], 0
    for part in task.parts("train", embed=True):
        own = chosen[(start <= chosen) & (chosen < start + len(part["names"]))] - start
        sample.append({name: x[own] for name, x in part.items()})
        start += len(part["names"])
    if task.inputs.test is not None:
        for _ in task.parts("test", embed=True):
            pass
    pairs = _views(task) if task.config.lidar.images else None
    if not _is_first():
        return
    seen = features.joined(sample)
    facts = {"images": len(chosen)}
    facts |= diagnostics.diagnose(seen.representations, seen.embeddings, pairs)
    files.write_json(task.workdir / "diagnostics.json", facts)
    console = Console()
    for key, value in facts.items():
        if not isinstance(value, list):
            shown = f"{value:.4g}" if isinstance(value, float) else value
            console.print(f"{key}: {shown}", highlight=False, markup=False)
    console.print(f"features are in {task.workdir / 'features'}", highlight=False)


TASKS: dict[str, Callable[[Task], None]] = {
    "linear": linear,
    "finetune": linear,
    "knn": knn,
    "logistic": logistic_regression,
    "svm": svm,
    "features": write_features,
}


def _is_first() -> bool:
    """Tells whether this process is the one that writes and speaks."""
    return jax.process_index() == 0


def _views(task: Task) -> np.ndarray:
    """Returns representations [n, q, f] of views, augmented as in the encoder's run."""
    encoder, found, count = task.encoder, task.inputs, task.config.lidar.views
    augment = encoder.config.augment if encoder.config else Augment()
    if found.train.names is None:
        augment = replace(augment, colour="device")
    rows = found.kept[task.drawn(len(found.kept), task.config.lidar.images)]
    silent, total = not _is_first(), len(rows) * count
    with counted("views for LiDAR", total, silent=silent) as progress:
        return augmented_features(
            partial(encoder.module.apply, train=False),
            encoder.variables,
            found.train,
            replace(found.config, augment=augment),
            rows=rows,
            count=count,
            mesh=devices.mesh(),
            progress=progress,
        )
